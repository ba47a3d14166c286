//! The web server behind both proxies: nginx, which answers every route with the same bytes.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use bed::{Pod, Process};

use super::{
    load::{PORTS, file},
    plan::{Size, Version},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Starts it in a pod, and waits until it listens.
pub(super) fn start(pod: &Pod, folder: &Path) -> Result<Process> {
    let name = pod.full_name().replace('/', "-");
    let folder = folder.join(format!("nginx-{name}"));
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for size in [Size::Small, Size::Large] {
        let path = folder.join(file(size));
        fs::write(&path, vec![b'x'; size.bytes()]).with_context(|| format!("write {}", path.display()))?;
    }
    let path = folder.join("nginx.conf");
    fs::write(&path, configuration(&folder)).with_context(|| format!("write {}", path.display()))?;
    let mut nginx =
        pod.job("nginx").arg("-p").arg(&folder).arg("-c").arg(&path).spawn(&format!("nginx-{name}"))?;
    let at = pod.at(PORTS[0].2);
    nginx.wait_until(PATIENCE, "nginx", || pod.netns().connect(at, Duration::from_millis(200)).ok())?;
    Ok(nginx)
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    let listen: String = PORTS
        .iter()
        .map(|(version, _, port)| {
            let http2 = if *version == Version::Two { " http2" } else { "" };
            format!("    listen {port} backlog=4096{http2};\n")
        })
        .collect();
    format!(
        "daemon off;
user root;
worker_processes 1;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=16;
  keepalive_requests 1000000000;
  keepalive_timeout 3600s;
  http2_max_concurrent_streams 4096;
  client_header_timeout 3600s;
  client_body_temp_path {folder}/t1;
  proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4;
  scgi_temp_path {folder}/t5;
  server {{
{listen}    root {folder};
    rewrite ^/r[0-9]+/(small|large)$ /$1 break;
    default_type application/octet-stream;
  }}
}}
"
    )
}
