//! Real web servers and clients for what is routed by its content.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{Pod, Process};
use serde_json::Value;

/// Where [`serve`] serves.
pub const PORT: u16 = 8080;
/// Where [`serve_tls`] serves.
pub const TLS_PORT: u16 = 8443;

/// A server that says who it is, and what it has seen of the request.
const SERVER: &str = r#"
import http.server, json, ssl, sys
history, failures = [], {}
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: the second would wait 40 ms for the first one's acknowledgement.
    disable_nagle_algorithm = True
    def answer(self):
        if self.headers.get("upgrade") == "echo":
            return self.speak_on()
        length = int(self.headers.get("content-length") or 0)
        chunked = self.headers.get("transfer-encoding") == "chunked"
        body = b""
        while chunked:
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if size == 0: break
        body += self.rfile.read(length)
        seen = {"name": sys.argv[1], "peer": self.client_address[0], "method": self.command, "path": self.path,
                "host": self.headers.get("host"), "body": len(body),
                "sni": getattr(self.connection, "sni", None),
                "headers": {key.lower(): value for key, value in self.headers.items()}}
        status = 200
        if self.path == "/history":
            seen = {"name": sys.argv[1], "history": history}
        else:
            history.append([self.path, len(body), self.headers.get("x-request-id"), self.headers.get("traceparent")])
        if self.path.startswith("/status/"):
            status = int(self.path.split("/")[2])
        if self.path.startswith("/flaky/"):
            failures[self.path] = failures.get(self.path, 0) + 1
            status = 503 if failures[self.path] <= int(self.path.split("/")[2]) else 200
        said = (json.dumps(seen) + "\n").encode()
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.send_header("x-server", sys.argv[1])
        self.end_headers()
        self.wfile.write(said)
    def speak_on(self):
        self.send_response(101)
        self.send_header("connection", "Upgrade")
        self.send_header("upgrade", "echo")
        self.end_headers()
        self.close_connection = True
        while True:
            said = self.rfile.read1(65536)
            if not said: return
            self.wfile.write(said)
    do_GET = do_POST = do_PUT = do_DELETE = answer
    def log_message(self, *arguments): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
server = Server(("0.0.0.0", int(sys.argv[2])), Handler)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3], sys.argv[4])
    context.sni_callback = lambda connection, name, _: setattr(connection, "sni", name)
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// A client that asks for another protocol, and then says things that come back.
const UPGRADE: &str = r#"
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
connection.sendall(b"GET /echo HTTP/1.1\r\nhost: echo\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n")
heard = b""
while b"\r\n\r\n" not in heard:
    part = connection.recv(4096)
    assert part, heard
    heard += part
assert heard.startswith(b"HTTP/1.1 101"), heard
for number in range(100):
    said = b"%d " % number * 200
    connection.sendall(said)
    heard = b""
    while len(heard) < len(said):
        part = connection.recv(4096)
        assert part, "it ended early"
        heard += part
    assert heard == said
connection.shutdown(socket.SHUT_WR)
assert connection.recv(1) == b"", "no end"
"#;

/// Asks `to` in a pod to speak something else than HTTP, and speaks it.
pub fn upgrade(pod: &Pod, to: &str, port: u16) -> Result<()> {
    pod.job("python3").args(["-c", UPGRADE, to, &port.to_string()]).check().map(drop)
}

/// Says a text, and prints all that is heard until the other end closes.
const SAY: &str = r#"
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
connection.sendall(sys.argv[3].encode())
heard = b""
while part := connection.recv(65536):
    heard += part
sys.stdout.write(heard.decode())
"#;

/// Says `text` to `to` from a pod, whatever HTTP thinks of it, and returns the answer; it must end with the connection.
pub fn say(pod: &Pod, to: &str, port: u16, text: &str) -> Result<String> {
    Ok(pod.job("python3").args(["-c", SAY, to, &port.to_string(), text]).check()?.stdout)
}

