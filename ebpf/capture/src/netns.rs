//! A network namespace held by a file descriptor, and how to act inside one.

use crate::{Error, sys};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};
use std::{
    cell::{Cell, OnceCell},
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    rc::Rc,
};

/// A network namespace, kept alive by the descriptor held here.
#[derive(Debug)]
pub struct Netns {
    file: File,
    inode: u64,
}

impl Netns {
    /// Opens a namespace by its file: `/run/netns/NAME`, `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path)
            .map_err(|source| Error::system(format!("open network namespace {}", path.display()), source))?;
        Self::from_file(file)
    }

    /// Takes a descriptor that someone else opened (the CNI plugin, ZDS).
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        Self::from_file(File::from(fd))
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Says that the calling thread belongs to the namespace it is in now, and leaves it only by
    /// [`Self::enter`]: a visit then costs two system calls and not five. For threads that make many.
    pub fn settle() -> Result<(), Error> {
        let home = Rc::new(Self::current()?);
        // Said twice, the first time holds.
        HOME.with(|kept| drop(kept.set(home)));
        Ok(())
    }

    fn from_file(file: File) -> Result<Self, Error> {
        let inode =
            file.metadata().map_err(|source| Error::system("stat of a network namespace", source))?.ino();
        Ok(Self { file, inode })
    }

    /// Another descriptor of the same namespace.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let file = self
            .file
            .try_clone()
            .map_err(|source| Error::system("duplicate a network namespace's descriptor", source))?;
        Ok(Self { file, inode: self.inode })
    }

    /// The namespace's inode: equal for two descriptors of one namespace, unique while it lives.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The namespace's cookie: a number that no other has or will have until the machine restarts, and the
    /// one by which kernel programs know it.
    pub fn cookie(&self) -> Result<u64, Error> {
        let failed = |source| Error::system("read the cookie of a network namespace", source);
        let socket = self.enter(|| Socket::new(Domain::UNIX, Type::DGRAM, None))?.map_err(failed)?;
        sys::netns_cookie(socket.as_fd()).map_err(failed)
    }

    /// Runs `f` inside the namespace, on this thread, and comes back.
    ///
    /// `f` must not wait for another task: while it runs, everything this thread does happens in the
    /// pod's namespace. The thread comes back also when `f` panics; if it cannot, the process is
    /// aborted, since a thread that stays behind would give one pod's traffic to another.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> Result<T, Error> {
        let back = Back::new()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            Error::system(
                format!("enter network namespace {} (needs CAP_SYS_ADMIN)", self.inode),
                errno.into(),
            )
        })?;
        let result = f();
        drop(back);
        Ok(result)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The way home, also taken when the visitor panics.
struct Back(Rc<Netns>);

thread_local! {
    /// Where this thread belongs, if that was said once for all visits; see [`Netns::settle`].
    static HOME: OnceCell<Rc<Netns>> = const { OnceCell::new() };
    /// How many visits this thread is on.
    static ABROAD: Cell<usize> = const { Cell::new(0) };
}

impl Back {
    fn new() -> Result<Self, Error> {
        // A visit from within a visit leads back to where it began.
        let settled = HOME.with(|home| home.get().cloned()).filter(|_| ABROAD.get() == 0);
        let home = settled.map_or_else(|| Netns::current().map(Rc::new), Ok)?;
        ABROAD.set(ABROAD.get() + 1);
        Ok(Self(home))
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        ABROAD.set(ABROAD.get() - 1);
        if let Err(errno) = setns(&self.0.file, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%errno, "a thread cannot leave a pod's network namespace; aborting");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settled_thread_comes_home_from_visits_within_visits() {
        let inode = || Netns::current().map(|here| here.inode()).ok();
        let home = inode();
        let elsewhere = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("root, to make a network namespace");
            Netns::current().expect("its descriptor")
        });
        let elsewhere = elsewhere.join().expect("the thread that made it");
        Netns::settle().expect("this thread's namespace");
        for _ in 0..2 {
            let seen = elsewhere.enter(|| {
                let within = elsewhere.enter(inode).expect("enter again");
                assert_eq!(within, inode());
                inode()
            });
            assert_eq!(seen.expect("enter"), Some(elsewhere.inode()));
            assert_eq!(inode(), home);
        }
    }
}
