//! What repeats over thousands of objects, each in memory once: names of namespaces, nodes, accounts and owners, sets
//! of labels, and all that pods have of their owner.

use std::{collections::HashSet, sync::Arc};

use super::pod::Template;

/// A set of labels as it is kept.
type Pairs = Arc<[(Arc<str>, Arc<str>)]>;

/// Hands out one copy of equal things. What nobody uses any more is let go from time to time.
#[derive(Debug, Default)]
pub struct Shared {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Pairs>,
    templates: HashSet<Arc<Template>>,
    sweep_at: usize,
}

/// Below this number a sweep is not worth its time.
const FEW: usize = 4096;

impl Shared {
    pub(crate) fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        self.sweep();
        self.texts.insert(text.clone());
        text.clone()
    }

    /// In place of what is there.
    pub(crate) fn replace(&mut self, text: &mut Arc<str>) {
        *text = self.text(text);
    }

    pub(super) fn labels(&self, pairs: &Pairs) -> Option<Pairs> {
        self.labels.get(pairs).cloned()
    }

    pub(super) fn add_labels(&mut self, pairs: Pairs) -> Pairs {
        self.sweep();
        self.labels.insert(pairs.clone());
        pairs
    }

    pub(super) fn template(&mut self, template: &mut Arc<Template>) {
        if let Some(known) = self.templates.get(template) {
            *template = known.clone();
            return;
        }
        self.sweep();
        if let Some(template) = Arc::get_mut(template) {
            template.share(self);
        }
        self.templates.insert(template.clone());
    }

    fn count(&self) -> usize {
        self.texts.len() + self.labels.len() + self.templates.len()
    }

    fn sweep(&mut self) {
        if self.count() < self.sweep_at.max(FEW) {
            return;
        }
        self.templates.retain(|template| Arc::strong_count(template) > 1);
        self.labels.retain(|pairs| Arc::strong_count(pairs) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        // What everybody has of his own is not worth remembering, and doubles the next time.
        self.sweep_at = self.count() * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_unused_ones_go() {
        let mut shared = Shared::default();
        let first = shared.text(&"a".into());
        assert!(Arc::ptr_eq(&first, &shared.text(&"a".into())));
        for number in 0..10 * FEW {
            shared.text(&number.to_string().into());
        }
        assert!(shared.texts.len() <= 2 * FEW, "{}", shared.texts.len());
        assert!(Arc::ptr_eq(&first, &shared.text(&"a".into())));
    }
}
