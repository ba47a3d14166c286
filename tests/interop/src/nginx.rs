//! nginx as a backend: pages, a large file, and uploads up to a bound.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use bed::{Pod, Process, World};

/// Where it serves.
pub const PORT: u16 = 7020;
/// A file of 12 MiB, and what is in it.
pub const LARGE: &str = "/large.bin";
/// Takes uploads up to 8 MiB.
pub const UPLOAD: &str = "/upload";
/// Takes uploads up to 1 MiB.
pub const NARROW: &str = "/narrow";

const PATIENCE: Duration = Duration::from_secs(10);

/// A running nginx.
pub struct Nginx {
    _process: Process,
    folder: PathBuf,
    /// What [`LARGE`] holds.
    pub large: Vec<u8>,
}

impl Nginx {
    /// Starts it in a pod, everything of it in the world's folder.
    pub fn start(world: &World, pod: &Pod) -> Result<Self> {
        let folder = world.folder().join("nginx");
        fs::create_dir_all(folder.join("files")).with_context(|| format!("make {}", folder.display()))?;
        let large: Vec<u8> =
            (0_u32..3 << 20).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        fs::write(folder.join("files").join(LARGE.trim_start_matches('/')), &large)?;
        let path = folder.join("nginx.conf");
        fs::write(&path, configuration(&folder)).with_context(|| format!("write {}", path.display()))?;
        let mut process = pod.job(program()).args(["-e", "stderr", "-c"]).arg(&path).spawn("nginx")?;
        let at: SocketAddr = pod.at(PORT);
        let listens = || pod.netns().connect(at, Duration::from_millis(200)).ok();
        process.wait_until(PATIENCE, "nginx to listen", listens)?;
        Ok(Self { _process: process, folder, large })
    }

    /// Method, path, status and length of each request that it has read, its head and its body.
    pub fn requests(&self) -> Result<Vec<(String, u64)>> {
        let log = self.folder.join("access.log");
        let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        let line = |line: &str| {
            let (request, length) = line.rsplit_once(' ')?;
            Some((request.to_owned(), length.parse().ok()?))
        };
        Ok(text.lines().filter_map(line).collect())
    }
}

/// An administrator's program, which may not be in the path.
fn program() -> &'static str {
    if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    // What is uploaded goes on to a server of its own, so that it is read.
    format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {folder}/pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
         \x20 log_format length '$request_method $uri $status $request_length';\n\
         \x20 client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n\
         \x20 fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n\
         \x20 scgi_temp_path {folder}/scgi;\n\
         \x20 sendfile on;\n\
         \x20 access_log {folder}/access.log length;\n\
         \x20 server {{\n    listen 0.0.0.0:{PORT} backlog=4096;\n    root {folder}/files;\n\
         \x20   location = / {{ default_type text/plain; return 200 \"a page of nginx\\n\"; }}\n\
         \x20   location {UPLOAD} {{ client_max_body_size 8m; proxy_pass http://unix:{folder}/taken; }}\n\
         \x20   location {NARROW} {{ client_max_body_size 1m; proxy_pass http://unix:{folder}/taken; }}\n  }}\n\
         \x20 server {{\n    listen unix:{folder}/taken;\n    access_log off;\n    client_max_body_size 0;\n\
         \x20   location / {{ return 200 \"taken\\n\"; }}\n  }}\n}}\n"
    )
}
