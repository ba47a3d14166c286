//! A workload or a service as control sends it: converted, put in a state, planned to, taken out again.
#![no_main]

use std::{net::SocketAddr, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use mesh::{Outbound, Service, ServiceKey, Snapshot, Workload};
use prost::Message;
use xds::convert::{Address, Converter};

static COMPLETE: LazyLock<Snapshot> = LazyLock::new(|| {
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    editor.finish()
});

fuzz_target!(|bytes: &[u8]| {
    let mut converter = Converter::new("cluster.local");
    let _ = converter.address("ns/name", bytes);
    let Ok(message) = proto::workload::Address::decode(bytes) else { return };
    let converted = match message.r#type {
        Some(proto::workload::address::Type::Workload(workload)) => {
            converter.workload(&workload).map(Address::Workload)
        }
        Some(proto::workload::address::Type::Service(service)) => {
            converter.service(&service).map(Address::Service)
        }
        None => return,
    };
    match converted {
        Ok(Address::Workload(workload)) => with_workload(&workload),
        Ok(Address::Service(service)) => with_service(&service),
        Err(reason) => assert!(!reason.to_string().is_empty()),
    }
});

fn with_workload(workload: &Workload) {
    let mut editor = COMPLETE.edit();
    editor.put_workload(workload.clone());
    let snapshot = editor.finish();
    for &address in &workload.addresses {
        assert_eq!(
            snapshot.workload_at(&workload.network, address).map(|held| &held.uid),
            Some(&workload.uid)
        );
        plan(&snapshot, workload, SocketAddr::new(address, 80));
    }
    let mut editor = snapshot.edit();
    editor.remove_workload(&workload.uid);
    let empty = editor.finish();
    let services: Vec<&ServiceKey> = workload.services.keys().collect();
    assert!(empty.workloads().next().is_none());
    assert!(services.iter().all(|key| empty.endpoints(key).next().is_none()));
    assert!(workload.addresses.iter().all(|&at| empty.workload_at(&workload.network, at).is_none()));
}

fn with_service(service: &Service) {
    let mut editor = COMPLETE.edit();
    editor.put_service(service.clone());
    let mut endpoint = Workload::named("u", "ns", "endpoint");
    endpoint.addresses = vec![[10, 0, 0, 1].into()];
    endpoint.services.insert(service.key.clone(), Vec::new());
    editor.put_workload(endpoint.clone());
    let snapshot = editor.finish();
    for at in &service.addresses {
        let source = Workload { network: at.network.clone(), ..endpoint.clone() };
        for port in &service.ports {
            plan(&snapshot, &source, SocketAddr::new(at.address, port.service_port));
        }
    }
    let mut editor = snapshot.edit();
    editor.remove_service(&service.key);
    let without = editor.finish();
    assert!(service.addresses.iter().all(|at| without.service_at(&at.network, at.address).is_none()));
}

fn plan(snapshot: &Snapshot, source: &Workload, destination: SocketAddr) {
    for local_node in ["", "node"] {
        let planned = snapshot.plan(local_node, &Outbound { source, destination, seed: 1, avoided: None });
        if let Err(reason) = planned {
            assert!(!reason.to_string().is_empty());
        }
    }
}
