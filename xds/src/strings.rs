//! Shared strings: namespaces, nodes and service names repeat over thousands of resources.

use std::{collections::HashSet, sync::Arc};

/// Hands out one `Arc<str>` for equal texts. Texts that nobody uses any more are let go from time to time.
#[derive(Debug, Default)]
pub struct Strings {
    known: HashSet<Arc<str>>,
    sweep_at: usize,
}

/// Below this many texts a sweep is not worth its time.
const FEW: usize = 1024;

impl Strings {
    /// The shared form of `text`.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(FEW) {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        let shared: Arc<str> = Arc::from(text);
        self.known.insert(shared.clone());
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_unused_ones_go() {
        let mut strings = Strings::default();
        let a = strings.share("a");
        assert!(Arc::ptr_eq(&a, &strings.share("a")));
        for n in 0..10 * FEW {
            strings.share(&n.to_string());
        }
        assert!(strings.known.len() <= 2 * FEW, "{}", strings.known.len());
        assert!(Arc::ptr_eq(&a, &strings.share("a")));
    }
}
