//! Loading the kernel programs, and attaching them by pinned links.
//!
//! A pinned link outlives us, so a pod stays captured, and fails closed, whoever dies. Whoever comes next
//! loads the programs again over the same pinned maps and puts each into its link in place of the old one,
//! which the kernel does between two packets.

use crate::{Error, Netns, klog, layout, splice::agent::Load, sys};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapError, SockHash},
    programs::{
        CgroupAttachMode, LinkOrder, ProgramError, SchedClassifier, SkLookup, SkMsg, SockOps, TcAttachType,
        links::{FdLink, PinnedLink},
        sk_msg::SkMsgLink,
        sock_ops::SockOpsLink,
        tc::{SchedClassifierLink, TcAttachOptions},
    },
    sys::SyscallError,
};
use std::{
    fs,
    hash::{DefaultHasher, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The kernel programs, as `cargo xtask ebpf` built them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CULVERT_BPF_OBJECT_PATH"));

/// A program of a pod, on a device.
pub(crate) struct Hook<'a> {
    /// The program's name, and the name of its link.
    pub(crate) program: &'static str,
    pub(crate) device: &'a str,
    pub(crate) direction: TcAttachType,
    /// Where the device is.
    pub(crate) netns: &'a Netns,
}

pub(crate) const EGRESS: &str = "pod_egress";
pub(crate) const LOOPBACK: &str = "pod_loopback";
pub(crate) const INGRESS: &str = "pod_ingress";
pub(crate) const GUARD: &str = "pod_guard";
const REUSE: &str = "pod_reuse";
const STATS: &str = "own_stats";
pub(crate) const SPLICE_OPS: &str = "splice_ops";
const SPLICE_MSG: &str = "splice_msg";

/// Every program that has a link in a pod's directory, in the order in which they may be taken away.
pub(crate) const LINKED: [&str; 5] = [GUARD, EGRESS, INGRESS, LOOPBACK, REUSE];

/// Which programs these are, with their log or without: another number for another build. It need not be
/// the same for another compiler.
pub(crate) fn build(log: bool) -> u64 {
    static OBJECTS: OnceLock<u64> = OnceLock::new();
    let object = OBJECTS.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        hasher.write(OBJECT);
        hasher.finish() << 1
    });
    object | u64::from(log)
}

/// Whether a program of ours is on its device, by what the kernel says is there.
pub(crate) fn is_attached(dir: &Path, hook: &Hook<'_>) -> Result<bool, Error> {
    if !layout::link(dir, hook.program).exists() {
        return Ok(false);
    }
    let there = hook.netns.enter(|| SchedClassifier::query_tcx(hook.device, hook.direction))?;
    Ok(there.is_ok_and(|(_, programs)| {
        programs.iter().any(|program| program.name_as_str() == Some(hook.program))
    }))
}

/// Where programs and maps of one load belong.
pub(crate) struct Place<'a> {
    /// The pins that all pods share.
    pub(crate) shared: &'a Path,
    /// The pins of the pod, unless it is for the node alone.
    pub(crate) pod: Option<&'a Path>,
    /// For how many flows that pass there is to be room, should the pod have no map of them yet.
    pub(crate) flows: u32,
}

/// Creates or reuses the maps, and readies the programs for loading.
pub(crate) fn load(place: &Place<'_>, log: bool) -> Result<Ebpf, Error> {
    load_with(place, Load::No, log)
}

/// The same for the programs of splicing alone. For a test of this kernel, what pods share is made anew too.
pub(crate) fn load_splice(shared: &Path, splice: Load<'_>) -> Result<Ebpf, Error> {
    load_with(&Place { shared, pod: None, flows: 1 }, splice, false)
}

