//! Keys of tokens, fetched from a server of this process: what is taken, what is refused, and what stays when it is away.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bed::token::{SigningKey, set};
use control::{
    compile::{Options, Word, compile},
    keys::{Client, Handle, Keeper, Settings, Want},
    manifest::{KeySource, parse},
    metrics::Metrics,
    objects::Objects,
};
use mesh::token::Keys;
use prometheus_client::{encoding::text::encode, registry::Registry};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    time::sleep,
};

const PATIENCE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_millis(500);

/// A server that answers each path with what it is told to, as it stands; of others it says nothing.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn redirect(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

impl Server {
    fn says(&self, path: &str, answer: Vec<u8>) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    fn asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|of| *of == path).count()
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        assert!(!head.to_lowercase().contains("authorization"));
        let path = head.split(' ').nth(1).unwrap().to_owned();
        self.asked.lock().unwrap().push(path.clone());
        let answer = self.answers.lock().unwrap().get(&path).cloned();
        match answer {
            Some(answer) => {
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
            None => sleep(Duration::from_secs(60)).await,
        }
    }

    /// Serves on a port of loopback; over TLS, if there is a certificate.
    async fn listen(&self, tls: Option<Arc<rustls::ServerConfig>>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (server, tls) = (server.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => server.serve(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                                server.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        port
    }
}

fn local() -> Settings {
    Settings { allow: vec!["127.0.0.0/8".parse().unwrap()], ..Settings::default() }
}

#[tokio::test]
async fn what_is_fetched_stays_within_its_bounds() {
    let server = Server::default();
    let port = server.listen(None).await;
    let client = Client::new(&local()).unwrap();
    let get = |path: &str| {
        let (client, uri) = (client.clone(), format!("http://127.0.0.1:{port}{path}"));
        async move {
            let got = client.get(&uri, LIMIT).await;
            got.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).map_err(|error| error.to_string())
        }
    };
    server.says("/keys?a=b", ok("here"));
    assert_eq!(get("/keys?a=b").await.as_deref(), Ok("here"));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhere\r\n0\r\n\r\n";
    server.says("/chunked", chunked.into());
    assert_eq!(get("/chunked").await.as_deref(), Ok("here"));
    for (path, answer, reason) in [
        ("/absent", b"HTTP/1.1 404 Not Found\r\ncontent-length: 6\r\n\r\nsecret".to_vec(), "it answered 404"),
        ("/huge", ok(&"x".repeat(300 << 10)), "more than 262144 bytes"),
        (
            "/endless",
            [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &b"x".repeat(1 << 20)].concat(),
            "more than 262144 bytes",
        ),
        ("/short", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec(), "broke off"),
        ("/other", b"SSH-2.0-OpenSSH_9\r\n".to_vec(), "did not answer in HTTP"),
        ("/loop", redirect("/loop"), "redirects more than 3 times"),
        ("/out", redirect("file:///etc/passwd"), "where we do not follow"),
        (
            "/metadata",
            redirect("http://169.254.169.254/latest"),
            "169.254.169.254 is this machine or a Service in front of it, its own link or a cloud's metadata",
        ),
    ] {
        server.says(path, answer);
        let told = get(path).await.unwrap_err();
        assert!(told.contains(reason) && !told.contains("secret"), "{path}: {told}");
    }
    assert_eq!(server.asked("/loop"), 4);
    let begun = Instant::now();
    assert!(get("/silence").await.unwrap_err().contains("longer than 500ms"));
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.says("/moved", redirect(&format!("http://localhost:{port}/there")));
    server.says("/there", redirect("/keys?a=b"));
    // By name, which may have an address of the other family, too.
    assert_eq!(get("/moved").await.as_deref(), Ok("here"));
    // Without leave loopback is not asked, by whichever name.
    let strict = Client::new(&Settings::default()).unwrap();
    let asked = server.asked("/keys?a=b");
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let told = strict.get(&format!("http://{host}:{port}/keys?a=b"), LIMIT).await.unwrap_err();
        assert!(told.to_string().contains("is not asked"), "{host}: {told}");
    }
    assert_eq!(server.asked("/keys?a=b"), asked);
    // Nor by a Service in front of it, though nobody is at its address here who could answer.
    let service = SHOP.replace("selector: {app: web}", "selector: {app: control}");
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: shop, labels: {app: control}}, status: {podIP: 127.0.0.1}}";
    let mut objects = Objects::default();
    objects.apply(Path::new("a"), parse(Path::new("a"), &format!("{service}---\n{pod}\n")));
    let strict = strict.among(Arc::new(Mutex::new(objects)));
    let told = strict.get(&format!("http://10.96.0.1:{port}/keys"), LIMIT).await.unwrap_err();
    assert!(told.to_string().contains("10.96.0.1 is this machine or a Service"), "{told}");
}

/// A root, and what a server of `localhost` proves itself by.
fn certified() -> (String, Arc<rustls::ServerConfig>) {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().unwrap();
    let leaf =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
    (root_pem, Arc::new(config))
}

