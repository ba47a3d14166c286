//! Real files, real notifications.

use std::{fs::File, io::Write};

use tempfile::TempDir;
use tokio::sync::watch as channel;

use super::*;
use crate::manifest::Problem;

const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";

fn policy(port: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{action: DENY, rules: [{{to: [{{operation: {{ports: [\"{port}\"]}}}}]}}]}}\n"
    )
}

struct Bed {
    dir: TempDir,
    state: TempDir,
    objects: Arc<Mutex<Objects>>,
    changes: channel::Receiver<u64>,
}

impl Bed {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Self::on(dir, tempfile::tempdir().unwrap())
    }

    fn on(dir: TempDir, state: TempDir) -> Self {
        let kept = Kept::open(state.path()).unwrap();
        let mut folder = Folder::new(dir.path().to_owned(), Some(kept));
        folder.scan(&BTreeSet::new(), &BTreeSet::new());
        let objects = folder.objects();
        // On a busy machine a test may rest for long in the middle of a file.
        let changes = watch::watch_resting(folder, Duration::from_secs(60)).unwrap();
        Self { dir, state, objects, changes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn problems(&self) -> Vec<Problem> {
        self.objects.lock().unwrap().view().problems
    }

    fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().view().objects.keys().map(ToString::to_string).collect()
    }

    /// Waits until the objects are these; how long it took.
    async fn until(&mut self, names: &[&str]) -> Duration {
        self.until_true(&format!("{names:?}"), |bed| bed.names() == names).await
    }

    async fn until_true(&mut self, what: &str, is: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !is(self) {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "not {what} but {:?}, {:?}",
                self.names(),
                self.problems()
            );
            let _ = tokio::time::timeout(Duration::from_millis(100), self.changes.changed()).await;
        }
        begun.elapsed()
    }

    /// Proves that the folder was looked at after everything before: another file is seen.
    async fn beat(&mut self) {
        let path = self.path("beat.yaml");
        fs::write(&path, "{apiVersion: v1, kind: Namespace, metadata: {name: beat}}").unwrap();
        self.until_true("a beat", |bed| bed.names().iter().any(|name| name == "Namespace beat")).await;
        fs::remove_file(path).unwrap();
        self.until_true("no beat", |bed| bed.names().iter().all(|name| name != "Namespace beat")).await;
    }
}

#[tokio::test]
async fn an_edit_is_seen_within_a_second() {
    let mut bed = Bed::with(&[("a.yaml", NAMESPACE)]);
    assert_eq!(bed.names(), ["Namespace shop"]);
    fs::write(bed.path("b.yml"), policy("80")).unwrap();
    let took = bed.until(&["Namespace shop", "AuthorizationPolicy shop/p"]).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    fs::remove_file(bed.path("b.yml")).unwrap();
    let took = bed.until(&["Namespace shop"]).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_rename_over_the_file_is_an_edit_and_never_a_deletion() {
    let mut bed = Bed::with(&[("a.yaml", NAMESPACE)]);
    for round in 0..5 {
        let name = format!("round-{round}");
        fs::write(bed.path(".a.yaml.swp"), NAMESPACE.replace("shop", &name)).unwrap();
        fs::rename(bed.path(".a.yaml.swp"), bed.path("a.yaml")).unwrap();
        bed.until(&[&format!("Namespace {name}")]).await;
    }
    // As some editors do: the old one out of the way, then a new one in its place.
    fs::rename(bed.path("a.yaml"), bed.path("a.yaml~")).unwrap();
    fs::write(bed.path("a.yaml"), NAMESPACE).unwrap();
    bed.until(&["Namespace shop"]).await;
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_read() {
    let text = format!("{NAMESPACE}---\n{}", policy("80"));
    let mut bed = Bed::with(&[("a.yaml", &text)]);
    let both = ["Namespace shop", "AuthorizationPolicy shop/p"];
    assert_eq!(bed.names(), both);
    // The first document alone is well-formed: read now, it would delete the policy.
    let mut file = File::create(bed.path("a.yaml")).unwrap();
    file.write_all(NAMESPACE.as_bytes()).unwrap();
    file.flush().unwrap();
    bed.beat().await;
    assert_eq!(bed.names(), both);
    file.write_all(b"---\n{apiVersion: v1, kind: Namespace, metadata: {name: more}}\n").unwrap();
    drop(file);
    bed.until(&["Namespace more", "Namespace shop"]).await;
}

#[tokio::test]
async fn an_empty_file_deletes_nothing_and_says_so() {
    let other = NAMESPACE.replace("shop", "other");
    let mut bed = Bed::with(&[("a.yaml", NAMESPACE), ("b.yaml", &other)]);
    let both = ["Namespace other", "Namespace shop"];
    File::create(bed.path("a.yaml")).unwrap();
    bed.until_true("a problem", |bed| !bed.problems().is_empty()).await;
    assert_eq!(bed.names(), both);
    assert!(bed.problems()[0].reason.starts_with("it is empty"), "{}", bed.problems()[0]);
    fs::remove_file(bed.path("a.yaml")).unwrap();
    bed.until(&["Namespace other"]).await;
    assert_eq!(bed.problems(), []);
}

#[tokio::test]
async fn a_bad_document_keeps_its_last_good_version_even_across_a_restart() {
    let text = format!("{NAMESPACE}---\n{}", policy("80"));
    let mut bed = Bed::with(&[("a.yaml", &text)]);
    let both = ["Namespace shop", "AuthorizationPolicy shop/p"];
    fs::write(bed.path("a.yaml"), format!("{NAMESPACE}---\n{}", policy("http"))).unwrap();
    bed.until_true("a problem", |bed| !bed.problems().is_empty()).await;
    assert_eq!(bed.names(), both);
    let problem = bed.problems().remove(0);
    assert_eq!((problem.line, problem.document), (Some(6), 2));
    assert_eq!(problem.field, "spec.rules[0].to[0].operation.ports[0]");

    let Bed { dir, state, .. } = bed;
    let bed = Bed::on(dir, state);
    assert_eq!(bed.names(), both);
    assert_eq!(bed.problems().len(), 1);
    // Without the copies the policy would be lost, so this test can fail.
    let Bed { dir, .. } = bed;
    let bed = Bed::on(dir, tempfile::tempdir().unwrap());
    assert_eq!(bed.names(), ["Namespace shop"]);
}

#[tokio::test]
async fn sub_folders_links_and_other_files() {
    let mut bed = Bed::with(&[("notes.txt", "x: ["), (".hidden.yaml", "x: ["), ("#a.yaml", "x: [")]);
    assert_eq!((bed.names(), bed.problems()), (vec![], vec![]));
    fs::create_dir(bed.path("sub")).unwrap();
    fs::write(bed.path("sub/a.yaml"), NAMESPACE).unwrap();
    bed.until(&["Namespace shop"]).await;
    // As a mounted ConfigMap is replaced: a hidden folder behind a link.
    fs::create_dir(bed.path("..1")).unwrap();
    fs::write(bed.path("..1/b.yaml"), NAMESPACE.replace("shop", "one")).unwrap();
    std::os::unix::fs::symlink("..1", bed.path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/b.yaml", bed.path("b.yaml")).unwrap();
    bed.until(&["Namespace one", "Namespace shop"]).await;
    fs::create_dir(bed.path("..2")).unwrap();
    fs::write(bed.path("..2/b.yaml"), NAMESPACE.replace("shop", "two")).unwrap();
    std::os::unix::fs::symlink("..2", bed.path("..data_tmp")).unwrap();
    fs::rename(bed.path("..data_tmp"), bed.path("..data")).unwrap();
    bed.until(&["Namespace shop", "Namespace two"]).await;
    fs::remove_dir_all(bed.path("sub")).unwrap();
    bed.until(&["Namespace two"]).await;
}

#[tokio::test]
async fn a_folder_that_is_gone_forgets_nothing_and_is_found_again() {
    let mut bed = Bed::with(&[("a.yaml", NAMESPACE)]);
    let (path, aside) = (bed.dir.path().to_owned(), bed.state.path().join("aside"));
    fs::rename(&path, &aside).unwrap();
    bed.until_true("a problem", |bed| !bed.problems().is_empty()).await;
    assert_eq!(bed.names(), ["Namespace shop"]);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("b.yaml"), NAMESPACE.replace("shop", "new")).unwrap();
    bed.until(&["Namespace new"]).await;
    assert_eq!(bed.problems(), []);
}

#[tokio::test]
async fn a_folder_without_any_manifest_forgets_nothing_until_there_is_one() {
    let mut bed = Bed::with(&[("a.yaml", NAMESPACE)]);
    fs::remove_file(bed.path("a.yaml")).unwrap();
    bed.until_true("a problem", |bed| !bed.problems().is_empty()).await;
    assert!(bed.problems()[0].reason.contains("is it mounted"), "{}", bed.problems()[0]);
    tokio::time::sleep(2 * GONE_AFTER).await;
    assert_eq!(bed.names(), ["Namespace shop"]);
    fs::write(bed.path("b.yaml"), NAMESPACE.replace("shop", "new")).unwrap();
    bed.until(&["Namespace new"]).await;
    assert_eq!(bed.problems(), []);
}

#[tokio::test]
async fn what_cannot_be_read_at_the_start_is_as_it_was_when_it_could() {
    let bed = Bed::with(&[("a.yaml", NAMESPACE)]);
    let Bed { dir, state, .. } = bed;
    fs::write(dir.path().join("a.yaml"), b"\xff\xfe").unwrap();
    let bed = Bed::on(dir, state);
    assert_eq!(bed.names(), ["Namespace shop"]);
    assert_eq!(bed.problems().len(), 1);
}

/// As control's start does it.
async fn first_look(dir: &Path, state: &Path) -> Result<Vec<String>, FirstLookError> {
    let mut folder = Folder::new(dir.to_owned(), Some(Kept::open(state).unwrap()));
    folder.first_look().await?;
    Ok(folder.lock().view().objects.keys().map(ToString::to_string).collect())
}

#[tokio::test]
async fn control_begins_from_the_whole_folder_or_not_at_all() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, state) = (dir.path(), state.path());
    assert_eq!(first_look(dir, state).await.unwrap(), Vec::<String>::new(), "a new mesh may be empty");
    fs::write(dir.join("a.yaml"), NAMESPACE).unwrap();
    assert_eq!(first_look(dir, state).await.unwrap(), ["Namespace shop"]);

    // What it leads to cannot be told.
    let circle = dir.join("circle");
    std::os::unix::fs::symlink("circle", &circle).unwrap();
    assert!(
        matches!(first_look(dir, state).await, Err(FirstLookError::Unlisted { path, .. }) if path == dir)
    );
    fs::remove_file(circle).unwrap();

    fs::rename(dir.join("a.yaml"), dir.join("a.txt")).unwrap();
    assert!(matches!(first_look(dir, state).await, Err(FirstLookError::Emptied { path }) if path == dir));
    // Whoever means it leaves one manifest.
    fs::write(dir.join("b.yaml"), NAMESPACE.replace("shop", "other")).unwrap();
    assert_eq!(first_look(dir, state).await.unwrap(), ["Namespace other"]);
}

#[tokio::test]
async fn control_begins_when_the_folder_has_come_to_rest() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path().to_owned();
    fs::write(path.join("0.yaml"), NAMESPACE.replace("shop", "n0")).unwrap();
    let writer = std::thread::spawn(move || {
        for number in 1..10 {
            std::thread::sleep(Duration::from_millis(80));
            let text = NAMESPACE.replace("shop", &format!("n{number}"));
            fs::write(path.join(format!("{number}.yaml")), text).unwrap();
        }
    });
    let names = first_look(dir.path(), state.path()).await.unwrap();
    writer.join().unwrap();
    assert_eq!(names.len(), 10, "{names:?}");
}
