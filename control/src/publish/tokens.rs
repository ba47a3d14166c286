//! [`mesh::token::TokenRule`] → `culvert.waypoint.v1.TokenRule`.

use mesh::token::{Curve, Key, Material, Place, TokenRule};
use proto::waypoint as wire;

pub(super) fn message(from: &TokenRule) -> wire::TokenRule {
    let claim = |of: &mesh::token::ClaimHeader| wire::ClaimHeader {
        header: of.header.to_string(),
        claim: of.claim.to_string(),
    };
    let known = from.keys.known.as_ref();
    wire::TokenRule {
        namespace: from.policy.namespace.to_string(),
        name: from.policy.name.to_string(),
        issuer: from.issuer.to_string(),
        audiences: from.audiences.iter().map(ToString::to_string).collect(),
        keys_from: from.keys.source.to_string(),
        keys: known.map(|keys| wire::TokenKeys { keys: keys.iter().map(key).collect() }),
        from: from.from.iter().map(place).collect(),
        forward: from.forward,
        payload_header: from.payload_to.as_deref().unwrap_or_default().to_owned(),
        claim_headers: from.claims_to.iter().map(claim).collect(),
        spaced_claims: from.spaced.iter().map(ToString::to_string).collect(),
    }
}

fn key(from: &Key) -> wire::TokenKey {
    use wire::token_key::Material as Wire;
    let material = match &from.material {
        Material::Rsa { modulus, exponent } => {
            Wire::Rsa(wire::RsaKey { modulus: modulus.to_vec(), exponent: exponent.to_vec() })
        }
        Material::Elliptic { curve: Curve::P256, point } => Wire::P256(point.to_vec()),
        Material::Elliptic { curve: Curve::P384, point } => Wire::P384(point.to_vec()),
        Material::Ed25519(bytes) => Wire::Ed25519(bytes.to_vec()),
    };
    wire::TokenKey {
        id: from.id.as_deref().unwrap_or_default().to_owned(),
        algorithm: from.algorithm.map_or("", |algorithm| algorithm.name()).to_owned(),
        material: Some(material),
    }
}

fn place(from: &Place) -> wire::TokenPlace {
    use wire::token_place::Place as Wire;
    let place = match from {
        Place::Header { name, prefix } => {
            Wire::Header(wire::TokenHeader { name: name.to_string(), prefix: prefix.to_string() })
        }
        Place::Parameter(name) => Wire::Parameter(name.to_string()),
        Place::Cookie(name) => Wire::Cookie(name.to_string()),
    };
    wire::TokenPlace { place: Some(place) }
}

#[cfg(test)]
mod tests {
    use mesh::{
        PolicyKey, ServiceKey, ServiceRoutes,
        token::{Algorithm, Authentication, ClaimHeader, Keys},
    };

    use super::*;
    use crate::publish::encode;

    #[test]
    fn every_rule_survives_the_way_to_the_waypoint() {
        let key = |id: Option<&str>, algorithm, material| Key { id: id.map(Into::into), algorithm, material };
        let rsa = Material::Rsa { modulus: [7; 256].into(), exponent: [1, 0, 1].into() };
        let keys = vec![
            key(Some("a"), Some(Algorithm::Ps512), rsa),
            key(None, None, Material::Elliptic { curve: Curve::P256, point: [4; 65].into() }),
            key(
                None,
                Some(Algorithm::Es384),
                Material::Elliptic { curve: Curve::P384, point: [4; 97].into() },
            ),
            key(Some("d"), Some(Algorithm::EdDsa), Material::Ed25519([9; 32].into())),
        ];
        let full = TokenRule {
            policy: PolicyKey { namespace: "shop".into(), name: "p".into() },
            issuer: "https://issuer".into(),
            audiences: vec!["a".into(), "b".into()],
            keys: Keys { source: "".into(), known: Some(keys.into()) },
            from: vec![
                Place::Header { name: "authorization".into(), prefix: "Bearer ".into() },
                Place::Header { name: "x-token".into(), prefix: "".into() },
                Place::Parameter("access_token".into()),
                Place::Cookie("session".into()),
            ],
            forward: true,
            payload_to: Some("x-jwt".into()),
            claims_to: vec![ClaimHeader { header: "x-user".into(), claim: "realm.user".into() }],
            spaced: vec!["roles".into()],
        };
        let none = TokenRule { keys: Keys { source: "".into(), known: Some([].into()) }, ..full.clone() };
        let waiting = TokenRule {
            keys: Keys { source: "https://issuer/keys".into(), known: None },
            payload_to: None,
            forward: false,
            ..full.clone()
        };
        let service = ServiceKey { namespace: "shop".into(), hostname: "web".into() };
        let routes = ServiceRoutes::new(service, Vec::new(), Vec::new()).unwrap();
        let routes = routes.with_authentication(Authentication::new(vec![full, none, waiting]));
        let resource = encode::routes(&routes).on_the_wire();
        let read =
            xds::convert::Converter::new("td").routes(&resource.name, &resource.resource.unwrap().value);
        assert_eq!(read, Ok(routes));
    }
}
