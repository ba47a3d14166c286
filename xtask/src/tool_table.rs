//! The programs that tasks use, the packages that bring them, and why.

/// Which tasks need a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Demo,
    Test,
    Bench,
    Image,
}

/// A program, and how to get it.
#[derive(Debug)]
pub(crate) struct Tool {
    /// Its name in the path, or a whole path.
    pub(crate) program: &'static str,
    /// The Debian package that brings it.
    pub(crate) package: &'static str,
    pub(crate) why: &'static str,
    pub(crate) uses: &'static [Use],
}

const ALL: &[Use] = &[Use::Demo, Use::Test, Use::Bench];
const BUILD: &[Use] = &[Use::Demo, Use::Test, Use::Bench, Use::Image];

/// Everything beyond Rust that any task needs.
pub(crate) const TOOLS: &[Tool] = &[
    Tool { program: "cc", package: "gcc", why: "links Rust programs, compiles aws-lc", uses: BUILD },
    Tool { program: "make", package: "make", why: "builds jemalloc, control's allocator", uses: BUILD },
    Tool {
        program: "cmake",
        package: "cmake",
        why: "builds aws-lc, the cryptography under TLS",
        uses: BUILD,
    },
    Tool { program: "strip", package: "binutils", why: "makes the tests' images small", uses: &[Use::Image] },
    Tool { program: "ldd", package: "libc-bin", why: "names the libraries for them", uses: &[Use::Image] },
    Tool {
        program: "ip",
        package: "iproute2",
        why: "makes namespaces, links and routes of the test bed",
        uses: ALL,
    },
    Tool { program: "nginx", package: "nginx-light", why: "the web server that gets meshed", uses: ALL },
    Tool { program: "curl", package: "curl", why: "the client that calls it", uses: ALL },
    Tool {
        program: "redis-server",
        package: "redis-server",
        why: "a server of long-lived connections",
        uses: ALL,
    },
    Tool { program: "redis-cli", package: "redis-tools", why: "its client", uses: ALL },
    Tool { program: "iperf3", package: "iperf3", why: "bulk streams, measured", uses: ALL },
    Tool { program: "wrk", package: "wrk", why: "HTTP requests at full speed", uses: &[Use::Bench] },
    Tool {
        program: "h2load",
        package: "nghttp2-client",
        why: "requests of both versions of HTTP at full speed",
        uses: &[Use::Test, Use::Bench],
    },
    Tool { program: "sockperf", package: "sockperf", why: "latency of small messages", uses: &[Use::Bench] },
    Tool {
        program: "promtool",
        package: "prometheus",
        why: "judges our metrics' format",
        uses: &[Use::Test],
    },
    Tool {
        program: "mariadbd",
        package: "mariadb-server",
        why: "a server that speaks first",
        uses: &[Use::Test],
    },
    Tool { program: "mariadb", package: "mariadb-client", why: "its client", uses: &[Use::Test] },
    Tool {
        program: "/usr/share/postgresql-common/pg_wrapper",
        package: "postgresql",
        why: "a database with its own handshake, and its client",
        uses: &[Use::Test],
    },
    Tool {
        program: "/usr/sbin/sshd",
        package: "openssh-server",
        why: "another server that speaks first",
        uses: &[Use::Test],
    },
    Tool { program: "ssh-keyscan", package: "openssh-client", why: "its client", uses: &[Use::Test] },
    Tool {
        program: "iptables",
        package: "iptables",
        why: "the rules of a foreign CNI plugin",
        uses: &[Use::Test],
    },
    Tool {
        program: "setpriv",
        package: "util-linux",
        why: "an intruder's few capabilities",
        uses: &[Use::Test],
    },
];
