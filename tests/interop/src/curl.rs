//! curl as a second foreign HBONE client: it speaks CONNECT over HTTP/2 to an HTTPS proxy since 8.1.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    pki::Credentials,
    tools::{Place, run},
};

/// A curl that knows `--proxy-http2`, and the folder of the libraries that belong to it.
#[derive(Clone, Debug)]
pub struct Curl {
    binary: PathBuf,
    libraries: Option<PathBuf>,
}

impl Curl {
    /// Program, arguments and library folder to get `url` through HBONE at `proxy` (`https://POD:15008`).
    ///
    /// It prints the body, then `status=STATUS`; a refused CONNECT is told on standard error.
    pub fn through(
        &self,
        proxy: &str,
        credentials: &Credentials,
        url: &str,
    ) -> (&Path, Vec<OsString>, Option<&Path>) {
        let mut arguments: Vec<OsString> = [
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--write-out",
            "\nstatus=%{response_code}",
            "--proxytunnel",
            "--proxy-http2",
            // The peer's name is a SPIFFE id, which curl cannot compare with an address.
            "--proxy-insecure",
            "--proxy",
            proxy,
        ]
        .map(OsString::from)
        .into();
        for (option, file) in [
            ("--proxy-cert", &credentials.chain_file),
            ("--proxy-key", &credentials.key_file),
            ("--proxy-cacert", &credentials.root_file),
        ] {
            arguments.extend([option.into(), file.into()]);
        }
        arguments.push(url.into());
        (&self.binary, arguments, self.libraries.as_deref())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    fn knows_http2_proxies(&self) -> bool {
        run(self.command().args(["--help", "all"])).is_ok_and(|help| help.contains("--proxy-http2"))
    }
}

/// The system's curl if it is new enough, else the one of Debian's backports, unpacked beside it.
pub fn ensure_curl(root: &Path) -> Result<Curl> {
    let system = Curl { binary: "curl".into(), libraries: None };
    if system.knows_http2_proxies() {
        return Ok(system);
    }
    let place = Place::take(root, "curl")?;
    let unpacked = place.folder.join("root");
    let curl = Curl { binary: unpacked.join("usr/bin/curl"), libraries: Some(libraries(&unpacked)) };
    if curl.binary.is_file() && curl.knows_http2_proxies() {
        return Ok(curl);
    }
    eprintln!(
        "fetching curl 8 from Debian's backports (1 MB, unpacked, not installed): a second HBONE client"
    );
    fetch(&place.folder, &unpacked)?;
    ensure!(
        curl.knows_http2_proxies(),
        "the curl of the backports at {} does not run or lacks --proxy-http2",
        curl.binary.display()
    );
    Ok(curl)
}

fn libraries(unpacked: &Path) -> PathBuf {
    unpacked.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH))
}

/// Downloads with a private package list, so that the system's own sources stay as they are.
fn fetch(folder: &Path, unpacked: &Path) -> Result<()> {
    let (mirror, release) = mirror()?;
    let apt = folder.join("apt");
    for sub in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(sub)).with_context(|| format!("make {}", apt.display()))?;
    }
    let signed = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg";
    let list = apt.join("sources.list");
    fs::write(&list, format!("deb [{signed}] {mirror} {release}-backports main\n"))
        .with_context(|| format!("write {}", list.display()))?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        for (key, value) in [
            ("Dir::Etc::SourceList", list.clone()),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", apt.join("lists")),
            ("Dir::Cache", apt.join("cache")),
        ] {
            command.arg("-o").arg(format!("{key}={}", value.display()));
        }
        command
    };
    run(apt_get().args(["-o", "APT::Sandbox::User=root", "update"]))?;
    let wanted = ["curl", "libcurl4"].map(|package| format!("{package}/{release}-backports"));
    run(apt_get().args(["-o", "APT::Sandbox::User=root", "download"]).args(wanted).current_dir(&apt))?;
    let packages: Vec<PathBuf> = fs::read_dir(&apt)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    ensure!(packages.len() >= 2, "apt-get downloaded {} packages of curl and libcurl4", packages.len());
    for package in packages {
        run(Command::new("dpkg").arg("-x").arg(&package).arg(unpacked))?;
    }
    Ok(())
}

/// The Debian mirror that this machine uses, and the name of its release.
fn mirror() -> Result<(String, String)> {
    let targets = run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE) $(CODENAME) $(CREATED_BY)",
        "Created-By: Packages",
    ]))?;
    for line in targets.lines() {
        let mut words = line.split(' ');
        if let (Some(site), Some(codename)) = (words.next(), words.next())
            && site.ends_with("/debian")
            && !codename.contains('-')
        {
            return Ok((site.to_owned(), codename.to_owned()));
        }
    }
    bail!(
        "no Debian mirror among apt's sources (`apt-get indextargets`): add one, or install curl 8.1 or newer"
    )
}
