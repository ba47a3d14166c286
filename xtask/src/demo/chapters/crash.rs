//! ztunnel dies by SIGKILL: nothing leaks, not even on an idle connection, and the next one takes over.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::wire;
use crate::demo::{
    cast::{Cast, HTTP, PATIENCE, SECRET},
    stage::{Stage, span},
    traffic::{self, RedisSession},
};

/// How long the kernel keeps a dead program's half-closed sockets here, in seconds (60 by default).
const FIN_TIMEOUT: u64 = 1;

/// Chapter: kill -9.
pub(crate) fn kill(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    stage.chapter(
        "kill -9",
        "The worst case of an idle connection: ztunnel is killed, the kernel forgets its orphaned sockets, \
         and only then the app writes. Without a guard that write would cross the wire in plain text.",
    );
    cast.storefront.netns().sysctl("net/ipv4/tcp_fin_timeout", &FIN_TIMEOUT.to_string())?;
    let mut idle = stage.check("the storefront opens a Redis session and lets it rest", || {
        Ok((RedisSession::open(&cast.storefront, &cast.cache, "idle")?, "PING, PONG".to_owned()))
    })?;
    let sniffer = wire::sniff(cast)?;
    let to = cast.catalog.at(HTTP);
    let programs = cast.mesh.on("a");
    stage.show(&format!("kill -9 {}        # ztunnel of node a", programs.ztunnel.pid()));
    programs.ztunnel.kill();
    let killed = Instant::now();
    stage.check("a new call fails: closed, not open", || {
        Ok(((), traffic::curl(&cast.storefront, to, 1)?.expect_refused()?))
    })?;
    stage.check("after tcp_fin_timeout, the idle app writes the secret", || {
        thread::sleep(Duration::from_secs(2 * FIN_TIMEOUT + 1).saturating_sub(killed.elapsed()));
        idle.tell(&format!("SET safe {SECRET}"))?;
        // Time for the kernel to send it, again and again.
        thread::sleep(Duration::from_millis(800));
        Ok(((), format!("SET safe …, {} after the kill", span(killed.elapsed()))))
    })?;
    let seen = stage.check("nothing of it is on the wire", || {
        let seen = sniffer.so_far()?;
        seen.only_tunnels()?;
        Ok((seen.frames, format!("{} frames read since before the kill; 0 missed", seen.frames)))
    })?;
    stage.fact("plain text after kill -9", format!("none in {seen} frames"));
    let took = stage.check("a new ztunnel takes over what its predecessor left", || {
        let start = Instant::now();
        let programs = cast.mesh.on("a");
        programs.ztunnel = programs.node.spawn_ztunnel("ztunnel-2", &[])?;
        programs.node.wait_ztunnel(&mut programs.ztunnel)?;
        let served = || Ok(Some(traffic::curl(&cast.storefront, to, 2)?).filter(traffic::Call::served));
        bed::eventually(PATIENCE, "the page through the new ztunnel", served)?;
        let took = start.elapsed();
        Ok((took, format!("start to first page {}", span(took))))
    })?;
    stage.fact("new ztunnel, start to first page", span(took));
    stage.check("and all through it the wire showed nothing but tunnels", || {
        Ok(((), wire::showed_tunnels(&sniffer.stop()?)?))
    })
}
