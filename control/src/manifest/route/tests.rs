//! Routes as people write them, right and wrong.

use std::path::Path;

use super::*;
use crate::manifest::{Object, parse};

/// What is made of a route whose spec is this, in YAML.
fn read(spec: &str) -> Result<Route, String> {
    let head =
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\n";
    let mut parsed = parse(Path::new("r.yaml"), &format!("{head}spec: {spec}\n"));
    if let Some(problem) = parsed.problems.first() {
        return Err(format!("{}: {}", problem.field, problem.reason));
    }
    match parsed.objects.remove(0).1 {
        Object::HTTPRoute(route) => Ok(*route),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_route_is_read_with_everything_it_says() {
    let route = read(
        "{parentRefs: [{group: '', kind: Service, name: web, port: 80}], rules: [{name: beta, matches: [\
         {path: {type: Exact, value: /a}, method: GET, headers: [{name: X-Beta, value: '1'}, {name: x-beta, value: '2'}],\
         queryParams: [{type: RegularExpression, name: q, value: '[0-9]+'}]}],\
         filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: b}], remove: [X-C]}},\
         {type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 80}, percent: 10}}],\
         backendRefs: [{name: web-v2, port: 80, weight: 9}, {name: web-v1, port: 80}],\
         timeouts: {request: 10s, backendRequest: 1s500ms}, retry: {codes: [503], attempts: 2, backoff: 100ms}}]}",
    )
    .unwrap();
    assert_eq!(route.parents[0].port, Some(80));
    let rule = &route.rules[0];
    assert_eq!(rule.name.as_deref(), Some("beta"));
    let of = &rule.matches[0];
    assert_eq!((&of.path, of.method.as_deref()), (&PathMatch::Exact("/a".into()), Some("GET")));
    assert_eq!(of.headers, [FieldMatch { name: "x-beta".into(), value: TextMatch::Exact("1".into()) }]);
    assert_eq!(of.query[0].value, TextMatch::Regex("[0-9]+".into()));
    let Filter::RequestHeaders(change) = &rule.filters[0] else { panic!("{:?}", rule.filters) };
    assert_eq!((&*change.set[0].0, &*change.set[0].1, &*change.remove[0]), ("x-a", "b", "x-c"));
    assert!(matches!(rule.filters[1], Filter::Mirror { of: 100, copied: 10, .. }));
    assert_eq!(rule.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [9, 1]);
    assert_eq!(rule.timeouts.backend_request, Some(Duration::from_millis(1500)));
    assert_eq!(rule.retry.as_ref().map(|retry| (retry.codes.clone(), retry.attempts)), Some((vec![503], 2)));
}

#[test]
fn what_is_wrong_is_told_with_its_field() {
    for (spec, says) in [
        ("{rules: [{matches: [{path: {value: a}}]}]}", "spec.rules[0].matches[0].path.value: "),
        ("{rules: [{matches: [{path: {value: /a//b}}]}]}", "spec.rules[0].matches[0].path.value: "),
        ("{rules: [{matches: [{path: {type: Glob, value: /a}}]}]}", "spec.rules[0].matches[0].path.type: "),
        (
            "{rules: [{matches: [{path: {type: RegularExpression, value: '('}}]}]}",
            "spec.rules[0].matches[0].path.value: ",
        ),
        ("{rules: [{filters: [{type: Magic}]}]}", "spec.rules[0].filters[0].type: "),
        ("{rules: [{filters: [{type: URLRewrite}]}]}", "spec.rules[0].filters[0].urlRewrite: "),
        (
            "{rules: [{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}]}",
            "spec.rules[0].filters[0].requestRedirect.statusCode: ",
        ),
        (
            "{rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a b', value: c}]}}]}]}",
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name: ",
        ),
        (
            "{rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [Content-Length]}}]}]}",
            "spec.rules[0].filters[0].requestHeaderModifier.remove[0]: content-length ",
        ),
        (
            "{rules: [{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: Transfer-Encoding, \
             value: chunked}]}}]}]}",
            "spec.rules[0].filters[0].responseHeaderModifier.add[0].name: transfer-encoding ",
        ),
        ("{rules: [{timeouts: {request: 10}}]}", "spec.rules[0].timeouts.request"),
        (
            "{rules: [{timeouts: {request: 1s, backendRequest: 2s}}]}",
            "spec.rules[0].timeouts.backendRequest: ",
        ),
        ("{rules: [{retry: {codes: [200]}}]}", "spec.rules[0].retry.codes: "),
        ("{rules: [{backendRef: []}]}", "spec.rules[0]"),
        ("{rules: [{matches: [{method: get}]}]}", "spec.rules[0].matches[0].method: "),
        ("{rules: [{matches: [{path: {value: /a/..}}]}]}", "spec.rules[0].matches[0].path.value: "),
        ("{rules: [{name: a}, {name: a}]}", "spec.rules[1].name: "),
        (
            "{rules: [{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: a, port: 1}]}]}",
            "spec.rules[0].backendRefs: ",
        ),
        (
            "{rules: [{matches: [{path: {value: /a}}, {path: {type: Exact, value: /b}}], filters: [{type: URLRewrite, \
             urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /c}}}]}]}",
            "spec.rules[0].filters[0]: ",
        ),
        (
            "{rules: [{filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}]}]}",
            "spec.rules[0].filters[1].type: ",
        ),
        (
            "{rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: \
             {set: [{name: A, value: b}], remove: [a]}}]}]}",
            "spec.rules[0].filters[0].requestHeaderModifier: ",
        ),
        (
            "{rules: [{filters: [{type: CORS, cors: {allowOrigins: [example.com]}}]}]}",
            "spec.rules[0].filters[0].cors.allowOrigins[0]: ",
        ),
        (
            "{rules: [{filters: [{type: CORS, cors: {allowMethods: ['A B']}}]}]}",
            "spec.rules[0].filters[0].cors.allowMethods[0]: ",
        ),
        (
            "{rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a}, percent: 101}}]}]}",
            "spec.rules[0].filters[0].requestMirror: ",
        ),
    ] {
        let said = read(spec).unwrap_err();
        assert!(said.starts_with(says), "{spec}: {said}");
    }
}

#[test]
fn of_two_headers_of_one_name_the_first_counts() {
    let route = read(
        "{rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: '1'}, \
         {name: a, value: '2'}], add: [{name: b, value: '3'}]}}]}]}",
    );
    let Filter::RequestHeaders(change) = &route.unwrap().rules[0].filters[0] else { panic!() };
    assert_eq!(change.set, [("a".into(), "1".into())]);
    assert_eq!(change.add, [("b".into(), "3".into())]);
}

#[test]
fn durations_are_those_of_the_gateway_api() {
    for (text, millis) in
        [("1h", 3_600_000), ("1m30s", 90_000), ("10ms", 10), ("0s", 0), ("1h1m1s1ms", 3_661_001)]
    {
        assert_eq!(read_time(text), Some(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "1", "s", "1.5s", "-1s", "100000s", "1s1s1s1s1s", "1 s", "1us"] {
        assert_eq!(read_time(text), None, "{text}");
    }
    assert_eq!(time_of(Some("0s".into()), "f"), Ok(None), "no limit");
}

#[test]
fn a_route_without_rules_has_one_that_leads_nowhere() {
    let route = read("{parentRefs: [{kind: Service, name: web}]}").unwrap();
    assert!(route.rules.len() == 1 && route.rules[0].backends.is_empty());
}

/// What is made of a GRPCRoute with this rule, in YAML.
fn read_calls(rule: &str) -> Result<Rule, String> {
    let head =
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: r, namespace: shop}\n";
    let mut parsed = parse(Path::new("r.yaml"), &format!("{head}spec: {{rules: [{rule}]}}\n"));
    if let Some(problem) = parsed.problems.first() {
        return Err(format!("{}: {}", problem.field, problem.reason));
    }
    match parsed.objects.remove(0).1 {
        Object::GRPCRoute(mut route) => Ok(route.rules.remove(0)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_route_of_calls_is_read() {
    let rule = read_calls(
        "{name: buy, matches: [{method: {service: shop.v1.Cart, method: Buy}, headers: [{name: X-Beta, value: '1'}]}, \
         {method: {type: RegularExpression, service: 'shop\\..*', method: ''}}], \
         filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x]}}], \
         backendRefs: [{name: cart, port: 80, weight: 3}]}",
    )
    .unwrap();
    let exact = |text: &str| Some(TextMatch::Exact(text.into()));
    let path = PathMatch::Rpc { service: exact("shop.v1.Cart"), method: exact("Buy") };
    assert_eq!((&rule.matches[0].path, &*rule.matches[0].headers[0].name), (&path, "x-beta"));
    let any = PathMatch::Rpc { service: Some(TextMatch::Regex("shop\\..*".into())), method: None };
    assert_eq!(rule.matches[1].path, any);
    assert_eq!((rule.filters.len(), rule.backends[0].weight), (1, 3));
    // Without a match it is for every call, and for nothing that is no call.
    assert_eq!(read_calls("{}").unwrap().matches[0].path, PathMatch::Rpc { service: None, method: None });
}

#[test]
fn what_is_wrong_with_a_route_of_calls_is_told_with_its_field() {
    for (rule, says) in [
        ("{matches: [{method: {service: a/b}}]}", "spec.rules[0].matches[0].method.service: "),
        ("{matches: [{method: {method: 1a}}]}", "spec.rules[0].matches[0].method.method: "),
        ("{matches: [{method: {type: Exact}}]}", "spec.rules[0].matches[0].method: "),
        ("{matches: [{method: {type: Glob, service: a}}]}", "spec.rules[0].matches[0].method.type: "),
        ("{matches: [{path: {value: /}}]}", "spec.rules[0].matches[0]"),
        ("{filters: [{type: URLRewrite, urlRewrite: {}}]}", "spec.rules[0].filters[0].type: "),
        (
            "{backendRefs: [{name: a, port: 1, filters: [{type: CORS, cors: {}}]}]}",
            "spec.rules[0].backendRefs[0].filters[0].type: ",
        ),
        ("{timeouts: {request: 1s}}", "spec.rules[0]"),
        ("{name: a}, {name: a}", "spec.rules[1].name: "),
    ] {
        let said = read_calls(rule).unwrap_err();
        assert!(said.starts_with(says), "{rule}: {said}");
    }
}

/// What is made of a route of connections with this spec, in YAML.
fn read_stream(kind: &str, spec: &str) -> Result<Route, String> {
    let head = format!(
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\n"
    );
    let mut parsed = parse(Path::new("r.yaml"), &format!("{head}spec: {spec}\n"));
    if let Some(problem) = parsed.problems.first() {
        return Err(format!("{}: {}", problem.field, problem.reason));
    }
    match parsed.objects.remove(0).1 {
        Object::TCPRoute(route) | Object::TLSRoute(route) => Ok(*route),
        other => panic!("{other:?}"),
    }
}

#[test]
fn routes_of_connections_are_read() {
    let backends =
        "rules: [{name: all, backendRefs: [{name: db, port: 5432, weight: 0}, {name: db2, port: 5432}]}]";
    let route =
        read_stream("TCPRoute", &format!("{{parentRefs: [{{kind: Service, name: db}}], {backends}}}"))
            .unwrap();
    let weights: Vec<u32> = route.rules[0].backends.iter().map(|backend| backend.weight).collect();
    assert_eq!((route.rules[0].name.as_deref(), weights), (Some("all"), vec![0, 1]));
    let names = "hostnames: [a.example.com, '*.example.com', localhost]";
    let route = read_stream("TLSRoute", &format!("{{{names}, {backends}}}")).unwrap();
    assert_eq!(route.hostnames, ["a.example.com", "*.example.com", "localhost"].map(Arc::from));
    assert_eq!((route.remarks.len(), route.rules.len()), (0, 1));
}

#[test]
fn what_is_hardly_meant_is_remarked() {
    let fields = |spec: &str| {
        let route = read_stream("TCPRoute", spec).unwrap();
        route.remarks.into_iter().map(|(field, _)| field).collect::<Vec<_>>()
    };
    let rules = "rules: [{backendRefs: [{name: a, port: 1, weight: 0}]}]";
    let parents =
        "parentRefs: [{group: '', kind: Service, name: a}, {kind: Service, name: a}, {name: gateway}]";
    assert_eq!(
        fields(&format!("{{{parents}, {rules}}}")),
        ["spec.parentRefs[1].group", "spec.rules[0].backendRefs"]
    );
    let shared = "rules: [{backendRefs: [{name: a, port: 1, weight: 0}, {name: b, port: 1}]}]";
    assert_eq!(fields(&format!("{{{shared}}}")), [""; 0]);
    let entries = "{group: networking.istio.io, kind: ServiceEntry, name: a}, {kind: ServiceEntry, name: a}";
    assert_eq!(fields(&format!("{{parentRefs: [{entries}], {shared}}}")), ["spec.parentRefs[1].group"]);
}

#[test]
fn what_is_wrong_with_a_route_of_connections_is_told_with_its_field() {
    for (kind, spec, says) in [
        ("TCPRoute", "{rules: []}", "spec.rules: 0 rules; "),
        ("TCPRoute", "{rules: [{}, {}]}", "spec.rules: 2 rules; "),
        ("TCPRoute", "{hostnames: [a.b], rules: [{}]}", "spec.hostnames: "),
        ("TCPRoute", "{rules: [{matches: []}]}", "spec.rules[0]"),
        (
            "TCPRoute",
            "{rules: [{backendRefs: [{name: a, port: 1, filters: []}]}]}",
            "spec.rules[0].backendRefs[0]",
        ),
        ("TLSRoute", "{hostnames: [10.0.0.1], rules: [{}]}", "spec.hostnames[0]: 10.0.0.1 is an address"),
        ("TLSRoute", "{hostnames: [a.b, A.b], rules: [{}]}", "spec.hostnames[1]: "),
        ("TLSRoute", "{hostnames: ['*'], rules: [{}]}", "spec.hostnames[0]: "),
        ("TLSRoute", "{hostnames: ['a.*.b'], rules: [{}]}", "spec.hostnames[0]: "),
        ("TLSRoute", "{hostnames: ['-a.b'], rules: [{}]}", "spec.hostnames[0]: "),
        ("TLSRoute", "{hostnames: ['a..b'], rules: [{}]}", "spec.hostnames[0]: "),
        ("TLSRoute", "{hostnames: [''], rules: [{}]}", "spec.hostnames[0]: "),
    ] {
        let said = read_stream(kind, spec).unwrap_err();
        assert!(said.starts_with(says), "{kind} {spec}: {said}");
    }
    let many = vec!["a.b"; 1025].join(", ");
    let said = read_stream("TLSRoute", &format!("{{hostnames: [{many}], rules: [{{}}]}}")).unwrap_err();
    assert_eq!(said, "spec.hostnames: more than 1024");
}

#[test]
fn a_grant_is_for_whom_and_what_it_names() {
    let read = |spec: &str| {
        let head = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\n";
        let mut parsed = parse(Path::new("g.yaml"), &format!("{head}spec: {spec}\n"));
        match parsed.objects.pop() {
            Some((_, Object::ReferenceGrant(grant))) => Ok(*grant),
            other => Err(format!("{other:?} {:?}", parsed.problems)),
        }
    };
    let from = "from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}]";
    let all = read(&format!("{{{from}, to: [{{group: '', kind: Service}}]}}")).unwrap();
    assert!(all.permits("HTTPRoute", "a", ("", "Service", "web")));
    assert!(
        !all.permits("GRPCRoute", "a", ("", "Service", "web"))
            && !all.permits("HTTPRoute", "c", ("", "Service", "web"))
    );
    let one = read(&format!("{{{from}, to: [{{group: '', kind: Service, name: web}}]}}")).unwrap();
    assert!(
        one.permits("HTTPRoute", "a", ("", "Service", "web"))
            && !one.permits("HTTPRoute", "a", ("", "Service", "other"))
    );
    let entries =
        read(&format!("{{{from}, to: [{{group: networking.istio.io, kind: ServiceEntry}}]}}")).unwrap();
    assert!(entries.permits("HTTPRoute", "a", ("networking.istio.io", "ServiceEntry", "bank")));
    assert!(!entries.permits("HTTPRoute", "a", ("", "Service", "bank")));
    let secrets = read(&format!("{{{from}, to: [{{group: '', kind: Secret}}]}}")).unwrap();
    assert!(!secrets.permits("HTTPRoute", "a", ("", "Service", "web")));
    // What might narrow it is not passed over.
    assert!(read(&format!("{{{from}, to: [{{group: '', kind: Service, only: web}}]}}")).is_err());
    assert!(read(&format!("{{{from}}}")).is_err());
}

#[test]
fn a_route_has_so_many_patterns_and_no_more() {
    let route = |count: usize| {
        let one = "{path: {type: RegularExpression, value: '/a.*'}, headers: [{type: RegularExpression, name: a, value: 'b.*'}]}";
        let matches = vec![one; count / 2].join(", ");
        format!("{{rules: [{{matches: [{matches}]}}]}}")
    };
    assert!(read(&route(64)).is_ok());
    let refused = read(&route(66)).unwrap_err();
    assert!(refused.contains("66 regular expressions"), "{refused}");
}
