//! SPIFFE identities: what is taken, what is not, and that a text comes back as it was.

use mesh::Identity;
use proptest::prelude::*;

#[test]
fn the_parts_of_an_identity() {
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web-1".parse().unwrap();
    assert_eq!(
        (identity.trust_domain(), identity.namespace(), identity.service_account()),
        ("cluster.local", "shop", "web-1")
    );
    assert_eq!(identity, Identity::new("cluster.local", "shop", "web-1"));
    assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web-1");
}

#[test]
fn what_is_no_identity_of_a_service_account() {
    let refused = [
        "",
        "spiffe://",
        "spiffe://td",
        "spiffe://td/ns/a",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns//sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://td/sa/b/ns/a",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td//ns/a/sa/b",
        "SPIFFE://td/ns/a/sa/b",
        "https://td/ns/a/sa/b",
        " spiffe://td/ns/a/sa/b",
        "spiffe://td/ns/a/sa/b\n",
        "spiffe://td/ns/a/sa/b?c",
        "spiffe://td/ns/a/sa/b#c",
        "spiffe://td/ns/%61/sa/b",
        "spiffe://td:443/ns/a/sa/b",
        "spiffe://me@td/ns/a/sa/b",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/a/sa/b\0",
        "spiffe://td/ns/ä/sa/b",
    ];
    for text in refused {
        let error = text.parse::<Identity>().expect_err(text);
        assert_eq!(error.0, text);
    }
    let long = format!("spiffe://td/ns/{}/sa/b", "a".repeat(4000));
    assert!(long.parse::<Identity>().expect_err("too long").to_string().len() < 400);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is taken is written as it was read, so that two texts never mean one identity.
    #[test]
    fn what_is_taken_reads_back(text in "(spiffe://)?[a-z./%]{0,8}/ns/[a-zA-Z0-9._/ -]{0,8}/sa/[a-z\\PC-]{0,8}") {
        if let Ok(identity) = text.parse::<Identity>() {
            prop_assert_eq!(identity.to_string(), text);
        }
    }

    #[test]
    fn no_text_makes_the_parser_fail_otherwise(text in ".*") {
        let _ = text.parse::<Identity>();
    }
}
