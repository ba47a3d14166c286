//! What the kernel measures of ztunnel's connections.

use crate::world::{BOTH, World, accept, connect, listen, talk};
use capture::{Mode, Node, NodeOptions, Role};
use nix::libc;
use std::{
    fs,
    net::TcpStream,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

/// A cgroup for this process; on drop it moves back.
struct Cgroup {
    dir: PathBuf,
    before: PathBuf,
}

impl Cgroup {
    fn enter() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup2")
            .map(|fields| PathBuf::from(fields[1]))
            .expect("cgroup2 is mounted somewhere");
        let of_self = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = of_self.lines().find_map(|line| line.strip_prefix("0::/")).expect("in a cgroup2");
        let dir = root.join(format!("cv-stats-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        join(&dir);
        Self { dir, before: root.join(path) }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        join(&self.before);
        let _ = fs::remove_dir(&self.dir);
    }
}

fn join(dir: &Path) {
    fs::write(dir.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

#[test]
fn ztunnels_connections_are_measured_and_no_others() {
    let cgroup = Cgroup::enter();
    let world = World::new();
    let options = NodeOptions { cgroup: Some(cgroup.dir.clone()), ..world.options() };
    // Twice: the second adopts.
    drop(Node::open(options.clone()).unwrap());
    let node = Node::open(options).unwrap();
    let pod = node.attach(&world.target()).unwrap();
    pod.set_mode(Mode::Enforce).unwrap();
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let server = listen(&world.far, 8080);
    for family in BOTH {
        let to = World::at_far(family, 8080);
        let mut ours = ztunnel.connect(to).unwrap();
        let mut theirs = accept(&server).0;
        let mut app = connect(&world.pod, to).unwrap();
        let (mut child, ..) = accept(&listener);
        for _ in 0..50 {
            talk(&mut ours, &mut theirs);
            talk(&mut app, &mut child);
        }
        for socket in [&ours, &child] {
            let stats = ztunnel.pins.tcp_stats(socket.as_fd()).expect("measured");
            assert!(stats.srtt_us > 0 && stats.srtt_us < 1_000_000, "{stats:?}");
            assert_eq!(stats.retransmits, total_retransmits(socket), "as the kernel itself tells");
            assert!(stats.delivery_rate > 0, "{stats:?}");
        }
        let unmeasured = ztunnel.unmeasured(to).unwrap();
        accept(&server);
        assert!(ztunnel.pins.is_own(unmeasured.as_fd()));
        for socket in [&theirs, &app, &unmeasured] {
            assert_eq!(ztunnel.pins.tcp_stats(socket.as_fd()), None);
        }
    }
}

/// `tcpi_total_retrans` of TCP_INFO.
fn total_retransmits(socket: &TcpStream) -> u32 {
    // SAFETY: plain integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the option fills a structure of the size given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut size,
        )
    };
    assert_eq!(result, 0);
    info.tcpi_total_retrans
}