#[tokio::test]
async fn over_tls_the_server_is_whom_a_root_says() {
    let (root, config) = certified();
    let server = Server::default();
    let port = server.listen(Some(config)).await;
    server.says("/keys", ok("here"));
    server.says("/down", redirect(&format!("http://localhost:{port}/keys")));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.pem");
    std::fs::write(&path, root).unwrap();
    let trusting = Client::new(&Settings { roots: Some(path), ..local() }).unwrap();
    let uri = format!("https://localhost:{port}/keys");
    assert_eq!(&trusting.get(&uri, PATIENCE).await.unwrap()[..], b"here");
    let down = trusting.get(&format!("https://localhost:{port}/down"), PATIENCE).await;
    assert!(down.unwrap_err().to_string().contains("from https to http"));
    let other_name = trusting.get(&format!("https://127.0.0.1:{port}/keys"), PATIENCE).await;
    assert!(other_name.unwrap_err().to_string().contains("TLS with 127.0.0.1"));
    let stranger = Client::new(&local()).unwrap().get(&uri, PATIENCE).await;
    assert!(stranger.unwrap_err().to_string().contains("TLS with localhost"));
}

const SHOP: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: culvert-waypoint}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
";

/// A keeper of the keys of these objects, which are looked at again within a moment.
struct Kept {
    objects: Arc<Mutex<Objects>>,
    metrics: Arc<Metrics>,
    handle: Handle,
}

impl Kept {
    fn new(rules: &str) -> Self {
        let objects = Arc::new(Mutex::new(Objects::default()));
        let kept = Self::of(objects);
        kept.write(rules);
        kept
    }

    fn of(objects: Arc<Mutex<Objects>>) -> Self {
        let client = Client::new(&local()).unwrap();
        let metrics = Arc::new(Metrics::default());
        let (keeper, handle) =
            Keeper::new(client, Duration::from_millis(50), objects.clone(), metrics.clone());
        tokio::spawn(keeper.run());
        Self { objects, metrics, handle }
    }

    fn write(&self, rules: &str) {
        self.apply("shop", "p", rules);
    }

