//! Splicing two applications of one node.

use capture::splice;
use std::time::Instant;

#[test]
fn the_self_test_passes_here() {
    let cgroup = splice::cgroup_root().expect("cgroup2 is mounted somewhere");
    let start = Instant::now();
    let report = splice::self_test(&cgroup).unwrap();
    let took = start.elapsed();
    println!("{report:?} in {took:?}");
    assert!(report.is_good(), "{report:?}");
    assert!(took.as_millis() < 1_000, "{took:?}");
}
