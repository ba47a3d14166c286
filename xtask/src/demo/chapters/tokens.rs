//! Whose token a request bears: none, a bad one, a good one; and what its server and its route learn of it.

use anyhow::{Context, Result};
use bed::token::{SigningKey, set};
use serde_json::{Value, json};

use super::{
    requests::FLAKY,
    waypoint::{CANARY, URL},
};
use crate::demo::{
    cast::{Cast, PATIENCE},
    stage::{Stage, span},
};

const ISSUER: &str = "https://accounts.shop.example";
/// In the year 2100, and in 2001.
const FAR: u64 = 4_102_444_800;
const LONG_AGO: u64 = 1_000_000_000;

const MEMBERS: &str = "targetRefs: [{kind: Service, name: offers}]
action: DENY
rules:
- from: [{source: {notRequestPrincipals: ['*']}}]
  to: [{operation: {paths: [/orders]}}]
";
const BY_TIER: &str = "- matches: [{path: {value: /orders}, headers: [{name: x-tier, value: gold}]}]
  backendRefs: [{name: offers-v2, port: 80}]
- matches: [{path: {value: /orders}}]
  backendRefs: [{name: offers, port: 80}]
";

/// Part of a chapter: tokens.
pub(super) fn believed(stage: &mut Stage, cast: &Cast) -> Result<()> {
    let key = SigningKey::p256("2026");
    let jwt_rules = format!(
        "jwtRules:\n- issuer: {ISSUER}\n  \
         outputClaimToHeaders: [{{header: x-customer, claim: sub}}, {{header: x-tier, claim: tier}}]\n  jwks: '{}'\n",
        set(&[&key])
    );
    stage.show(&format!("kind: RequestAuthentication   # shop/customers\n{jwt_rules}"));
    stage.show(&format!("kind: AuthorizationPolicy     # shop/members\n{MEMBERS}"));
    let manifests = cast.world.manifests();
    stage.check("without a token nobody sees an order", || {
        manifests.put("tokens-shop-customers", &authentication(&jwt_rules))?;
        manifests.http_route("shop", "offers", "offers", &format!("{BY_TIER}{FLAKY}{CANARY}"))?;
        manifests.authorization_policy("shop", "members", MEMBERS)?;
        let refused = || Ok((ask(cast, None, &[])?.status == 403).then_some(()));
        let (_, took) = bed::eventually(PATIENCE, "who has no token to be refused", refused)?;
        Ok(((), format!("403, {} after the edit", span(took))))
    })?;
    stage.check("a token that has expired, or that another has signed, is refused", || {
        let over = key.token(&claims("ann", "basic", LONG_AGO));
        let forged = SigningKey::p256("2026").token(&claims("ann", "gold", FAR));
        let mut told = Vec::new();
        for token in [over, forged] {
            let refused = || {
                let said = ask(cast, Some(&token), &[])?;
                Ok((said.status == 401).then_some(said.challenge))
            };
            let (challenge, _) = bed::eventually(PATIENCE, "the token to be refused", refused)?;
            let reason = challenge.split_once("error_description=").context("no reason in the answer")?.1;
            told.push(format!("401  {}", reason.trim_matches('"')));
        }
        Ok(((), told.join("\n")))
    })?;
    stage.check("a good one: a claim names the customer, another chooses the route", || {
        let [ann, bob] =
            [("ann", "basic"), ("bob", "gold")].map(|(name, tier)| key.token(&claims(name, tier, FAR)));
        let mut told = Vec::new();
        for (who, token, more, page) in [
            ("ann", &ann, &[][..], "orders of ann, at shop/catalog"),
            ("bob, who is gold", &bob, &[], "orders of bob, at shop/catalog-v2"),
            (
                "ann, who adds x-tier: gold herself",
                &ann,
                &["--header", "x-tier: gold"],
                "orders of ann, at shop/catalog",
            ),
        ] {
            let served = || Ok(Some(ask(cast, Some(token), more)?).filter(|said| said.body == page));
            let (said, _) = bed::eventually(PATIENCE, &format!("{page:?}"), served)?;
            told.push(format!("{}  {who}: {}", said.status, said.body));
        }
        Ok(((), told.join("\n")))
    })?;
    manifests.remove_authorization_policy("shop", "members")?;
    manifests.remove("tokens-shop-customers")
}

fn authentication(jwt_rules: &str) -> String {
    let rules: String = jwt_rules.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
         metadata: {{name: customers, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Service, name: offers}}]\n{rules}"
    )
}

fn claims(subject: &str, tier: &str, end: u64) -> Value {
    json!({"iss": ISSUER, "sub": subject, "tier": tier, "exp": end})
}

/// What curl was answered.
struct Said {
    status: u16,
    /// How the caller may prove who he is.
    challenge: String,
    body: String,
}

fn ask(cast: &Cast, token: Option<&str>, more: &[&str]) -> Result<Said> {
    let bearer = token.map(|token| format!("authorization: Bearer {token}"));
    let curl = cast.storefront.job("curl").args(["--silent", "--noproxy", "*", "--max-time", "20"]);
    let curl = curl.args(["--write-out", "\n%{http_code} %header{www-authenticate}"]);
    let curl = curl.args(bearer.iter().flat_map(|bearer| ["--header", bearer])).args(more);
    let said = curl.arg(format!("{URL}/orders")).check()?.stdout;
    let (body, tail) = said.rsplit_once('\n').context("curl said no status")?;
    let (status, challenge) = tail.split_once(' ').context("curl said no status")?;
    let status = status.parse().with_context(|| format!("curl said {tail:?}"))?;
    Ok(Said { status, challenge: challenge.to_owned(), body: body.trim_end().to_owned() })
}
