//! Tokens (JWT) at a waypoint: who has none, a good one, a bad one; and what the app sees of it.

use std::time::Duration;

use anyhow::{Result, ensure};
use bed::{
    Process,
    token::{SigningKey, set, symmetric},
};
use node::{PATIENCE, Scene, same, web};
use serde_json::{Value, json};

const WEB: &str = "http://10.96.0.1";
const ISSUER: &str = "https://issuer.shop.example";
/// In the year 2100.
const FAR: u64 = 4_102_444_800;

/// Nobody without a token of the issuer, and to `/admin` none without a group.
const POLICY: &str = "
targetRefs: [{kind: Service, name: web}]
action: ALLOW
rules:
- from: [{source: {requestPrincipals: [https://issuer.shop.example/*]}}]
  to: [{operation: {notPaths: [/admin]}}]
- to: [{operation: {paths: [/admin]}}]
  when: [{key: 'request.auth.claims[realm][groups]', values: [admins]}]
- to: [{operation: {paths: [/health]}}]
";
const NO_MALLORY: &str = "
targetRefs: [{kind: Service, name: web}]
action: DENY
rules:
- from: [{source: {requestPrincipals: ['*/mallory']}}]
";

/// A caller on node a; a service behind a waypoint on node b.
struct Stage {
    waypoint: Process,
    _server: Process,
    scene: Scene,
}

impl Stage {
    fn new() -> Result<Self> {
        let pods = [("mesh", "client", "a"), ("mesh", "web", "b")];
        let ports = [("http", 80, web::PORT)];
        let (scene, pod) = Scene::behind_waypoint(&pods, &ports, &[("web", "web", true)], |manifests| {
            manifests.authorization_policy("mesh", "tokens", POLICY)?;
            manifests.authorization_policy("mesh", "no-mallory", NO_MALLORY)
        })?;
        let server = web::serve(scene.pod("web"))?;
        let waypoint = scene.world.start_waypoint(&pod, "waypoint")?;
        Ok(Self { waypoint, _server: server, scene })
    }

    /// Writes the RequestAuthentication; `keys` is how it has the issuer's keys.
    fn authentication(&self, keys: &str) -> Result<()> {
        self.authentication_to(keys, "x-user")
    }

    /// The same, with the subject in another header.
    fn authentication_to(&self, keys: &str, user: &str) -> Result<()> {
        self.scene.world.manifests().put(
            "authentication",
            &format!(
                "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: mesh}}\n\
                 spec:\n  targetRefs: [{{kind: Service, name: web}}]\n  jwtRules:\n  - issuer: {ISSUER}\n    {keys}\n    \
                 audiences: [shop]\n    outputPayloadToHeader: x-jwt\n    outputClaimToHeaders:\n    \
                 - {{header: {user}, claim: sub}}\n    - {{header: x-team, claim: realm.team}}\n"
            ),
        )
    }

    fn ask(&self, path: &str, token: Option<&str>, more: &[&str]) -> Result<web::Answers> {
        let bearer = token.map(|token| format!("authorization: Bearer {token}"));
        let mut arguments = vec!["-H"; bearer.iter().len()];
        arguments.extend(bearer.as_deref());
        arguments.extend(more);
        let target = format!("{WEB}{path}");
        arguments.push(&target);
        web::curl(self.scene.pod("client"), &arguments)
    }

    fn status(&self, path: &str, token: &str) -> Result<u16> {
        Ok(self.ask(path, Some(token), &[])?.status)
    }

    /// Waits until a token is accepted.
    fn wait_accepted(&self, token: &str) -> Result<()> {
        let accepted = || Ok((self.status("/", token)? == 200).then_some(()));
        bed::eventually(PATIENCE, "the token to be accepted", accepted).map(drop)
    }
}

fn claims(subject: &str) -> Value {
    json!({"iss": ISSUER, "sub": subject, "aud": "shop", "exp": FAR, "realm": {"team": "red"}})
}

#[test]
fn who_brings_a_token_is_whom_it_says_and_a_bad_one_is_refused() -> Result<()> {
    let mut stage = Stage::new()?;
    let key = SigningKey::rsa("one");
    let keys = set(&[&key]);
    let ann = key.token(&claims("ann"));
    // Without rules for tokens nobody has one.
    let before = || Ok((stage.ask("/health", None, &[])?.status == 200).then_some(()));
    bed::eventually(PATIENCE, "the service", before)?;
    same("before", stage.status("/", &ann)?, 403)?;
    stage.authentication(&format!("jwks: '{keys}'"))?;
    stage.wait_accepted(&ann)?;

    same("without a token", stage.ask("/", None, &[])?.status, 403)?;
    same("without a token, where none is asked for", stage.ask("/health", None, &[])?.status, 200)?;
    same("of a denied subject", stage.status("/health", &key.token(&claims("mallory")))?, 403)?;
    let admin = json!({"realm": {"groups": ["users", "admins"]}});
    let mut admin_claims = claims("root");
    admin_claims["realm"] = admin["realm"].clone();
    same("without the group", stage.status("/admin", &ann)?, 403)?;
    same("with the group", stage.status("/admin", &key.token(&admin_claims))?, 200)?;

    // What the app sees: the claims, not the token, and nothing that the caller has written in their place.
    let spoofed = ["-H", "x-user: root", "-H", "x_team: blue", "-H", "x-jwt: e30"];
    let answers = stage.ask("/a?access_token=&b=c", Some(&ann), &spoofed)?;
    let headers = &answers.seen[0]["headers"];
    same("the subject", headers["x-user"].as_str(), Some("ann"))?;
    same("a claim within a claim", headers["x-team"].as_str(), Some("red"))?;
    same("another spelling", headers.get("x_team"), None)?;
    same("the claims", headers["x-jwt"].as_str(), ann.split('.').nth(1))?;
    same("the token", headers.get("authorization"), None)?;
    let without = stage.ask("/health", None, &spoofed)?;
    let headers = &without.seen[0]["headers"];
    for name in ["x-user", "x-team", "x_team", "x-jwt"] {
        same(name, headers.get(name), None)?;
    }
    let answers = stage.ask(&format!("/q?a=b&access_token={ann}"), None, &[])?;
    same("in the query", (answers.status, answers.seen[0]["path"].as_str()), (200, Some("/q?a=b")))?;

    let mut expired = claims("ann");
    expired["exp"] = 1_000_000_000.into();
    let mut others = claims("ann");
    others["aud"] = "bank".into();
    let mut unknown = claims("ann");
    unknown["iss"] = "https://else.example".into();
    for (what, token, description) in [
        ("expired", key.token(&expired), "has expired"),
        ("for others", key.token(&others), "for somebody else"),
        ("of another issuer", key.token(&unknown), "issuer is not known"),
        ("with another key", SigningKey::rsa("one").token(&claims("ann")), "signature is wrong"),
        ("with the public key as a secret", symmetric(keys.as_bytes(), &claims("ann")), "algorithm"),
        ("that is none", "opaque".to_owned(), "cannot be read"),
    ] {
        let bearer = format!("authorization: Bearer {token}");
        let said = web::say(
            stage.scene.pod("client"),
            "10.96.0.1",
            80,
            &format!("GET /health HTTP/1.1\r\nhost: web\r\n{bearer}\r\nconnection: close\r\n\r\n"),
        )?;
        ensure!(said.starts_with("HTTP/1.1 401 "), "{what}: {said}");
        let challenge = said.lines().find(|line| line.starts_with("www-authenticate: "));
        let challenge = challenge.unwrap_or_default();
        ensure!(
            challenge.contains("Bearer realm=\"web.mesh.svc.cluster.local\", error=\"invalid_token\"")
                && challenge.contains(description),
            "{what}: {said}"
        );
    }
    // One that is good does not help one that is not.
    let twice = stage.ask("/?access_token=opaque", Some(&ann), &[])?;
    same("a good and a bad one", twice.status, 401)?;
    let call =
        ["-H", "content-type: application/grpc", "-H", "te: trailers", "--http2-prior-knowledge", "-D", "-"];
    let call = web::curl(
        stage.scene.pod("client"),
        &[&call[..], &["-H", "authorization: Bearer opaque", "-o", "/dev/null", &format!("{WEB}/a.B/C")]]
            .concat(),
    )?;
    same("a call of gRPC", call.status, 200)?;

    let known =
        |line: &Value| line["request_principal"] == format!("{ISSUER}/ann") && line["path"] == "/q?a=b";
    bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "who brought it", known)?;
    let refused = |line: &Value| line["flags"] == "JWT" && line["status"] == 401;
    bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "who was refused", refused)?;
    let told = |line: &Value| line["flags"] == "JWT" && line["grpc_status"] == 16;
    bed::report::wait_access(&mut stage.waypoint, 0, PATIENCE, "the call that was refused", told)?;
    Ok(())
}

/// Serves a folder on the wire, beside control.
fn serve(scene: &Scene, folder: &std::path::Path) -> Result<(Process, String)> {
    let [address, _] = bed::address::control();
    let job = scene.world.control_job("python3").args([
        "-m",
        "http.server",
        "8090",
        "--bind",
        &address.to_string(),
    ]);
    let server = job.arg("--directory").arg(folder).spawn("issuer")?;
    Ok((server, format!("http://{address}:8090/keys.json")))
}

#[test]
fn keys_of_tokens_are_fetched_and_rotate_and_outlive_their_server_and_control() -> Result<()> {
    let mut stage = Stage::new()?;
    let (old, new) = (SigningKey::p256("old"), SigningKey::ed25519("new"));
    let folder = tempfile::tempdir()?;
    let write = |keys: &[&SigningKey]| std::fs::write(folder.path().join("keys.json"), set(keys));
    write(&[&old])?;
    let (mut issuer, uri) = serve(&stage.scene, folder.path())?;
    let keys = format!("jwksUri: {uri}");
    stage.authentication(&keys)?;
    let (by_old, by_new) = (old.token(&claims("ann")), new.token(&claims("ann")));
    stage.wait_accepted(&by_old)?;
    same("a key that is not there yet", stage.status("/", &by_new)?, 401)?;
    write(&[&old, &new])?;
    stage.wait_accepted(&by_new)?;
    same("the old one beside it", stage.status("/", &by_old)?, 200)?;
    write(&[&new])?;
    let gone = || Ok((stage.status("/", &by_old)? == 401).then_some(()));
    bed::eventually(PATIENCE, "the old one to count no more", gone)?;

    issuer.kill();
    let good = || Ok(stage.status("/", &by_new)? == 200);
    bed::holds_for(Duration::from_secs(3), "without the issuer", good)?;
    let failing = |line: &str| line.contains("keys of tokens cannot be fetched") && line.contains(&uri);
    stage.scene.mesh.control.wait_for_line(PATIENCE, "its failure to be told", failing)?;
    stage.scene.mesh.control.kill();
    // It has never known the keys: waypoints keep theirs.
    stage.scene.mesh.control = stage.scene.world.start_control()?;
    stage.authentication_to(&keys, "x-person")?;
    let told = || -> Result<Option<()>> {
        let answers = stage.ask("/", Some(&by_new), &[])?;
        same("without the issuer and of a new control", answers.status, 200)?;
        Ok((answers.seen[0]["headers"]["x-person"] == "ann").then_some(()))
    };
    bed::eventually(PATIENCE, "the word of the new control", told)?;
    same("the old key", stage.status("/", &by_old)?, 401)?;
    let (_issuer, _) = serve(&stage.scene, folder.path())?;
    write(&[&old])?;
    stage.wait_accepted(&by_old)?;
    same("the key that is taken away", stage.status("/", &by_new)?, 401)
}
