//! Keys of tokens that are fetched: asked for again and again by every replica of control, and handed to the compiler as
//! one more thing that it is given.

mod client;
mod guard;
mod keep;
mod wanted;

use std::{collections::BTreeMap, sync::Arc};

use mesh::token::Key;

pub use client::{BadRoots, Client, Settings};
pub use keep::{Handle, Keeper};
pub(crate) use wanted::{Named, share_out};
pub use wanted::{Want, Wanted};

use crate::manifest::KeySource;

/// What has come of each fetch.
pub type Fetched = BTreeMap<KeySource, FetchedKeys>;

/// What has come of fetching from one place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchedKeys {
    /// Those that were fetched last.
    pub keys: Option<Arc<[Key]>>,
    /// Why the last attempt failed.
    pub problem: Option<Arc<str>>,
}
