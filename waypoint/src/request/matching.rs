//! The phase that finds the rule: `mesh` decides, by what is asked of the request here.

use std::{borrow::Cow, sync::Arc};

use ::http::request::Parts;
use mesh::{
    ServiceRoutes,
    route::{Found, Request},
};

use super::Context;
use crate::arrival::Called;

/// The routes of the service that was called.
pub(super) fn routes(context: &Context) -> Option<Arc<ServiceRoutes>> {
    match &context.call.called {
        Called::Service(service) => context.snapshot.routes(&service.key).cloned(),
        Called::Workload(_) => None,
    }
}

pub(super) fn find<'a>(context: &Context, routes: &'a ServiceRoutes, head: &Parts) -> Found<'a> {
    let namespace = context.call.namespace(&context.worker.shared.settings);
    routes.find(context.call.port, namespace, &Asked(head))
}

struct Asked<'a>(&'a Parts);

impl Request for Asked<'_> {
    fn method(&self) -> &str {
        self.0.method.as_str()
    }

    fn path(&self) -> &str {
        self.0.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.0.uri.query()
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        // A value that is no text is no text that a rule could name.
        let mut values = self.0.headers.get_all(name).iter().map(|value| value.to_str());
        let first = values.next()?.ok()?;
        let mut joined = Cow::Borrowed(first);
        for value in values {
            let joined = joined.to_mut();
            joined.push(',');
            joined.push_str(value.ok()?);
        }
        Some(joined)
    }
}
