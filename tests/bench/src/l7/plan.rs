//! What is measured at layer 7: every load, both proxies, and the order of the runs.

use std::{fmt, str::FromStr};

/// The version of HTTP, on both sides of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    One,
    /// With prior knowledge, ten requests at a time on each connection.
    Two,
}

/// How the proxy carries requests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Onward {
    /// To a pod outside the mesh.
    Plain,
    /// Through a tunnel, to a pod of the mesh.
    Hbone,
}

/// The size of an answer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Size {
    Small,
    Large,
}

impl Size {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Small => 1_000,
            Self::Large => 100_000,
        }
    }
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    pub(super) onward: Onward,
    pub(super) routes: usize,
    pub(super) version: Version,
    pub(super) size: Size,
    pub(super) connections: u16,
}

/// Rules that a service has; requests are for each of them by turns.
pub(super) const ROUTES: [usize; 2] = [10, 1_000];

impl Load {
    /// Every load, in the order of the table.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for onward in [Onward::Plain, Onward::Hbone] {
            for routes in ROUTES {
                for version in [Version::One, Version::Two] {
                    for size in [Size::Small, Size::Large] {
                        let of = |connections| Self { onward, routes, version, size, connections };
                        all.extend([1, 32, 256].map(of));
                    }
                }
            }
        }
        all
    }

    fn parts(self) -> [String; 5] {
        [
            match self.onward {
                Onward::Plain => "plain",
                Onward::Hbone => "hbone",
            }
            .to_owned(),
            format!("{}r", self.routes),
            match self.version {
                Version::One => "http1",
                Version::Two => "http2",
            }
            .to_owned(),
            format!("{}k", self.size.bytes() / 1_000),
            format!("{}c", self.connections),
        ]
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.parts().join("-"))
    }
}

/// Who does the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    Envoy,
    Waypoint,
}

impl Mode {
    pub(super) const ALL: [Self; 2] = [Self::Envoy, Self::Waypoint];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Envoy => "envoy",
            Self::Waypoint => "waypoint",
        })
    }
}

/// What `--only` leaves: loads that have one of the named parts of each kind that is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    parts: Vec<String>,
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<String> =
            text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
        let mut known: Vec<String> = Load::all().into_iter().flat_map(Load::parts).collect();
        known.sort_unstable();
        known.dedup();
        match parts.iter().find(|part| !known.contains(part)) {
            Some(part) => Err(format!("no load has a part {part}; there are {}", known.join(", "))),
            None => Ok(Self { parts }),
        }
    }
}

impl Selection {
    pub(super) fn loads(&self) -> Vec<Load> {
        let all = Load::all();
        let takes = |load: &Load| {
            (0..load.parts().len()).all(|at| {
                let of_kind = |part: &&String| all.iter().any(|load| load.parts()[at] == **part);
                let mut wanted = self.parts.iter().filter(of_kind).peekable();
                wanted.peek().is_none() || wanted.any(|part| *part == load.parts()[at])
            })
        };
        all.iter().copied().filter(takes).collect()
    }
}

/// Load by load; within one the two take turns, each turn starting with the other.
pub(super) fn schedule(loads: &[Load], runs: usize) -> Vec<(Load, Mode)> {
    let turn = |load: Load, turn: usize| {
        (0..Mode::ALL.len()).map(move |place| (load, Mode::ALL[(place + turn) % Mode::ALL.len()]))
    };
    loads.iter().flat_map(|load| (0..runs).flat_map(move |run| turn(*load, run))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_meet_every_load_in_every_turn_and_neither_always_goes_first() {
        let order = schedule(&Load::all(), 3);
        assert_eq!(order.len(), 48 * 2 * 3);
        let firsts: Vec<Mode> = order[..6].iter().step_by(2).map(|(_, mode)| *mode).collect();
        assert_eq!(firsts, [Mode::Envoy, Mode::Waypoint, Mode::Envoy]);
    }

    #[test]
    fn a_selection_names_parts_and_refuses_what_no_load_has() {
        let names = |text: &str| {
            let loads = text.parse::<Selection>().unwrap().loads();
            loads.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names("http2,100k,32c,1000r,hbone"), ["hbone-1000r-http2-100k-32c"]);
        assert_eq!(names("http1,1c,32c").len(), 16);
        assert_eq!(names("").len(), 48);
        assert!("http3".parse::<Selection>().unwrap_err().contains("http2"));
    }
}
