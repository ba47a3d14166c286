//! Prints what decisions and edits cost: `cargo run -p mesh --example decide` (with
//! `--config 'profile.dev.package.mesh.opt-level=3'` as a release build would).
//!
//! 10,000 policies of 10 rules each in one namespace, in several styles of writing them; a service of
//! 10,000 endpoints; 100,000 workloads for the edits. Times are medians of 15 batches, one thread.

use std::{hint::black_box, net::IpAddr, time::Instant};

use mesh::{
    Action, Attempt, Clause, Identity, Match, Outbound, Policy, PolicyKey, PortMapping, Rule, Scope, Service,
    ServiceAccountMatch, ServiceKey, Snapshot, StringMatch, Tunnel, Verdict, Workload,
};

const POLICIES: usize = 10_000;
const RULES: usize = 10;
const ENDPOINTS: u32 = 10_000;
const WORKLOADS: u32 = 100_000;

fn main() {
    println!("{POLICIES} policies x {RULES} rules in one namespace");
    println!("{:<44} {:>12} {:>12} {:>14}", "written as", "match, ns", "none, ns", "put, us each");
    type Style = (&'static str, fn(usize, usize) -> Match);
    let styles: [Style; 7] = [
        ("a principal and a port", |p, r| principal_and_port(p, r)),
        ("a service account", |p, r| service_account(p * RULES + r)),
        ("a namespace and a port, 100 of each", grid),
        ("one namespace, a source network each", |p, r| networks(p * RULES + r)),
        ("a principal's prefix", |p, r| prefix(p * RULES + r)),
        ("the same principal, all different ports", |p, r| ports(p * RULES + r)),
        ("all these mixed", |p, r| match (p + r) % 5 {
            0 => principal_and_port(p, r),
            1 => service_account(p * RULES + r),
            2 => grid(p, r),
            3 => networks(p * RULES + r),
            _ => prefix(p * RULES + r),
        }),
    ];
    for (name, style) in styles {
        admits(name, style);
    }
    admits("not_principals and not_source_ips only", |p, r| Match {
        not_principals: vec![StringMatch::Prefix("td/".into())],
        not_source_ips: vec![ip((p * RULES + r) as u32).into()],
        ..Match::default()
    });
    println!();
    plans();
    edits();
}

fn admits(name: &str, style: fn(usize, usize) -> Match) {
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    let policies: Vec<_> = (0..POLICIES).map(|p| policy(p, style)).collect();
    let started = Instant::now();
    policies.into_iter().for_each(|policy| editor.put_policy(policy));
    let put = started.elapsed().as_nanos() as f64 / 1000.0 / POLICIES as f64;
    let snapshot = editor.finish();

    let workload = Workload::named("u", "app", "w");
    // Callers that some rule is for, of all parts of the list, each for the rule in the middle.
    let known: Vec<_> = (0..64).map(|i| caller(i * POLICIES / 64, 5, style)).collect();
    let unknown: Vec<_> =
        (0..64).map(|i| (Identity::new("td", "nobody", format!("n{i}")), ip(u32::MAX - i), 1)).collect();
    let judge = |callers: &[(Identity, IpAddr, u16)], i: usize| {
        let (identity, source_ip, destination_port) = &callers[i % callers.len()];
        snapshot.admit(&Attempt {
            source: Some(identity),
            source_ip: *source_ip,
            destination: &workload,
            destination_ip: ip(7),
            destination_port: *destination_port,
            through: None,
        })
    };
    let allowed = (0..64).filter(|&i| matches!(judge(&known, i).verdict, Verdict::Allow(Some(_)))).count();
    let hit = median(|i| drop(black_box(judge(&known, i))));
    let miss = median(|i| drop(black_box(judge(&unknown, i))));
    println!("{name:<44} {hit:>12.0} {miss:>12.0} {put:>14.1}   ({allowed}/64 allowed)");
}

fn policy(p: usize, style: fn(usize, usize) -> Match) -> Policy {
    let rule = |r| {
        // As they arrive: who calls in one clause, the port in another.
        let who = style(p, r);
        let port = Match { destination_ports: who.destination_ports.clone(), ..Match::default() };
        let who = Match { destination_ports: Vec::new(), ..who };
        let clauses = [who, port].into_iter().filter(|m| !m.is_empty()).map(|m| Clause { matches: vec![m] });
        Rule { clauses: clauses.collect() }
    };
    Policy {
        key: PolicyKey { namespace: "app".into(), name: format!("policy-{p:05}").into() },
        scope: Scope::Namespace,
        action: Action::Allow,
        dry_run: false,
        rules: (0..RULES).map(rule).collect(),
    }
}

/// A caller that the rule of that policy is for.
fn caller(p: usize, r: usize, style: fn(usize, usize) -> Match) -> (Identity, IpAddr, u16) {
    let m = style(p, r);
    let identity = match (m.principals.first(), m.service_accounts.first(), m.namespaces.first()) {
        (Some(StringMatch::Exact(text)), ..) => format!("spiffe://{text}").parse().expect("a principal"),
        (Some(StringMatch::Prefix(text)), ..) => format!("spiffe://{text}x").parse().expect("a principal"),
        (_, Some(a), _) => Identity::new("td", a.namespace.clone(), a.service_account.clone()),
        (_, _, Some(StringMatch::Exact(text))) => Identity::new("td", text.clone(), "sa"),
        _ => Identity::new("td", "any", "sa"),
    };
    let source_ip = m.source_ips.first().map_or(ip(1), |net| net.network());
    (identity, source_ip, m.destination_ports.first().copied().unwrap_or(1))
}

fn principal_and_port(p: usize, r: usize) -> Match {
    let text = format!("td/ns/team-{}/sa/caller-{r}", p);
    Match {
        principals: vec![StringMatch::Exact(text.into())],
        destination_ports: vec![8000 + r as u16],
        ..Match::default()
    }
}

fn service_account(n: usize) -> Match {
    let account = ServiceAccountMatch {
        namespace: format!("ns-{}", n % 500).into(),
        service_account: format!("sa-{n}").into(),
    };
    Match { service_accounts: vec![account], ..Match::default() }
}

fn grid(p: usize, r: usize) -> Match {
    Match {
        namespaces: vec![StringMatch::Exact(format!("ns-{}", p % 100).into())],
        destination_ports: vec![8000 + ((p / 100) * RULES + r) as u16 % 100],
        ..Match::default()
    }
}

fn networks(n: usize) -> Match {
    let net = ipnet::IpNet::new(ip((n as u32) << 8), 24).expect("a length of 24 is valid");
    Match {
        namespaces: vec![StringMatch::Exact("clients".into())],
        source_ips: vec![net],
        ..Match::default()
    }
}

fn prefix(n: usize) -> Match {
    let text = format!("td/ns/team-{n:06}/sa/");
    Match { principals: vec![StringMatch::Prefix(text.into())], ..Match::default() }
}

fn ports(n: usize) -> Match {
    Match {
        principals: vec![StringMatch::Exact("td/ns/one/sa/caller".into())],
        destination_ports: vec![(n % 60_000) as u16],
        ..Match::default()
    }
}

fn plans() {
    let key = ServiceKey { namespace: "app".into(), hostname: "web.app.svc.cluster.local".into() };
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    let vip = mesh::NetworkAddress { network: "".into(), address: ip(u32::MAX) };
    let service = Service {
        addresses: vec![vip.clone()],
        ports: vec![PortMapping { service_port: 80, target_port: 8080 }],
        canonical: false,
        ..Service::named(key.clone(), "web")
    };
    editor.put_service(service.clone());
    let started = Instant::now();
    (0..ENDPOINTS).for_each(|n| editor.put_workload(endpoint(n, &key)));
    let put = started.elapsed().as_nanos() as f64 / f64::from(ENDPOINTS);
    let snapshot = editor.finish();
    let mut editor = snapshot.edit();
    editor.put_service(Service { node_local: true, ..service });
    let local = editor.finish();

    let source = Workload::named("source", "app", "client");
    let plan = |snapshot: &Snapshot, address, seed| {
        let destination = std::net::SocketAddr::new(address, 80);
        snapshot.plan("node-3", &Outbound { source: &source, destination, seed, avoided: None })
    };
    assert!(plan(&snapshot, vip.address, 1).is_ok() && plan(&local, vip.address, 1).is_ok());
    println!("a service of {ENDPOINTS} endpoints on 100 nodes (loaded at {put:.0} ns each)");
    println!(
        "{:<44} {:>9.0} ns",
        "plan by the service's address",
        median(|i| drop(black_box(plan(&snapshot, vip.address, i as u64))))
    );
    println!(
        "{:<44} {:>9.0} ns",
        "  among those of the caller's node",
        median(|i| drop(black_box(plan(&local, vip.address, i as u64))))
    );
    println!(
        "{:<44} {:>9.0} ns",
        "plan by a workload's own address",
        median(|i| drop(black_box(plan(&snapshot, ip(i as u32 % ENDPOINTS), 0))))
    );
    println!(
        "{:<44} {:>9.0} ns",
        "plan to an unknown address",
        median(|i| drop(black_box(plan(&snapshot, ip((1 << 30) + i as u32), 0))))
    );
}

fn edits() {
    let mut editor = Snapshot::default().edit();
    let key = |n: u32| ServiceKey { namespace: "app".into(), hostname: format!("s{}.app", n % 5000).into() };
    let started = Instant::now();
    (0..WORKLOADS).for_each(|n| editor.put_workload(endpoint(n, &key(n))));
    let load = started.elapsed().as_secs_f64() * 1000.0;
    let snapshot = editor.finish();
    println!("\n{WORKLOADS} workloads, 5,000 services (loaded in {load:.0} ms)");
    println!("{:<44} {:>9.0} ns", "clone of the snapshot", median(|_| drop(black_box(snapshot.clone()))));
    let one = median(|i| {
        let mut editor = snapshot.edit();
        let mut workload = endpoint(i as u32 % WORKLOADS, &key(i as u32 % WORKLOADS));
        workload.healthy = false;
        editor.put_workload(workload);
        drop(black_box(editor.finish()));
    });
    println!("{:<44} {one:>9.0} ns", "edit, one workload changed, finish");
}

fn endpoint(n: u32, service: &ServiceKey) -> Workload {
    let mut workload = Workload::named(format!("Kubernetes//Pod/app/web-{n}"), "app", format!("web-{n}"));
    workload.addresses = vec![ip(n)];
    workload.node = format!("node-{}", n % 100).into();
    workload.tunnel = Tunnel::Hbone;
    workload.services.insert(service.clone(), Vec::new());
    workload
}

fn ip(n: u32) -> IpAddr {
    IpAddr::from(n.wrapping_add(0x0a00_0000).to_be_bytes())
}

/// The median over 15 batches of the time of one call, in ns.
fn median(mut call: impl FnMut(usize)) -> f64 {
    let mut number = 0;
    let mut batch = |calls: usize| {
        let started = Instant::now();
        for _ in 0..calls {
            call(number);
            number += 1;
        }
        started.elapsed().as_nanos() as f64 / calls as f64
    };
    let calls = (2_000_000.0 / batch(10).max(20.0)) as usize + 1;
    let mut times: Vec<_> = (0..15).map(|_| batch(calls)).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
