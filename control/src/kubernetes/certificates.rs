//! The ConfigMaps that BackendTLSPolicies refer to, each by its name: control does not list what everybody keeps in
//! others.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{
    held::{Held, Name},
    kinds::locate,
};
use crate::manifest::{Kind, is_subdomain};
use apiserver::{Api, ApiError};

/// How often each is looked at again.
const EVERY: Duration = Duration::from_secs(30);
/// What could not be read is tried again after this.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Several changes are looked at as one.
const SETTLED: Duration = Duration::from_millis(200);

/// Keeps what they hold in `held`, for ever.
pub async fn keep(api: Api, held: Arc<Held>) {
    let mut changes = held.certificates();
    held.seen(Kind::BackendTLSPolicy).await;
    loop {
        changes.mark_unchanged();
        let mut wanted = held.wanted_certificates();
        let mut failed = look(&api, &held, &wanted, |_| true).await;
        // Until they are to be looked at again. Those that somebody wants meanwhile are looked at by themselves.
        let until = sleep(if failed { AFTER_FAILURE } else { EVERY });
        tokio::pin!(until);
        while tokio::select! {
            () = &mut until => false,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                true
            }
        } {
            sleep(SETTLED).await;
            changes.mark_unchanged();
            let now = held.wanted_certificates();
            if now != wanted {
                let is_new = |name: &Name| !wanted.contains(name);
                if look(&api, &held, &now, is_new).await && !failed {
                    failed = true;
                    until.as_mut().reset(Instant::now() + AFTER_FAILURE);
                }
                wanted = now;
            }
        }
    }
}

/// Looks at each that is `due` once; the others hold. Whether one could not be read: of it the last version holds.
async fn look(api: &Api, held: &Held, wanted: &BTreeSet<Name>, is_due: impl Fn(&Name) -> bool) -> bool {
    let (mut there, mut failed) = (HashSet::new(), None);
    for name in wanted {
        // The API server has none of such a name, and it is part of a path.
        if !is_subdomain(&name.name) {
            continue;
        }
        if !is_due(name) {
            there.insert(name.key(Kind::ConfigMap));
            continue;
        }
        match read(api, held, name).await {
            Ok(()) => drop(there.insert(name.key(Kind::ConfigMap))),
            Err(error) if error.is_absent() => {}
            Err(error) => {
                warn!(namespace = name.namespace, name = name.name, "ConfigMap cannot be read: {error}");
                failed = Some(error.to_string());
                there.insert(name.key(Kind::ConfigMap));
            }
        }
    }
    match &failed {
        Some(reason) if held.is_pending(Kind::ConfigMap) => {
            held.failed(Kind::ConfigMap, reason.clone());
        }
        _ => held.listed(Kind::ConfigMap, &there),
    }
    failed.is_some()
}

async fn read(api: &Api, held: &Held, name: &Name) -> Result<(), ApiError> {
    let Some(place) = locate(api, Kind::ConfigMap).await? else { return Ok(()) };
    let object = api.get(&place.object(name)).await?;
    held.put(Kind::ConfigMap, &place, object);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_another_path_is_no_name() {
        assert!(is_subdomain("roots") && is_subdomain("my-roots.v1"));
        for name in ["", "a b", "../secrets/x", "?limit=1", "A", "-a", "a.", &"a".repeat(254)] {
            assert!(!is_subdomain(name), "{name:?}");
        }
    }
}
