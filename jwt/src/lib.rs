//! Tokens (JWT, RFC 7519) as texts: key sets (JWKS, RFC 7517) are read to the keys of [`mesh::token`], and tokens are
//! read and verified by its rules.
//!
//! No files, no network and no clock: whoever asks says what time it is.
#![forbid(unsafe_code)]

mod claims;
mod kept;
pub mod keys;
mod token;

pub use claims::Verified;
pub use kept::Remembered;
pub use token::{LONGEST, Refused, verify};
