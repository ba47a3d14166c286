//! Certificates for foreign peers: from our control's own authority, or from one that nobody trusts.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use bed::World;
use identity::{Identity, authority::Authority};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::scene::TRUST_DOMAIN;

/// How long the certificates of a test live.
const LIFE: Duration = Duration::from_secs(3600);

/// A certificate, its key and the root that it trusts, as PEM files for programs and in memory for us.
#[derive(Debug)]
pub struct Credentials {
    pub identity: Identity,
    pub chain_file: PathBuf,
    pub key_file: PathBuf,
    pub root_file: PathBuf,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub roots: Vec<CertificateDer<'static>>,
}

impl Credentials {
    /// A certificate of the authority of a world's control.
    pub fn of_control(world: &World, identity: Identity) -> Result<Self> {
        let root = world.root_certificate();
        let folder = root.parent().context("the root certificate has no folder")?;
        let authority =
            Authority::load_or_create(folder, TRUST_DOMAIN).context("open control's authority")?;
        Self::of(world, &authority, identity, "own")
    }

    /// A certificate of any authority, for a program that trusts the world's control.
    pub(crate) fn of(world: &World, authority: &Authority, identity: Identity, prefix: &str) -> Result<Self> {
        let root = fs::read_to_string(world.root_certificate()).context("read control's root")?;
        let parts = [identity.trust_domain(), identity.namespace(), identity.service_account()];
        let name = format!("{prefix}-{}", parts.join("-"));
        Self::issue(authority, &root, identity, &world.folder().join("foreign"), &name)
    }

    /// Makes a key and has `authority` sign it for `identity`; trusts `root_pem`. The files are named
    /// after `name` in `folder`.
    pub fn issue(
        authority: &Authority,
        root_pem: &str,
        identity: Identity,
        folder: &Path,
        name: &str,
    ) -> Result<Self> {
        let key = rcgen::KeyPair::generate().context("make a key")?;
        let request = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .context("make a certificate request")?;
        let chain_pem = authority
            .sign(&request, &identity, LIFE)
            .with_context(|| format!("sign a certificate of {identity}"))?
            .concat();
        let key_pem = key.serialize_pem();
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let [chain_file, key_file, root_file] =
            ["chain", "key", "root"].map(|part| folder.join(format!("{name}-{part}.pem")));
        for (path, content) in
            [(&chain_file, &chain_pem), (&key_file, &key_pem), (&root_file, &root_pem.to_owned())]
        {
            write_private(path, content)?;
        }
        Ok(Self {
            identity,
            chain_file,
            key_file,
            root_file,
            chain: certificates(&chain_pem)?,
            key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("read the key back")?,
            roots: certificates(root_pem)?,
        })
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().context("read certificates")
}

fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(content.as_bytes()).with_context(|| format!("write {}", path.display()))
}
