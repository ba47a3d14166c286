//! The verdicts: facts in, one verdict out, each with a counter of its own. No verdict does anything; the
//! programs in `ebpf/kernel` carry them out.

mod egress;
mod guard;
mod ingress;
mod loopback;
#[cfg(test)]
mod testing;

pub use egress::{Egress, EgressFacts, egress};
pub use guard::{Guard, GuardFacts, guard};
pub use ingress::{Ingress, IngressFacts, Reuse, ingress};
pub use loopback::{Loopback, LoopbackFacts, loopback};

/// The place of a verdict in the map of counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter(pub u32);

/// The span of counters that belongs to one hook.
const SPAN: u32 = 16;

/// Declares the verdicts of one hook, with their names as counters.
macro_rules! verdicts {
    ($(#[$about:meta])* $name:ident at $hook:literal { $($(#[$meta:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$meta])* $variant,)* }

        impl $name {
            /// Every verdict of this hook.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Where it is counted.
            #[inline(always)]
            pub const fn counter(self) -> crate::Counter {
                crate::Counter($hook * crate::verdicts::SPAN + self as u32)
            }

            /// Its stable name, fit for the label of a metric.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        const _: () = {
            assert!($name::ALL.len() <= crate::verdicts::SPAN as usize);
            assert!(($hook + 1) * crate::verdicts::SPAN <= crate::COUNTER_SLOTS);
        };
    };
}
use verdicts;

verdicts! {
    /// What became of the record of connections that pass ztunnel by.
    Flow at 5 {
        /// One was recorded.
        Recorded = "flow_recorded",
        /// One was not, since the record is full: enforcement would reset it.
        Full = "flow_record_full",
        /// One was removed, since a new connection over its ports is captured.
        Forgotten = "flow_forgotten",
    }
}

/// Every counter with its name, in the order of the map.
pub fn counters() -> impl Iterator<Item = (Counter, &'static str)> {
    fn named<V: Copy>(
        all: &'static [V],
        of: impl Fn(V) -> (Counter, &'static str),
    ) -> impl Iterator<Item = (Counter, &'static str)> {
        all.iter().copied().map(of)
    }
    named(Egress::ALL, |v| (v.counter(), v.name()))
        .chain(named(Loopback::ALL, |v| (v.counter(), v.name())))
        .chain(named(Ingress::ALL, |v| (v.counter(), v.name())))
        .chain(named(Guard::ALL, |v| (v.counter(), v.name())))
        .chain(named(Reuse::ALL, |v| (v.counter(), v.name())))
        .chain(named(Flow::ALL, |v| (v.counter(), v.name())))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_verdicts_share_a_counter_or_a_name() {
        let all: std::vec::Vec<_> = counters().collect();
        let places: BTreeSet<_> = all.iter().map(|(counter, _)| counter).collect();
        let names: BTreeSet<_> = all.iter().map(|(_, name)| name).collect();
        assert_eq!(places.len(), all.len());
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|(counter, _)| counter.0 < crate::COUNTER_SLOTS));
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}
