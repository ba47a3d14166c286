//! The web server of a pod: nginx with a configuration and a folder of its own.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use bed::{Pod, Process};

use super::HTTP_PORT;

/// The size of `/body`: what the peers' figures were taken with.
const BODY: usize = 100_000;
/// As many as the machines of the peers' figures had cores.
const WORKERS: usize = 2;

/// Writes configuration and content below `folder` and starts nginx in the pod.
pub(super) fn start(pod: &Pod, folder: &Path, name: &str) -> Result<Process> {
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    };
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    write("body", &vec![b'x'; BODY])?;
    write("nginx.conf", configuration(folder).as_bytes())?;
    pod.job("nginx")
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(folder.join("nginx.conf"))
        .spawn(&format!("nginx-{name}"))
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "daemon off;
user root;
worker_processes {WORKERS};
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
  client_header_timeout 3600s;
  client_body_temp_path {folder}/t1;
  proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4;
  scgi_temp_path {folder}/t5;
  server {{
    listen {HTTP_PORT} reuseport backlog=4096;
    listen [::]:{HTTP_PORT} reuseport backlog=4096 ipv6only=on;
    location = /small {{ return 200 \"ok\"; }}
    location = /body {{ root {folder}; default_type application/octet-stream; }}
  }}
}}
"
    )
}
