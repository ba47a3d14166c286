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