/// A certificate that its own key has signed, and the key.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one for a DNS name or an address in a folder, in files called `name`.
    pub fn new(folder: &Path, name: &str, server: &str) -> Result<Self> {
        let [certificate, key] = ["pem", "key"].map(|end| folder.join(format!("{name}.{end}")));
        // Whoever signs himself is believed where he is named, and is still no authority.
        let configuration = folder.join(format!("{name}.cnf"));
        let kind = if server.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
        let text = format!(
            "[req]\nprompt=no\ndistinguished_name=name\nx509_extensions=more\n[name]\nO=test\n\
             [more]\nbasicConstraints=critical,CA:FALSE\nsubjectAltName={kind}:{server}\n"
        );
        std::fs::write(&configuration, text)?;
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        make.args(["-days", "2"]).arg("-config").arg(&configuration);
        let made = make.arg("-out").arg(&certificate).arg("-keyout").arg(&key).output()?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        Ok(Self { certificate, key })
    }
}

/// Starts a web server in a pod, and waits until it listens.
pub fn serve(pod: &Pod) -> Result<Process> {
    serve_at(pod, PORT, &[])
}

/// Starts one in each of these pods.
pub fn serve_all(scene: &crate::Scene, pods: &[&str]) -> Result<Vec<Process>> {
    pods.iter().map(|name| serve(scene.pod(name))).collect()
}

/// The same over TLS.
pub fn serve_tls(pod: &Pod, with: &Certificate) -> Result<Process> {
    serve_at(pod, TLS_PORT, &[&with.certificate, &with.key])
}

fn serve_at(pod: &Pod, port: u16, more: &[&Path]) -> Result<Process> {
    let name = &pod.spec().name;
    let job = pod.job("python3").args(["-u", "-c", SERVER, name, &port.to_string()]).args(more);
    let mut server = job.spawn(&format!("web-{name}-{port}"))?;
    let listens = || pod.netns().connect(pod.at(port), Duration::from_millis(200)).ok();
    server.wait_until(crate::PATIENCE, "its port to listen", listens)?;
    Ok(server)
}

/// What one or more requests came to.
#[derive(Debug, Clone)]
pub struct Answers {
    /// Of the last request; 0 where there was no answer.
    pub status: u16,
    /// What the servers have seen, one by one.
    pub seen: Vec<Value>,
    /// What curl said of its failure.
    pub error: String,
}

impl Answers {
    /// The server that has answered the last request.
    pub fn server(&self) -> Option<&str> {
        self.seen.last()?["name"].as_str()
    }
}

/// How often a server has seen a path, and the lengths of the bodies that came with it; asked by its own address.
pub fn history(client: &Pod, server: &Pod, path: &str) -> Result<Vec<u64>> {
    Ok(requests(client, server, path)?.iter().filter_map(|one| one[1].as_u64()).collect())
}

/// The requests for a path that a server has seen: by which name (`x-request-id`), and where they stood (`traceparent`).
pub fn names(client: &Pod, server: &Pod, path: &str) -> Result<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(requests(client, server, path)?.iter().map(|one| (text(&one[2]), text(&one[3]))).collect())
}

fn requests(client: &Pod, server: &Pod, path: &str) -> Result<Vec<Value>> {
    let answers = curl(client, &[&format!("http://{}:{PORT}/history", server.v4())])?;
    let all = answers.seen.first().and_then(|seen| seen["history"].as_array()).cloned().unwrap_or_default();
    Ok(all.into_iter().filter(|one| one[0] == path).collect())
}

/// Runs curl in a pod: `arguments` are its own, URLs among them (`[1-100]` in one makes many of it).
pub fn curl(pod: &Pod, arguments: &[&str]) -> Result<Answers> {
    let job = pod.job("curl").args(["-s", "-S", "--max-time", "20", "-w", "%{stderr}status=%{http_code}\n"]);
    let finished = job.args(arguments).limit(Duration::from_secs(60)).run()?;
    let status = finished.stderr.lines().rev().find_map(|line| line.strip_prefix("status="));
    let status = status.with_context(|| format!("curl said no status: {}", finished.stderr))?.parse()?;
    let seen = finished.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let error = finished.stderr.lines().filter(|line| !line.starts_with("status="));
    Ok(Answers { status, seen, error: error.collect::<Vec<_>>().join(" ") })
}
