//! Messages between the node's agent and a ztunnel, either way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::workload::zds::{WorkloadRequest, WorkloadResponse, ZdsHello};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = WorkloadRequest::decode(bytes) {
        assert_eq!(WorkloadRequest::decode(request.encode_to_vec().as_slice()), Ok(request));
    }
    let _ = WorkloadResponse::decode(bytes);
    let _ = ZdsHello::decode(bytes);
});
