//! `culvert.waypoint.v1.TokenRule` → [`mesh::token::TokenRule`].
//!
//! What cannot be read refuses all of the service's routes: without a rule its tokens would not be looked at, and what
//! callers write into its headers would be believed.

use std::sync::Arc;

use mesh::{
    PolicyKey,
    token::{Algorithm, ClaimHeader, Curve, Key, Keys, Material, Place, TokenRule},
};
use proto::waypoint as wire;

use super::{Converter, Invalid, invalid, required};

impl Converter {
    pub(super) fn token_rule(&mut self, from: &wire::TokenRule) -> Result<TokenRule, Invalid> {
        let keys = |keys: &wire::TokenKeys| keys.keys.iter().map(key).collect::<Result<Arc<[Key]>, _>>();
        let known = from.keys.as_ref().map(keys).transpose()?;
        if known.is_none() {
            required("token.keys_from", &from.keys_from)?;
        }
        if from.from.is_empty() {
            return Err(Invalid::Missing { field: "token.from" });
        }
        let payload = Some(&from.payload_header).filter(|name| !name.is_empty());
        let mut claims_to = Vec::new();
        for claim in &from.claim_headers {
            let header = self.field_name("token.claim_headers", &claim.header)?;
            let claim = self.share(required("token.claim_headers", &claim.claim)?);
            claims_to.push(ClaimHeader { header, claim });
        }
        Ok(TokenRule {
            policy: PolicyKey {
                namespace: self.share(required("token.namespace", &from.namespace)?),
                name: self.share(required("token.name", &from.name)?),
            },
            issuer: self.share(required("token.issuer", &from.issuer)?),
            audiences: from.audiences.iter().map(|audience| self.share(audience)).collect(),
            keys: Keys { source: self.share(&from.keys_from), known },
            from: from.from.iter().map(|place| self.place(place)).collect::<Result<_, _>>()?,
            forward: from.forward,
            payload_to: payload.map(|name| self.field_name("token.payload_header", name)).transpose()?,
            claims_to,
            spaced: from.spaced_claims.iter().map(|claim| self.share(claim)).collect(),
        })
    }

    fn place(&mut self, from: &wire::TokenPlace) -> Result<Place, Invalid> {
        use wire::token_place::Place as Wire;
        let field = "token.from";
        Ok(match &from.place {
            Some(Wire::Header(header)) => Place::Header {
                name: self.field_name(field, &header.name)?,
                prefix: self.share(&header.prefix),
            },
            Some(Wire::Parameter(name)) => Place::Parameter(self.share(required(field, name)?)),
            Some(Wire::Cookie(name)) => Place::Cookie(self.share(required(field, name)?)),
            None => return Err(Invalid::Missing { field }),
        })
    }

    /// The name of a header, in lower case.
    fn field_name(&mut self, field: &'static str, name: &str) -> Result<Arc<str>, Invalid> {
        let is_token = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
        };
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(invalid(field, format!("{name:?} is not the name of a header in lower case")));
        }
        Ok(self.share(name))
    }
}

fn key(from: &wire::TokenKey) -> Result<Key, Invalid> {
    use wire::token_key::Material as Wire;
    let field = "token.keys";
    let point = |curve: Curve, point: &[u8]| match point.len() == 1 + 2 * curve.size() {
        true => Ok(Material::Elliptic { curve, point: point.into() }),
        false => Err(invalid(field, format!("a point of {} bytes", point.len()))),
    };
    let material = match &from.material {
        Some(Wire::Rsa(rsa)) if !rsa.modulus.is_empty() && !rsa.exponent.is_empty() => {
            Material::Rsa { modulus: rsa.modulus.as_slice().into(), exponent: rsa.exponent.as_slice().into() }
        }
        Some(Wire::P256(bytes)) => point(Curve::P256, bytes)?,
        Some(Wire::P384(bytes)) => point(Curve::P384, bytes)?,
        Some(Wire::Ed25519(bytes)) if bytes.len() == 32 => Material::Ed25519(bytes.as_slice().into()),
        Some(Wire::Ed25519(_) | Wire::Rsa(_)) => return Err(invalid(field, "a key that is none")),
        None => return Err(Invalid::Missing { field }),
    };
    let algorithm = match from.algorithm.as_str() {
        "" => None,
        name => Some(
            Algorithm::named(name)
                .filter(|algorithm| material.is_for(*algorithm))
                .ok_or_else(|| invalid(field, format!("{name:?} is not an algorithm of such a key")))?,
        ),
    };
    Ok(Key { id: Some(from.id.as_str()).filter(|id| !id.is_empty()).map(Arc::from), algorithm, material })
}
