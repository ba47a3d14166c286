//! The phase that picks: a backend by its share, then an endpoint of it.

use ::http::StatusCode;
use mesh::route::{Backend, Rule, To};
use runtime::record::Flag;

use super::{Context, Settled};
use crate::upstream::{self, Endpoint};

/// The backend of a rule for one request: each by its weight.
///
/// # Errors
/// With the answer, where there is none.
pub(super) fn backend(rule: &Rule, random: u64) -> Result<&Backend, Settled> {
    let nothing = |status, reason: &str| Err(Settled::new(status, Flag::NoRoute, reason));
    if rule.backends.is_empty() {
        return nothing(StatusCode::INTERNAL_SERVER_ERROR, "the rule leads nowhere");
    }
    match rule.backend(random) {
        Some(backend) => Ok(backend),
        None => nothing(StatusCode::INTERNAL_SERVER_ERROR, "no backend of the rule has a share"),
    }
}

/// An endpoint of what a backend is, or of what was called.
///
/// # Errors
/// With the answer, where there is none.
pub(super) async fn endpoint(context: &Context, to: Option<&To>) -> Result<Endpoint, Settled> {
    let none = |reason: String| Settled::new(StatusCode::SERVICE_UNAVAILABLE, Flag::NoEndpoint, reason);
    match to {
        None => upstream::endpoint_in(&context.worker, &context.call, &context.snapshot)
            .await
            .map_err(|failure| none(failure.to_string())),
        Some(To::Nowhere(reason)) => {
            Err(Settled::new(StatusCode::INTERNAL_SERVER_ERROR, Flag::NoRoute, reason.to_string()))
        }
        Some(To::Service { service: key, port }) => {
            let service = context.snapshot.service(key).ok_or_else(|| {
                let reason = format!("there is no service {key}");
                Settled::new(StatusCode::INTERNAL_SERVER_ERROR, Flag::NoRoute, reason)
            })?;
            upstream::choose(&context.worker, &context.call, &context.snapshot, service, *port)
                .await
                .map_err(|failure| none(failure.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(weights: &[u32]) -> Rule {
        let backend = |(at, weight): (usize, &u32)| Backend {
            to: To::Nowhere(at.to_string().into()),
            weight: *weight,
            filters: Vec::new(),
        };
        Rule { backends: weights.iter().enumerate().map(backend).collect(), ..Rule::default() }
    }

    #[test]
    fn each_backend_has_its_share_exactly() {
        let rule = rule(&[90, 0, 10]);
        let mut counts = [0; 3];
        for random in 0..1000 {
            let To::Nowhere(name) = &backend(&rule, random).unwrap().to else { panic!() };
            counts[name.parse::<usize>().unwrap()] += 1;
        }
        assert_eq!(counts, [900, 0, 100]);
    }

    #[test]
    fn without_a_share_nobody_is_picked() {
        assert_eq!(backend(&rule(&[]), 1).unwrap_err().status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(backend(&rule(&[0, 0]), 1).unwrap_err().status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