    /// Writes a file with what is called and a RequestAuthentication of that name.
    fn apply(&self, file: &str, name: &str, rules: &str) {
        let mut text = format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{kind: Service, name: web}}], jwtRules: [{rules}]}}\n"
        );
        if file == "shop" {
            text = format!("{SHOP}---\n{text}");
        }
        let parsed = parse(Path::new(file), &text);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        let mut objects = self.objects.lock().unwrap();
        objects.apply(Path::new(file), parsed);
        let wanted = objects.key_sources(&self.handle.wanted.borrow());
        self.handle.wanted.send_replace(wanted);
    }

    /// The keys of each rule, and what is told of them.
    fn compiled(&self) -> (Vec<Keys>, Vec<String>) {
        let objects = self.objects.lock().unwrap();
        let compiled = compile(&objects.view(), &|_, _| Word::None, &Options::default());
        let rules = compiled.routes.values().flat_map(|routes| routes.authentication.rules());
        let told = compiled.problems.iter().map(ToString::to_string);
        (rules.map(|rule| rule.keys.clone()).collect(), told.filter(|one| one.contains("keys")).collect())
    }

    async fn until(&self, what: &str, is: impl Fn(&[Keys], &[String]) -> bool) {
        let begun = Instant::now();
        loop {
            let (keys, told) = self.compiled();
            if is(&keys, &told) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: {keys:?} {told:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn nobody_waits_for_the_silent_places_of_another_namespace() {
    let server = Server::default();
    let port = server.listen(None).await;
    server.says("/z", ok(r#"{"keys": []}"#));
    let want =
        |namespace: &str| Want { patience: Duration::from_secs(60), namespaces: [namespace.into()].into() };
    let place = |name: &str| KeySource::Set(format!("http://127.0.0.1:{port}/{name}").into());
    // By their names all of them would be asked before.
    let silent = (0..100).map(|number| (place(&format!("a{number}")), want("noisy")));
    let kept = Kept::of(Arc::default());
    kept.handle.wanted.send_replace(silent.chain([(place("z"), want("quiet"))]).collect());
    let begun = Instant::now();
    while server.asked("/z") == 0 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", server.asked.lock().unwrap());
        sleep(Duration::from_millis(10)).await;
    }
    let asked = server.asked.lock().unwrap().iter().filter(|path| path.starts_with("/a")).count();
    assert!(asked <= 4, "{asked}");
}

#[tokio::test]
async fn what_is_beyond_a_namespaces_places_is_told_and_takes_nothing_from_what_was_fetched() {
    let key = SigningKey::p256("a");
    let server = Server::default();
    let port = server.listen(None).await;
    let rule =
        |number: usize| format!("{{issuer: i, jwksUri: 'http://127.0.0.1:{port}/{number}', timeout: 100ms}}");
    server.says("/31", ok(&set(&[&key])));
    let kept = Kept::new(&(0..32).map(rule).collect::<Vec<_>>().join(", "));
    let is_held = |keys: &[Keys]| keys.iter().any(|keys| has(keys, &key));
    kept.until("the keys of the last place", |keys, _| is_held(keys)).await;
    // Of the two the new one is named first.
    kept.apply("more", "a", &rule(32));
    let beyond = |told: &&String| told.contains("more than 32 such places");
    kept.until("a word of it", |_, told| told.iter().any(|one| beyond(&one))).await;
    let (keys, told) = kept.compiled();
    assert!(is_held(&keys), "{told:?}");
    let told: Vec<&String> = told.iter().filter(beyond).collect();
    assert!(told.len() == 1 && told[0].contains("/32:"), "{told:?}");
    let asked = server.asked("/31");
    while server.asked("/31") == asked {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.asked("/32"), 0);
    let mut registry = Registry::default();
    kept.metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    assert!(text.contains("jwks_sources{state=\"beyond\"} 1"), "{text}");
    // Once there is room it is asked.
    kept.write(&rule(31));
    while server.asked("/32") == 0 {
        sleep(Duration::from_millis(10)).await;
    }
}

fn has(keys: &Keys, key: &SigningKey) -> bool {
    let wanted = jwt::keys::read(set(&[key]).as_bytes()).unwrap().keys;
    keys.known.as_ref().is_some_and(|known| known.contains(&wanted[0]))
}

#[tokio::test]
async fn keys_rotate_and_stay_when_their_server_is_away() {
    let (old, new) = (SigningKey::p256("old"), SigningKey::p256("new"));
    let server = Server::default();
    let port = server.listen(None).await;
    server.says("/keys", ok(&set(&[&old])));
    let uri = format!("http://127.0.0.1:{port}/keys");
    let rule = |issuer: &str| format!("{{issuer: {issuer}, jwksUri: '{uri}', timeout: 500ms}}");
    // Two rules, one place.
    let kept = Kept::new(&format!("{}, {}", rule("a"), rule("b")));
    kept.until("the first keys", |keys, told| keys.iter().all(|keys| has(keys, &old)) && told.is_empty())
        .await;
    assert_eq!(kept.compiled().0.len(), 2);
    assert!(*kept.handle.settled.borrow());
    server.says("/keys", ok(&set(&[&old, &new])));
    kept.until("both", |keys, _| has(&keys[0], &old) && has(&keys[0], &new)).await;
    server.says("/keys", ok(&set(&[&new])));
    kept.until("the new one alone", |keys, _| !has(&keys[0], &old) && has(&keys[1], &new)).await;
    // Whatever it says in its trouble, what was good stays, and the trouble is told.
    for (answer, reason) in [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_vec(), "it answered 503"),
        (ok("<html>maintenance</html>"), "it is no JSON"),
        (ok(r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#), "none of its keys can be used"),
    ] {
        server.says("/keys", answer);
        kept.until(reason, |keys, told| {
            let held = "those that were fetched last hold";
            has(&keys[0], &new)
                && told.len() == 2
                && told.iter().all(|one| one.contains(reason) && one.contains(held))
        })
        .await;
    }
    server.says("/keys", ok(&set(&[&new])));
    kept.until("an end of the trouble", |_, told| told.is_empty()).await;
    // An empty set is a word, too.
    server.says("/keys", ok(r#"{"keys": []}"#));
    kept.until("none", |keys, _| keys[0].known.as_ref().is_some_and(|known| known.is_empty())).await;
    // Who is not wanted any more is not asked.
    kept.write("");
    sleep(Duration::from_millis(200)).await;
    let asked = server.asked("/keys");
    sleep(Duration::from_millis(300)).await;
    assert_eq!(server.asked("/keys"), asked);
}

#[tokio::test]
async fn an_issuer_says_where_its_keys_are_and_is_itself() {
    let key = SigningKey::p256("a");
    let server = Server::default();
    let port = server.listen(None).await;
    let issuer = format!("http://127.0.0.1:{port}/realm");
    let configuration = "/realm/.well-known/openid-configuration";
    let kept = Kept::new(&format!("{{issuer: '{issuer}', timeout: 500ms}}"));
    for (answer, reason) in [
        (ok("{}"), "it has no jwks_uri"),
        (
            ok(r#"{"issuer": "https://other.example", "jwks_uri": "http://127.0.0.1/keys"}"#),
            "that of another issuer",
        ),
    ] {
        server.says(configuration, answer);
        kept.until(reason, |keys, told| {
            keys[0].known.is_none()
                && told.iter().any(|one| one.contains(reason) && one.contains("every token"))
        })
        .await;
    }
    server.says("/keys", ok(&set(&[&key])));
    server.says(
        configuration,
        ok(&format!(r#"{{"issuer": "{issuer}", "jwks_uri": "http://127.0.0.1:{port}/keys"}}"#)),
    );
    kept.until("its keys", |keys, told| has(&keys[0], &key) && told.is_empty()).await;
    assert_eq!(&*kept.compiled().0[0].source, format!("http://127.0.0.1:{port}{configuration}"));
}
