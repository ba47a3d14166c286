//! Whether a pod is captured, from everybody who has a word on it.
//!
//! A node's agent talks to one replica of control. That replica knows best; the others learn from a mark
//! that it leaves on the pod. Besides there is the annotation by which Istio's own node side says the same,
//! and which we write for others to read.

use crate::manifest::Pod;

/// By this a pod says to everybody that it is captured. Istio's node side writes it, and so do we.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// By this we know what the agent of the pod's node last said, and that it was we who wrote [`REDIRECTION`].
pub const MARK: &str = "culvert.dev/redirection";

/// What the agent of a pod's node said of it to this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It is connected here and has said so. Nobody knows better.
    Fresh { measured: bool },
    /// It said so once and is gone since; it may have told another replica something else.
    Stale { measured: bool },
    /// It never said anything here.
    None,
}

/// What an agent said, as it is written on a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Captured, and a connection proved it.
    Measured,
    /// Captured still, on its way out.
    Withdrawing,
    /// Not captured any more. It stays on the pod, so that it outweighs what another replica heard before.
    None,
}

impl Mark {
    /// The annotation's value.
    pub fn value(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Withdrawing => "withdrawing",
            Self::None => "none",
        }
    }

    fn of(value: &str) -> Option<Self> {
        [Self::Measured, Self::Withdrawing, Self::None].into_iter().find(|mark| mark.value() == value)
    }
}

/// What a pod's annotations say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Annotated {
    /// [`REDIRECTION`] is `enabled`.
    pub redirection: bool,
    pub mark: Option<Mark>,
}

impl Annotated {
    pub(super) fn of(pod: &Pod) -> Self {
        Self {
            redirection: pod.annotation(REDIRECTION) == Some("enabled"),
            mark: pod.annotation(MARK).and_then(Mark::of),
        }
    }

    /// Whether peers are to use HBONE towards the pod. Once we have a word of our own, the annotation that
    /// everybody may write counts no more: we may have written it ourselves.
    pub fn captured(self, word: Word) -> bool {
        match (word, self.mark) {
            (Word::Fresh { measured }, _) => measured,
            (_, Some(mark)) => mark == Mark::Measured,
            (Word::Stale { measured }, None) => measured,
            (Word::None, None) => self.redirection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_best_is_believed() {
        let foreign = Annotated { redirection: true, mark: None };
        let ours = |mark| Annotated { redirection: mark == Mark::Measured, mark: Some(mark) };
        let fresh = |measured| Word::Fresh { measured };
        let stale = |measured| Word::Stale { measured };
        for (annotated, word, captured) in [
            (Annotated::default(), Word::None, false),
            // A node side of another make, where none of ours has said anything.
            (foreign, Word::None, true),
            (foreign, fresh(false), false),
            (foreign, stale(false), false),
            // Another replica wrote it.
            (ours(Mark::Measured), Word::None, true),
            (ours(Mark::Withdrawing), Word::None, false),
            (ours(Mark::None), Word::None, false),
            // The agent went to another replica and said something else there.
            (ours(Mark::None), stale(true), false),
            (ours(Mark::Measured), stale(false), true),
            // Our own annotation does not outlive what the agent says now.
            (ours(Mark::Measured), fresh(false), false),
            (ours(Mark::None), fresh(true), true),
            (Annotated::default(), stale(true), true),
        ] {
            assert_eq!(annotated.captured(word), captured, "{annotated:?} {word:?}");
        }
    }
}