fn load_with(place: &Place<'_>, splice: Load<'_>, log: bool) -> Result<Ebpf, Error> {
    let Place { shared, pod, flows } = *place;
    let mut loader = EbpfLoader::new();
    let level = klog::level(log);
    loader.map_max_entries(abi::FLOWS, flows);
    // No program reads the kernel's own structures: its type information is not needed, and large.
    loader.btf(None).override_global(aya_log::LEVEL, &level, true);
    if !log {
        // The log's ring exists all the same; let it be as small as can be.
        loader.map_max_entries(klog::RING, 4096);
    }
    if !matches!(splice, Load::Scratch { .. }) {
        for (name, _) in layout::SHARED {
            loader.map_pin_path(name, layout::map(shared, name));
        }
    }
    if let Some(room) = splice.room() {
        for (name, _) in layout::SPLICE {
            // The socket storage has no size.
            if name != abi::SPLICE_STATE {
                loader.map_max_entries(name, room);
            }
        }
    }
    match &splice {
        Load::No => {}
        Load::Scratch { write_seq } => {
            loader.override_global(abi::SPLICE_WRITE_SEQ, write_seq, true);
        }
        Load::Pinned { dir, write_seq } => {
            for (name, _) in layout::SPLICE {
                loader.map_pin_path(name, layout::map(dir, name));
            }
            loader.override_global(abi::SPLICE_WRITE_SEQ, write_seq, true);
        }
    }
    for (name, _) in layout::PER_POD {
        if let Some(pod) = pod {
            loader.map_pin_path(name, layout::map(pod, name));
        }
    }
    loader.load(OBJECT).map_err(|error| Error::kernel("load the kernel programs", &error))
}

