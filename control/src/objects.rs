//! The objects that hold: the last good version of each, whatever its file says today. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::manifest::{Object, ObjectKey, Parsed, Problem, Severity};

/// Every file's objects and problems.
#[derive(Debug, Default)]
pub struct Objects {
    files: BTreeMap<PathBuf, File>,
}

#[derive(Debug, Default, PartialEq)]
struct File {
    /// In the order of their keys. Not a map: from the API server every object is a file of its own, and a
    /// map of one costs as much as a map of eleven.
    objects: Box<[(ObjectKey, Object)]>,
    problems: Vec<Problem>,
}

impl Objects {
    /// Takes what a file holds now. Objects that it no longer names are gone; those that it names and
    /// got wrong keep their last good version; if a document can't even be told by name, nothing is
    /// forgotten. Whether anything differs from before.
    pub fn apply(&mut self, path: &Path, parsed: Parsed) -> bool {
        let before = self.files.get(path);
        let mut objects: BTreeMap<ObjectKey, Object> =
            before.into_iter().flat_map(|file| file.objects.iter().cloned()).collect();
        let named: BTreeSet<&ObjectKey> =
            parsed.objects.iter().map(|(key, _)| key).chain(&parsed.refused).collect();
        if !parsed.unreadable {
            objects.retain(|key, _| named.contains(key));
        }
        let mut problems = parsed.problems;
        let mut seen = BTreeSet::new();
        for (key, object) in parsed.objects {
            if !seen.insert(key.clone()) {
                let mut problem = Problem::about(
                    &key,
                    Severity::Warning,
                    "",
                    "named twice in this file; the last one holds",
                );
                problem.file = path.to_owned();
                problems.push(problem);
            }
            objects.insert(key, object);
        }
        let now = File { objects: objects.into_iter().collect(), problems };
        if before == Some(&now) {
            return false;
        }
        self.files.insert(path.to_owned(), now);
        true
    }

    /// The file is gone, and its objects with it. Whether there was one.
    pub fn remove(&mut self, path: &Path) -> bool {
        self.files.remove(path).is_some()
    }

    /// An object of a file, without looking at the others.
    pub fn in_file(&self, path: &Path, key: &ObjectKey) -> Option<&Object> {
        let objects = &self.files.get(path)?.objects;
        let at = objects.binary_search_by(|(held, _)| held.cmp(key)).ok()?;
        Some(&objects[at].1)
    }

    /// Keeps what a file held and says why it can't be read now.
    pub fn unreadable(&mut self, path: &Path, reason: String) {
        let file = self.files.entry(path.to_owned()).or_default();
        file.problems = vec![Problem {
            severity: Severity::Refused,
            file: path.to_owned(),
            line: None,
            document: 0,
            object: None,
            field: String::new(),
            reason,
        }];
    }

    /// The files that hold or once held something.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// One version of each object, and every problem. Of an object named in two files the one in the
    /// file that sorts first holds.
    pub fn view(&self) -> View<'_> {
        let mut view = View::default();
        for (path, file) in &self.files {
            view.problems.extend(file.problems.iter().cloned());
            for (key, object) in file.objects.iter() {
                if view.objects.contains_key(key) {
                    let mut problem =
                        Problem::about(key, Severity::Warning, "", "another file names it first, and holds");
                    problem.file = path.clone();
                    view.problems.push(problem);
                } else {
                    view.objects.insert(key.clone(), object);
                }
            }
        }
        view
    }
}

/// All objects, each once, in the order of their keys.
#[derive(Debug, Default)]
pub struct View<'a> {
    pub objects: BTreeMap<ObjectKey, &'a Object>,
    pub problems: Vec<Problem>,
}

impl<'a> View<'a> {
    pub fn get(&self, key: &ObjectKey) -> Option<&'a Object> {
        self.objects.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";
    const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, \
                          namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {ports: [\"80\"]}}]}]}\n";

    fn apply(objects: &mut Objects, file: &str, text: &str) {
        let path = Path::new(file);
        objects.apply(path, parse(path, text));
    }

    #[test]
    fn the_last_good_version_of_an_object_stays() {
        let mut objects = Objects::default();
        apply(&mut objects, "a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
        assert_eq!(objects.view().objects.len(), 2);
        let good: Vec<Object> = objects.view().objects.values().map(|o| (*o).clone()).collect();
        apply(&mut objects, "a.yaml", &format!("{NAMESPACE}---\n{}", POLICY.replace("\"80\"", "\"http\"")));
        let now: Vec<Object> = objects.view().objects.values().map(|o| (*o).clone()).collect();
        assert_eq!(now, good);
        assert_eq!(objects.view().problems.len(), 1);
        apply(&mut objects, "a.yaml", NAMESPACE);
        assert_eq!(objects.view().objects.len(), 1, "a document that is taken out is a deletion");
    }

    #[test]
    fn a_half_written_file_forgets_nothing() {
        let mut objects = Objects::default();
        apply(&mut objects, "a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
        apply(
            &mut objects,
            "a.yaml",
            &format!("{NAMESPACE}---\napiVersion: security.istio.io/v1\nkind: Autho\n met"),
        );
        assert_eq!(objects.view().objects.len(), 2);
        assert_eq!(objects.view().problems.len(), 1);
    }

    #[test]
    fn of_two_files_the_first_holds() {
        let mut objects = Objects::default();
        apply(&mut objects, "b.yaml", &POLICY.replace("80", "81"));
        apply(&mut objects, "a.yaml", POLICY);
        let view = objects.view();
        assert_eq!(view.objects.len(), 1);
        assert_eq!(view.problems[0].file, Path::new("b.yaml"));
        let Some(Object::AuthorizationPolicy(policy)) = view.objects.values().next() else {
            panic!("no policy")
        };
        assert_eq!(policy.rules[0].clauses[0].matches[0].destination_ports, [80]);
    }
}
