//! Routes as control sends them: whatever the bytes, routes or a reason, and what comes out is the answer to any request.
#![no_main]

use std::borrow::Cow;

use libfuzzer_sys::fuzz_target;
use mesh::route::Request;
use xds::convert::Converter;

struct Ask<'a>(&'a str);

impl Request for Ask<'_> {
    fn method(&self) -> &str {
        "GET"
    }

    fn path(&self) -> &str {
        self.0
    }

    fn query(&self) -> Option<&str> {
        Some(self.0)
    }

    fn header(&self, _name: &str) -> Option<Cow<'_, str>> {
        Some(self.0.into())
    }
}

fuzz_target!(|input: (&[u8], &str, &str)| {
    let (bytes, name, path) = input;
    if let Ok(routes) = Converter::new("cluster.local").routes(name, bytes) {
        assert_eq!(routes.service.to_string(), name);
        let _ = routes.find(80, Some("shop"), &Ask(path));
    }
});