/// Attaches a program to its device, or puts it into the pinned link in place of the one there.
pub(crate) fn attach(ebpf: &mut Ebpf, dir: &Path, hook: &Hook<'_>) -> Result<(), Error> {
    let what = || format!("attach {} to {}", hook.program, hook.device);
    let program: &mut SchedClassifier = program(ebpf, hook.program)?;
    program.load().map_err(|error| Error::kernel(format!("load {}", hook.program), &error))?;
    let pin = layout::link(dir, hook.program);
    if adopt(program, &pin).map_err(|error| Error::kernel(what(), &error))? {
        return Ok(());
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = hook
        .netns
        .enter(|| program.attach_with_options(hook.device, hook.direction, order))?
        .map_err(|error| Error::kernel(format!("{} (needs kernel 6.6 for tcx)", what()), &error))?;
    let link = program.take_link(id).map_err(|error| Error::kernel(what(), &error))?;
    let link = FdLink::try_from(link).map_err(|error| Error::kernel(what(), &error))?;
    link.pin(&pin).map_err(|error| Error::kernel(format!("pin {}", pin.display()), &error))?;
    Ok(())
}

/// Puts the program into a pinned link. Whether there was one; one whose device is gone is removed.
fn adopt(program: &mut SchedClassifier, pin: &Path) -> Result<bool, ProgramError> {
    let Ok(pinned) = PinnedLink::from_pin(pin) else { return Ok(false) };
    let link = SchedClassifierLink::try_from(FdLink::from(pinned))
        .map_err(|error| ProgramError::IOError(io::Error::other(error.to_string())))?;
    match program.attach_to_link(link) {
        Ok(id) => program.take_link(id).map(|_pinned_elsewhere| true),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(libc::ENOLINK) =>
        {
            fs::remove_file(pin).map_err(ProgramError::IOError)?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Attaches the listener lookup of a pod's namespace. Old and new one may both be there for a moment: they
/// read the same notes, and each note leads to one listener.
pub(crate) fn attach_reuse(ebpf: &mut Ebpf, dir: &Path, netns: &Netns) -> Result<(), Error> {
    let failed = |error: &(dyn std::error::Error + 'static)| Error::kernel("attach pod_reuse", error);
    let program: &mut SkLookup = program(ebpf, REUSE)?;
    program.load().map_err(|error| Error::kernel("load pod_reuse", &error))?;
    let id = program.attach(netns).map_err(|error| failed(&error))?;
    let link = program.take_link(id).map_err(|error| failed(&error))?;
    replace_pin(link.into(), &layout::link(dir, REUSE))
}

/// Attaches the measuring of ztunnel's connections to its cgroup.
pub(crate) fn attach_stats(ebpf: &mut Ebpf, pins: &Path, cgroup: &Path) -> Result<(), Error> {
    let link = attach_to_cgroup(ebpf, STATS, cgroup)?;
    let link = FdLink::try_from(link).map_err(|error| Error::kernel("pin own_stats", &error))?;
    replace_pin(link, &pins.join(layout::STATS_LINK))
}

/// Attaches the `sk_msg` program to the sockets that may be spliced, in place of an earlier one. Sockets that
/// are there already keep the one they have. Dropping the link detaches the program.
pub(crate) fn attach_splice_msg(ebpf: &mut Ebpf) -> Result<SkMsgLink, Error> {
    let failed = |error: &(dyn std::error::Error + 'static)| Error::kernel("attach splice_msg", error);
    let map = ebpf.map(abi::SPLICE_SOCKETS).ok_or_else(|| missing(abi::SPLICE_SOCKETS))?;
    let sockets: SockHash<_, [u64; 6]> = map.try_into().map_err(|error: MapError| failed(&error))?;
    let map = sockets.fd().try_clone().map_err(|source| Error::system("attach splice_msg", source))?;
    let program: &mut SkMsg = program(ebpf, SPLICE_MSG)?;
    program.load().map_err(|error| Error::kernel("load splice_msg", &error))?;
    let id = program.attach(&map).map_err(|error| failed(&error))?;
    program.take_link(id).map_err(|error| failed(&error))
}

/// Attaches the choice of sockets to the cgroup that holds applications and ztunnel. Dropping the link
/// detaches the program.
pub(crate) fn attach_splice_ops(ebpf: &mut Ebpf, cgroup: &Path) -> Result<SockOpsLink, Error> {
    attach_to_cgroup(ebpf, SPLICE_OPS, cgroup)
}

/// Pins that link, in the place of an earlier one, so that it outlives us.
pub(crate) fn pin_splice_ops(link: SockOpsLink, dir: &Path) -> Result<(), Error> {
    let link = FdLink::try_from(link).map_err(|error| Error::kernel("pin splice_ops", &error))?;
    replace_pin(link, &layout::link(dir, SPLICE_OPS))
}

/// Attaches a `sock_ops` program.
fn attach_to_cgroup(ebpf: &mut Ebpf, name: &str, cgroup: &Path) -> Result<SockOpsLink, Error> {
    let what = || format!("attach {name} to the cgroup {}", cgroup.display());
    let dir = fs::File::open(cgroup).map_err(|source| Error::system(what(), source))?;
    let program: &mut SockOps = program(ebpf, name)?;
    program.load().map_err(|error| Error::kernel(format!("load {name}"), &error))?;
    // A bpf link always stacks with others; the mode for that is of older ways to attach.
    let id = program
        .attach(dir, CgroupAttachMode::Single)
        .map_err(|error| Error::kernel(format!("{} (is it cgroup2?)", what()), &error))?;
    program.take_link(id).map_err(|error| Error::kernel(what(), &error))
}

/// Detaches a link and removes its pin; that it is gone already is success.
pub(crate) fn detach(pin: &Path) -> Result<(), Error> {
    let detached = sys::detach_pinned_link(pin).and_then(|()| fs::remove_file(pin));
    match detached {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| Error::system(format!("detach {}", pin.display()), source)),
    }
}

/// Pins a link in the place of another one.
fn replace_pin(link: FdLink, pin: &Path) -> Result<(), Error> {
    let mut fresh = PathBuf::from(pin).into_os_string();
    fresh.push("_new");
    let fresh = PathBuf::from(fresh);
    // Left by one who died between the two steps.
    let _ = fs::remove_file(&fresh);
    link.pin(&fresh).map_err(|error| Error::kernel(format!("pin {}", fresh.display()), &error))?;
    fs::rename(&fresh, pin).map_err(|source| Error::system(format!("pin {}", pin.display()), source))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let found = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    found.try_into().map_err(|error: ProgramError| Error::kernel(format!("load {name}"), &error))
}

pub(crate) fn missing(name: &str) -> Error {
    Error::Kernel {
        what: format!("load {name}"),
        reason: "the object has no such program or map; run `cargo xtask ebpf`".to_owned(),
    }
}
