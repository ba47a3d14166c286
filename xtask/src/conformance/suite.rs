//! The suite: a Go module, built as one binary, and run with our flags.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{image, kind::tools, shell};

/// Before a line of Go's own, among those of a test.
const MARK: &[u8] = b"\x16";
/// What is tried of a mesh.
const PROFILES: &str = "MESH-HTTP,MESH-GRPC";
/// What the profiles have at least.
const CORE: &[&str] = &["Mesh", "HTTPRoute", "GRPCRoute"];
/// What we declare beyond the core. What is declared and fails is told as a failure.
const EXTENDED: &[&str] = &[
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    // Tests of the mesh need these, too. No profile has them, so none counts those tests.
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
];

/// The suite, built, and where its module's files are.
#[derive(Debug)]
pub(super) struct Suite {
    pub(super) version: String,
    binary: PathBuf,
    /// The module of the API itself, which brings the definitions.
    api: PathBuf,
    conformance: PathBuf,
}

/// How it is run.
pub(super) struct Flags<'a> {
    pub(super) kubeconfig: PathBuf,
    /// Of the suite's namespaces, which it writes anew: those that are there already keep no others.
    pub(super) labels: String,
    pub(super) output: &'a Path,
    pub(super) log: &'a Path,
    pub(super) test: Option<&'a str>,
    /// What is declared beyond the core is tried, too.
    pub(super) extended: bool,
}

/// The tests that ended, also those that no profile counts.
#[derive(Debug, Default)]
pub(super) struct Ran {
    pub(super) passed: Vec<String>,
    pub(super) failed: Vec<String>,
    /// What Go says of the whole.
    pub(super) whole: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Module {
    version: String,
    dir: PathBuf,
}

impl Suite {
    /// Builds it; Go itself knows when that is to be done again.
    pub(super) fn build(root: &Path, folder: &Path) -> Result<Self> {
        let go = tools::go().context("no Go in the PATH: https://go.dev/doc/install")?;
        let sources = root.join("tests/conformance");
        let module = |path: &str| -> Result<Module> {
            let mut command = Command::new(&go);
            let command = command.args(["list", "-m", "-json", path]).current_dir(&sources);
            let text = shell::output(command, &format!("ask for {path}"))?;
            serde_json::from_str(&text).with_context(|| format!("what go says of {path}"))
        };
        let binary = folder.join("suite");
        println!("  building    the suite (minutes for the first time)");
        let mut build = Command::new(&go);
        build.args(["test", "-c", "-o"]).arg(&binary).arg(".").current_dir(&sources);
        shell::run(&mut build, "build the suite")?;
        // Built, so that all modules are there.
        let conformance = module("sigs.k8s.io/gateway-api/conformance")?;
        let api = module("sigs.k8s.io/gateway-api")?;
        Ok(Self { version: conformance.version, binary, api: api.dir, conformance: conformance.dir })
    }

    /// The API's definitions, of the channel that has all that the suite knows.
    pub(super) fn crds(&self) -> String {
        self.api.join("config/crd/experimental").to_string_lossy().into_owned()
    }

    /// The image of the pods that it makes.
    pub(super) fn echo_image(&self) -> Result<String> {
        let path = self.conformance.join("mesh/manifests.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let image = text.lines().find_map(|line| line.trim().strip_prefix("image: "));
        Ok(image.context("the suite's manifests name no image")?.to_owned())
    }

    /// Runs it, telling each test's end.
    pub(super) fn run(&self, flags: &Flags<'_>) -> Result<Ran> {
        let Flags { kubeconfig, labels, output, log, test, extended } = flags;
        // What an earlier run left would be taken for this one's.
        if output.exists() {
            fs::remove_file(output).with_context(|| format!("remove {}", output.display()))?;
        }
        let mut suite = Command::new(&self.binary);
        // In its plain form, Go tells how a test ended only when all have.
        suite.args(["-test.v=test2json", "-test.timeout=40m", "-test.run=^TestConformance$"]);
        suite.arg(format!("-conformance-profiles={PROFILES}"));
        let features = if *extended { [CORE, EXTENDED].concat() } else { CORE.to_vec() };
        suite.arg(format!("-supported-features={}", features.join(",")));
        suite.arg(format!("-namespace-labels={labels}"));
        // Whether its pods were captured is looked at after it.
        suite.arg("-cleanup-base-resources=false");
        suite.args(["-mesh-name=culvert", "-organization=culvert", "-project=culvert"]);
        suite.args(["-url=https://culvert.dev", "-contact=https://culvert.dev"]);
        suite.arg(format!("-version={}", image::VERSION));
        suite.arg(format!("-report-output={}", output.display()));
        if let Some(test) = test {
            suite.arg(format!("-run-test={test}"));
        }
        suite.env("KUBECONFIG", kubeconfig).stdout(Stdio::piped());
        let mut log = File::create(log).with_context(|| format!("write {}", log.display()))?;
        suite.stderr(log.try_clone().context("the suite's log")?);
        let mut running = suite.spawn().context("start the suite")?;
        let words = running.stdout.take().context("the suite speaks")?;
        let mut ran = Ran::default();
        for line in BufReader::new(words).split(b'\n') {
            let line = line.context("read what the suite says")?;
            let line = line.strip_prefix(MARK).unwrap_or(&line);
            log.write_all(&[line, b"\n"].concat()).context("write the suite's log")?;
            if let Some((passed, test, took)) = ended(&String::from_utf8_lossy(line)) {
                println!("{} {test:<48} {took:>8}", if passed { "✓" } else { "✗" });
                if passed { &mut ran.passed } else { &mut ran.failed }.push(test.to_owned());
            }
        }
        ran.whole = running.wait().context("the suite's end")?.success();
        Ok(ran)
    }
}

/// `    --- PASS: TestConformance/MeshBasic (0.52s)`: passed, its name, how long it took. What was not tried, and the
/// parts of a test, are passed over; the report counts.
fn ended(line: &str) -> Option<(bool, &str, &str)> {
    let rest = line.trim_start().strip_prefix("--- ")?;
    let (passed, rest) = match rest.strip_prefix("PASS: ") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix("FAIL: ")?),
    };
    let (name, took) = rest.strip_prefix("TestConformance/")?.split_once(' ')?;
    (!name.contains('/')).then(|| (passed, name, took.trim_matches(['(', ')'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tests_end_is_told_and_nothing_else() {
        let passed = ended("    --- PASS: TestConformance/MeshBasic (0.52s)");
        assert_eq!(passed, Some((true, "MeshBasic", "0.52s")));
        let failed = ended("    --- FAIL: TestConformance/MeshPorts (61.00s)");
        assert_eq!(failed, Some((false, "MeshPorts", "61.00s")));
        for other in [
            "--- PASS: TestConformance (80.1s)",
            "        --- FAIL: TestConformance/MeshPorts/0_request (60.00s)",
            "    --- SKIP: TestConformance/GatewayStaticAddresses (0.00s)",
            "=== RUN   TestConformance/MeshBasic",
            "",
        ] {
            assert_eq!(ended(other), None, "{other}");
        }
    }
}
