//! The phase that asks whose token a request bears, by the service's RequestAuthentications.
//!
//! Every token that is found must be one that a rule accepts, else the request is answered 401 (RFC 6750); without any
//! it goes on, and policies decide. The token that is found first counts for them. Tokens are taken out of the request
//! unless their rule leaves them there, and headers that rules make of tokens are nobody else's to write.

mod place;

use std::{
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

use ::http::{HeaderName, HeaderValue, StatusCode, request::Parts};
use jwt::Verified;
use mesh::token::{Authentication, TokenRule};
use runtime::record::Flag;

use self::place::Presented;
use crate::{
    arrival::Called,
    authorize,
    request::{Context, Settled},
};

/// The most tokens that one request may bring.
const MOST: usize = 8;

/// What came of a request's tokens.
#[derive(Debug, Default)]
pub(crate) struct Authenticated {
    /// The token that counts.
    pub(crate) token: Option<Rc<Verified>>,
    /// Those that were taken out of the request.
    taken: Vec<Presented>,
}

/// Looks at the tokens of a request to what was called.
///
/// # Errors
/// With the answer, if one is not accepted.
pub(crate) fn request(context: &Context, head: &mut Parts) -> Result<Authenticated, Settled> {
    match authorize::routes(&context.snapshot, &context.call, &context.worker.shared.settings) {
        Some(routes) => authenticate(context, &routes.authentication, &[], head),
        None => Ok(Authenticated::default()),
    }
}

/// Looks at the tokens of a request that a route leads on, by the rules of the service that it goes to: those of the
/// one that was called say nothing there. What they have taken out is looked at, too.
///
/// # Errors
/// With the answer, if one is not accepted.
pub(crate) fn onward(
    context: &Context,
    by: &Authentication,
    head: &mut Parts,
) -> Result<Authenticated, Settled> {
    let taken = context.authenticated.get().map_or(&[][..], |before| &before.taken);
    authenticate(context, by, taken, head)
}

fn authenticate(
    context: &Context,
    by: &Authentication,
    taken: &[Presented],
    head: &mut Parts,
) -> Result<Authenticated, Settled> {
    if by.is_empty() {
        return Ok(Authenticated::default());
    }
    let mut presented = place::presented(by.places(), head, MOST + 1);
    if let Some(shown) = place::without_parameters(by.places(), head) {
        // Not even one that is refused is written down.
        context.record.borrow_mut().path(&shown);
    }
    let before = taken.iter().filter(|one| by.places().contains(&one.place)).cloned();
    presented.extend(before.filter(|one| !presented.contains(one)).collect::<Vec<_>>());
    let verified = verify(context, by, &presented)?;
    let made = head.headers.keys().filter(|name| by.makes(name.as_str()));
    for name in made.cloned().collect::<Vec<_>>() {
        head.headers.remove(name);
    }
    let accepted = || presented.iter().zip(&verified);
    let kept = |verified: &Verified| rule_of(by, verified).is_some_and(|rule| rule.forward);
    let taken: Vec<Presented> =
        accepted().filter(|(_, verified)| !kept(verified)).map(|(one, _)| one.clone()).collect();
    place::take_out(&taken, head);
    for verified in &verified {
        if let Some(rule) = rule_of(by, verified) {
            write(rule, verified, head);
        }
    }
    let token = verified.into_iter().next();
    if let Some(principal) = token.as_deref().and_then(mesh::request::Token::principal) {
        context.record.borrow_mut().principal(principal);
    }
    Ok(Authenticated { token, taken })
}

fn rule_of<'a>(by: &'a Authentication, verified: &Verified) -> Option<&'a TokenRule> {
    by.rules().get(verified.rule())
}

fn verify(
    context: &Context,
    by: &Authentication,
    presented: &[Presented],
) -> Result<Vec<Rc<Verified>>, Settled> {
    let metrics = &context.worker.shared.metrics;
    let refused = |name, reason: &str| {
        metrics.token(name);
        Err(challenge(context, reason))
    };
    if presented.len() > MOST {
        return refused("too-many", "the request has too many tokens");
    }
    // Before 1970 nothing has expired.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut remembered = context.worker.tokens.borrow_mut();
    let mut verified = Vec::new();
    for Presented { place, text } in presented {
        match remembered.verify(text, place, by, now) {
            Ok(token) => verified.push(token),
            Err(reason) => return refused(reason.name(), &reason.to_string()),
        }
        metrics.token("accepted");
    }
    Ok(verified)
}

/// 401, with what was wrong (RFC 6750, 3): nothing that the caller has written, and nothing of the keys.
fn challenge(context: &Context, reason: &str) -> Settled {
    let realm = match &context.call.called {
        Called::Service(service) => &*service.key.hostname,
        Called::Workload(workload) => &*workload.name,
    };
    // Names of the mesh have neither quotes nor backslashes, but it is control's word.
    let realm: String = realm.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')).collect();
    let text = format!("Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{reason}\"");
    let mut settled = Settled::new(StatusCode::UNAUTHORIZED, Flag::BadToken, reason);
    settled.challenge = HeaderValue::try_from(text).ok().map(Box::new);
    settled
}

/// Writes the headers that a rule makes of its token. What cannot stand in a header is left out, and so is what another
/// token has said before.
fn write(rule: &TokenRule, verified: &Verified, head: &mut Parts) {
    let payload = rule.payload_to.iter().map(|name| (name, verified.payload().to_owned()));
    let claims = rule.claims_to.iter().filter_map(|to| Some((&to.header, verified.header_of(&to.claim)?)));
    for (name, value) in payload.chain(claims) {
        // A backend would read it without blanks at its ends, and policies with them.
        if value.trim_matches([' ', '\t']).len() < value.len() {
            continue;
        }
        let header = HeaderName::try_from(&**name).ok().zip(HeaderValue::try_from(value).ok());
        if let Some((name, value)) = header {
            head.headers.entry(name).or_insert(value);
        }
    }
}
