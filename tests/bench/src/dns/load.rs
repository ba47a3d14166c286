//! The load: queries over one UDP socket, so many in flight, each answer judged.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bed::Pod;
use node::dns::{A, query};

/// A query or an answer that takes longer is lost: no way that is measured loses any.
const PATIENCE: Duration = Duration::from_secs(2);

/// So many queries in flight: each answer brings forth the next query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    pub(super) in_flight: u16,
}

/// What is asked, by whom, and what is to be heard.
pub(super) struct Asked<'a> {
    pub(super) pod: &'a Pod,
    pub(super) resolver: SocketAddr,
    pub(super) name: &'a str,
    pub(super) address: Ipv4Addr,
}

/// What a turn gave. Times are microseconds from sending a query to having read its answer.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) queries: usize,
    pub(super) per_second: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "udp-{}", self.in_flight)
    }
}

impl Load {
    pub(super) const ALONE: Self = Self { in_flight: 1 };
    pub(super) const ALL: [Self; 2] = [Self::ALONE, Self { in_flight: 32 }];

    /// Asks for that long, and waits for the last answers.
    pub(super) fn run(self, asked: &Asked<'_>, time: Duration) -> Result<Figures> {
        let socket = asked.pod.netns().udp(SocketAddr::new(asked.pod.v4(), 0))?;
        socket.connect(asked.resolver)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let (mut message, mut buffer) = (query(0, asked.name, A), [0; 512]);
        let mut sent: Vec<Option<Instant>> = vec![None; 1 << 16];
        let mut next = 0u16;
        let mut ask = |sent: &mut Vec<Option<Instant>>| -> Result<()> {
            message[..2].copy_from_slice(&next.to_be_bytes());
            sent[usize::from(next)] = Some(Instant::now());
            next = next.wrapping_add(1);
            socket.send(&message).context("send a query").map(drop)
        };
        let (begun, mut times, mut waiting) = (Instant::now(), Vec::new(), 0);
        for _ in 0..self.in_flight {
            ask(&mut sent)?;
            waiting += 1;
        }
        while waiting > 0 {
            let length = socket.recv(&mut buffer).context("a query has no answer")?;
            let (heard, answer) = (Instant::now(), &buffer[..length]);
            let id = judge(answer, asked.address)?;
            let since = sent[usize::from(id)].take().context("an answer that nobody waits for")?;
            times.push(heard - since);
            waiting -= 1;
            if heard - begun < time {
                ask(&mut sent)?;
                waiting += 1;
            }
        }
        let took = begun.elapsed();
        times.sort_unstable();
        Ok(Figures {
            queries: times.len(),
            per_second: times.len() as f64 / took.as_secs_f64(),
            p50: percentile(&times, 50),
            p99: percentile(&times, 99),
        })
    }
}

/// The id of an answer, which must be without error and end with the one address.
fn judge(answer: &[u8], address: Ipv4Addr) -> Result<u16> {
    ensure!(
        answer.len() > 12
            && answer[2] & 0x80 != 0
            && answer[3] & 0x0f == 0
            && answer.ends_with(&address.octets()),
        "not the answer {address}: {answer:x?}"
    );
    Ok(u16::from_be_bytes([answer[0], answer[1]]))
}

/// The time that so many of a hundred do not exceed, in microseconds, of times in order.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let at = (times.len() * percent).div_ceil(100).max(1) - 1;
    times.get(at).map_or(0.0, |time| time.as_nanos() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use node::dns::true_answer;

    use super::*;

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!((percentile(&times, 50), percentile(&times, 99)), (100.0, 198.0));
        assert_eq!((percentile(&times[..1], 99), percentile(&[], 99)), (1.0, 0.0));
    }

    #[test]
    fn an_answer_of_another_address_or_with_an_error_does_not_count() {
        let answer = true_answer(&query(7, "a.example", A), [192, 0, 2, 7]);
        assert_eq!(judge(&answer, [192, 0, 2, 7].into()).unwrap(), 7);
        assert!(judge(&answer, [192, 0, 2, 8].into()).is_err());
        let mut failed = answer;
        failed[3] |= 2;
        assert!(judge(&failed, [192, 0, 2, 7].into()).is_err());
    }
}
