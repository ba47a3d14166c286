//! What the wire between the nodes shows: everything before, nothing but TLS after.

use anyhow::{Context, Result, bail};
use bed::{
    Sniffed,
    sniff::{HBONE, Sniffer},
};

use crate::demo::{
    cast::{Cast, HTTP, SECRET},
    stage::{Stage, span},
    traffic::{self, RedisSession},
};

/// The name of the secret in a sniffer's report.
const NAME: &str = "secret";

/// A sniffer on the wire that looks for the secret.
pub(crate) fn sniff(cast: &Cast) -> Result<Sniffer> {
    cast.world.sniff(&[(NAME, SECRET.as_bytes())])
}

/// The evidence that the secret was readable, or an error.
pub(crate) fn showed_secret(seen: &Sniffed) -> Result<String> {
    seen.complete()?;
    let flow = seen.showed(NAME).first().context("the sniffer did not see the secret")?;
    Ok(format!("{flow}  “{SECRET}”"))
}

/// The evidence that nothing but tunnels was there, or an error.
pub(crate) fn showed_tunnels(seen: &Sniffed) -> Result<String> {
    seen.only_tunnels()?;
    let tunnel = seen.port(HBONE);
    if tunnel.payload == 0 {
        bail!("nothing was on port {HBONE}: the traffic took another way");
    }
    Ok(format!(
        "{} frames, every TCP byte on port {HBONE} ({}, TLS handshakes: {}); 0 frames missed",
        seen.frames,
        size(tunnel.payload),
        seen.tls_hellos
    ))
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{} KB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// Chapter: no mesh. Returns a Redis session that is open before the mesh knows its pods.
pub(crate) fn before(stage: &mut Stage, cast: &mut Cast) -> Result<RedisSession> {
    stage.chapter(
        "Without a mesh",
        "The shop is not enrolled. Its storefront on node a asks nginx on node b for a page that holds a \
         secret, while we read every frame on the wire between the nodes.",
    );
    let to = cast.catalog.at(HTTP);
    stage.show(&traffic::curl_line(to));
    let sniffer = sniff(cast)?;
    stage.check("nginx serves the page", || {
        Ok(((), traffic::curl(&cast.storefront, to, 5)?.expect_served()?))
    })?;
    stage.check("the wire shows the secret: our sniffer can see", || {
        Ok(((), showed_secret(&sniffer.stop()?)?))
    })?;
    let bits = stage.check("iperf3 moves bytes for a second", || {
        let bits = traffic::iperf(&cast.storefront, &cast.depot)?;
        Ok((bits, traffic::rate(bits)))
    })?;
    stage.fact("bulk stream, no mesh (cores shared with the demo)", traffic::rate(bits));
    stage.check("redis-cli opens a connection, and keeps it", || {
        let mut session = RedisSession::open(&cast.storefront, &cast.cache, "early")?;
        let answer = session.ask("INCR visits")?;
        Ok((session, format!("visits = {answer}")))
    })
}

/// Chapter: the same traffic, meshed.
pub(crate) fn after(stage: &mut Stage, cast: &mut Cast) -> Result<()> {
    stage.chapter(
        "What the wire shows now",
        "The same storefront, the same servers, and the sniffer again. Nothing in the pods was changed.",
    );
    let sniffer = sniff(cast)?;
    let to = cast.catalog.at(HTTP);
    stage.show(&traffic::curl_line(to));
    let first = stage.check("nginx serves the page, to the pod's address", || {
        let call = traffic::curl(&cast.storefront, to, 5)?;
        Ok((call.took, call.expect_served()?))
    })?;
    stage.check("…to its service address, which only the mesh knows", || {
        let call = traffic::curl(&cast.storefront, cast.catalog_service, 5)?;
        Ok(((), format!("http://{}/ → {}", cast.catalog_service, call.expect_served()?)))
    })?;
    let again = stage.check("…and over IPv6", || {
        let to = cast.catalog.at6(HTTP);
        let call = traffic::curl(&cast.storefront, to, 5)?;
        Ok((call.took, format!("http://{to}/ → {}", call.expect_served()?)))
    })?;
    stage.fact("page over the mesh: first call, third call", format!("{}, {}", span(first), span(again)));
    stage.check("redis-cli writes the secret and reads it back", || {
        let mut session = RedisSession::open(&cast.storefront, &cast.cache, "meshed")?;
        session.ask(&format!("SET safe {SECRET}"))?;
        let answer = session.ask("GET safe")?;
        Stage::demand(answer == SECRET, || format!("Redis answered {answer:?}"))?;
        Ok(((), "SET safe …, GET safe: as it was written".to_owned()))
    })?;
    let bits = stage.check("iperf3 moves bytes for a second", || {
        let bits = traffic::iperf(&cast.storefront, &cast.depot)?;
        Ok((bits, traffic::rate(bits)))
    })?;
    stage.fact("bulk stream, encrypted (development build)", traffic::rate(bits));
    let seen = stage.check(
        "the wire shows TLS on port 15008 and nothing else; the secret is not to be seen",
        || {
            let seen = sniffer.stop()?;
            let evidence = showed_tunnels(&seen)?;
            Ok((seen, evidence))
        },
    )?;
    stage.fact("secret seen on the wire, enrolled", format!("never, in {} frames", seen.frames));
    Ok(())
}
