//! Copies of requests, sent beside them: nobody waits for one, and its answer is thrown away.
//!
//! A copy goes out when its request's body has come as a whole, so that it costs the request nothing; what does not fit
//! into the bounds is not copied, and counted.

use std::time::Duration;

use ::http::{Request, request::Parts};
use http_body_util::BodyExt as _;
use mesh::route::{Mirror, To};
use tokio::{sync::oneshot, time::timeout};

use super::{Context, send};
use crate::{
    body::{Body, Busy, kept::Copied},
    trace, upstream,
};

/// Copies that one worker has on their way.
const MOST: u32 = 256;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// The body of a copy.
pub(super) enum Source {
    Empty,
    Coming(oneshot::Receiver<Copied>),
}

/// Whether a request is among those that are copied.
pub(super) fn is_copied(mirror: &Mirror, random: u64) -> bool {
    // The bias is below 2^-32.
    random.checked_rem(u64::from(mirror.of)).is_some_and(|place| place < u64::from(mirror.copied))
}

/// Sends a copy once its body is there.
pub(super) fn start(context: &Context, to: &To, head: Parts, source: Source) {
    let To::Service { service, port } = to.clone() else { return };
    let (worker, call, snapshot) = (context.worker.clone(), context.call.clone(), context.snapshot.clone());
    let version = send::version(context, Some(to));
    let (traced, is_grpc) = (context.traced.clone(), context.is_grpc);
    tokio::task::spawn_local(async move {
        let told = |outcome| worker.shared.metrics.mirrored(outcome);
        let body = match source {
            Source::Empty => Body::Empty,
            Source::Coming(copied) => match copied.await {
                Ok(Copied { frames, trailers }) => Body::Copied(frames.into(), trailers),
                Err(_) => return told("body"),
            },
        };
        if worker.mirrors.get() >= MOST {
            return told("busy");
        }
        let _busy = Busy::with(&worker.mirrors);
        let sent = async {
            let service = snapshot.service(&service)?;
            let target = upstream::choose(&worker, &call, &snapshot, service, port).await.ok()?;
            let mut head = send::outgoing(head, version, &target).ok()?;
            let to = trace::To {
                service: Some((&service.key, port)),
                workload: &target.workload,
                address: target.address,
                version,
                resends: 0,
                is_mirror: true,
            };
            let mut attempt = traced.and_then(|traced| traced.attempt(&mut head, is_grpc, &to));
            let request = Request::from_parts(head, body);
            let sent = match worker.upstream.send(&call, &target, version, request, None).await {
                Ok(sent) => sent,
                Err(unsent) => {
                    attempt.iter_mut().for_each(|attempt| attempt.failed("connect", &unsent.reason));
                    return None;
                }
            };
            attempt.iter_mut().for_each(|attempt| attempt.answered(sent.response.status().as_u16()));
            // To its end, where that comes soon: the connection can then be used again.
            let mut answer = sent.response.into_body();
            while let Some(Ok(_)) = answer.frame().await {}
            attempt.iter_mut().for_each(|attempt| attempt.finished());
            Some(())
        };
        match timeout(PATIENCE, sent).await {
            Ok(Some(())) => told("sent"),
            Ok(None) => told("failed"),
            Err(_) => told("late"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_of_so_many_are_copied() {
        let copied = |of, copied| {
            let mirror = Mirror { to: To::Nowhere("".into()), of, copied };
            (0..1000).filter(|random| is_copied(&mirror, *random)).count()
        };
        assert_eq!((copied(100, 10), copied(1, 1), copied(100, 0), copied(8, 1)), (100, 1000, 0, 125));
        assert_eq!(copied(0, 1), 0, "of none there is no share");
    }
}
