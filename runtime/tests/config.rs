//! One configuration from flags, environment and file: precedence, and all problems in one go.

use std::{ffi::OsString, fs, path::PathBuf, time::Duration};

use clap::Parser;
use runtime::config::{self, Common, Problems, Stop, values};

/// Carries things
#[derive(Debug, Parser)]
#[command(name = "program", version)]
struct Args {
    #[command(flatten)]
    common: Common,
    /// Name of the node
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Number of workers
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), default_value = "2")]
    workers: u16,
    /// How long to wait
    #[arg(long, value_parser = values::duration, default_value = "10s")]
    patience: Duration,
    /// Splice connections
    #[arg(long)]
    splice: bool,
    /// Trust domains to accept
    #[arg(long)]
    accept: Vec<String>,
}

fn resolve(line: &[&str], env: &[(&str, &str)], file: &str) -> Result<Args, Stop> {
    resolve_checked(line, env, file, |_, _| {})
}

fn resolve_checked(
    line: &[&str],
    env: &[(&str, &str)],
    file: &str,
    check: impl FnOnce(&Args, &mut Problems),
) -> Result<Args, Stop> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("program.yaml");
    fs::write(&path, file).expect("a file");
    let mut line: Vec<OsString> = [&["program"], line].concat().into_iter().map(OsString::from).collect();
    line.extend(["--config".into(), path.into_os_string()]);
    let environment = |name: &str| {
        let (_, value) = env.iter().find(|(key, _)| *key == name)?;
        Some(OsString::from(value))
    };
    config::resolve_from(line, &environment, check)
}

fn problems(stop: Result<Args, Stop>) -> String {
    match stop {
        Err(Stop::Problems(problems)) => problems.to_string(),
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn flag_before_environment_before_file_before_default() {
    let file = "node: from-file\nworkers: 3\npatience: 1s\nsplice: true\n";
    let env = [("CULVERT_NODE", "from-env"), ("CULVERT_WORKERS", "4")];
    let args = resolve(&["--node", "from-flag"], &env, file).expect("good");
    assert_eq!(args.node, "from-flag");
    assert_eq!(args.workers, 4);
    assert_eq!(args.patience, Duration::from_secs(1));
    assert!(args.splice);
    assert_eq!(args.common.log_level, "info");
    assert!(args.common.addresses().admin.expect("an address").ip().is_loopback());
}

#[test]
fn lists_come_from_anywhere() {
    let file = "node: n\naccept: [a, b]\n";
    assert_eq!(resolve(&[], &[], file).expect("good").accept, ["a", "b"]);
    assert_eq!(resolve(&[], &[("CULVERT_ACCEPT", "c, d")], file).expect("good").accept, ["c", "d"]);
    assert_eq!(resolve(&["--accept", "e"], &[], file).expect("good").accept, ["e"]);
}

#[test]
fn every_problem_is_told_at_once_with_its_place() {
    let file = "worker: 1\npatience: soon\nadmin-addr: {a: 1}\n";
    let env = [("CULVERT_WORKERS", "0"), ("CULVERT_LOG_FORMAT", "xml"), ("CULVERT_SPLICE", "maybe")];
    let told = problems(resolve(&["--log-level", "loud,=,"], &env, file));
    for expected in [
        "--log-level is \"loud,=,\": ",
        "CULVERT_WORKERS is \"0\": 0 is not in 1..",
        "CULVERT_LOG_FORMAT is \"xml\": write one of text, json",
        "CULVERT_SPLICE is \"maybe\": write true or false",
        "program.yaml: patience is \"soon\": write a number and its unit",
        "program.yaml: worker: there is no such setting; did you mean workers?",
        "program.yaml: admin-addr: write a value or a list of values",
        "--node (CULVERT_NODE, node:): is required: Name of the node",
    ] {
        assert!(told.contains(expected), "{expected:?} is missing in\n{told}");
    }
    assert!(told.starts_with("the configuration has 8 problems:\n"), "{told}");
}

#[test]
fn a_file_that_is_missing_or_no_mapping_is_a_problem_beside_the_others() {
    let told = problems(resolve(&["--workers", "0"], &[], "- 1\n"));
    assert!(told.contains("it is not a YAML mapping of flag names to values"), "{told}");
    assert!(told.contains("--workers is \"0\""), "{told}");
    let line = ["program", "--node", "n", "--config", "/nonexistent/x.yaml"].map(OsString::from);
    let told = problems(config::resolve_from(line, &|_| None, |_, _| {}));
    assert!(told.contains("/nonexistent/x.yaml: it cannot be read: "), "{told}");
}

#[test]
fn the_file_itself_can_be_named_by_the_environment() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x.yaml");
    fs::write(&path, "node: n\nlog_level: debug\n").expect("a file");
    let environment = |name: &str| (name == "CULVERT_CONFIG").then(|| path.clone().into_os_string());
    let args: Args =
        config::resolve_from([OsString::from("program")], &environment, |_, _| {}).expect("good");
    assert_eq!((args.node.as_str(), args.common.log_level.as_str()), ("n", "debug"));
}

#[test]
fn what_is_wrong_between_values_is_told_too() {
    let told = problems(resolve_checked(&["--node", "n"], &[], "", |args, problems| {
        problems.add("--patience", Some(format!("{:?}", args.patience)), "must exceed the workers");
    }));
    assert!(told.contains("--patience is \"10s\": must exceed the workers"), "{told}");
}

#[test]
fn a_mistyped_flag_and_help_are_claps() {
    assert!(matches!(resolve(&["--nod", "n"], &[], ""), Err(Stop::Clap(_))));
    let Err(Stop::Clap(help)) = resolve(&["--help"], &[], "") else { panic!("no help") };
    let help = help.to_string();
    assert!(help.contains("Name of the node [env: CULVERT_NODE]"), "{help}");
    assert!(help.contains("[default: 10s]"), "{help}");
    assert!(
        help.contains("- json: One JSON object per line") || help.contains("[possible values: text, json]"),
        "{help}"
    );
}

/// Digs
#[derive(Debug, Parser)]
#[command(name = "tool", args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Tool {
    #[command(subcommand)]
    command: Option<ToolCommand>,
    #[command(flatten)]
    serve: Option<Serve>,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Name of the node
    #[arg(long)]
    node: String,
}

#[derive(Debug, clap::Subcommand)]
enum ToolCommand {
    /// Fills the hole
    Fill {
        /// Where
        #[arg(long)]
        place: PathBuf,
    },
}

#[test]
fn a_subcommand_has_its_own_settings() {
    let environment =
        |name: &str| ["CULVERT_PLACE", "CULVERT_NODE"].contains(&name).then(|| OsString::from("here"));
    let filled: Tool =
        config::resolve_from(["tool", "fill"].map(OsString::from), &environment, |_, _| {}).expect("good");
    let Some(ToolCommand::Fill { place }) = filled.command else { panic!("{filled:?}") };
    assert_eq!(place, PathBuf::from("here"));

    let served: Tool = config::resolve_from([OsString::from("tool")], &environment, |_, _| {}).expect("good");
    assert_eq!(served.serve.expect("serving").node, "here");

    let nothing = config::resolve_from::<Tool>(["tool", "fill"].map(OsString::from), &|_| None, |_, _| {});
    let Err(Stop::Problems(problems)) = nothing else { panic!("{nothing:?}") };
    assert!(
        problems.to_string().contains("--place (CULVERT_PLACE, place:): is required: Where"),
        "{problems}"
    );
}
