//! Work of which some is done at a time.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, anyhow};

/// The cores that there are.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does the work on each item, on so many at a time as there are lanes, begun in the items' order. What came of each,
/// in no order.
pub(crate) fn each<'a, T: Sync, R: Send>(
    items: &'a [T],
    lanes: usize,
    work: impl Fn(&'a T) -> R + Sync,
) -> Result<Vec<(&'a T, R)>> {
    let next = AtomicUsize::new(0);
    let lane = || {
        let mut done = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((item, work(item)));
        }
        done
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes.max(1)).map(|_| scope.spawn(lane)).collect();
        let mut all = Vec::new();
        for lane in lanes {
            all.extend(lane.join().map_err(|_| anyhow!("a thread at work panicked"))?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_some_at_a_time() {
        let items: Vec<u32> = (0..10).collect();
        let both = Barrier::new(2);
        let mut done = each(&items, 2, |item| {
            both.wait();
            item * 2
        })
        .unwrap();
        done.sort_unstable();
        assert!(done.iter().map(|(item, twice)| (**item, *twice)).eq((0..10).map(|item| (item, item * 2))));
    }

    #[test]
    fn a_panic_is_told() {
        assert!(each(&[1, 2], 2, |item| assert_eq!(*item, 1)).is_err());
    }
}
