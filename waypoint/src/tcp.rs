//! What is not HTTP: bytes from the caller to an endpoint of what it called, and back.

use std::{io, rc::Rc};

use ::http::StatusCode;
use bytes::BytesMut;
use hbone::{Stream, server::Arrival};
use mesh::Target;
use runtime::record::{Bytes as Carried, Connection as Record, Direction, End, Security};
use tokio::io::{AsyncReadExt, copy_bidirectional};

use crate::{
    arrival::{Call, Failure},
    authorize,
    body::Rewind,
    upstream::{Io, endpoint},
    worker::Worker,
};

/// A connection to an endpoint.
pub(crate) struct Backend {
    target: Target,
    io: Io,
    /// What it has said already.
    said: BytesMut,
}

impl Backend {
    /// Waits until it has said something, or ended.
    pub(crate) async fn listen(&mut self) -> io::Result<()> {
        if self.said.is_empty() {
            self.io.read_buf(&mut self.said).await?;
        }
        Ok(())
    }
}

/// Connects to an endpoint of what was called.
pub(crate) async fn dial(worker: &Rc<Worker>, call: &Rc<Call>) -> Result<Backend, Failure> {
    let target = endpoint(worker, call)?;
    let io = worker.upstream.open(call, &target).await?;
    Ok(Backend { target, io, said: BytesMut::new() })
}

/// Carries an arrival that is known to be no HTTP; an endpoint is dialled before it is answered.
pub(crate) async fn carry(worker: &Rc<Worker>, call: &Rc<Call>, arrival: Arrival) {
    let mut record = begin(worker, call);
    let backend = match authorize::connection(worker, call, &mut record) {
        Ok(()) => dial(worker, call).await,
        Err(refused) => Err(refused),
    };
    let backend = match backend {
        Ok(backend) => backend,
        Err(failure) => {
            worker.shared.metrics.refused(failure.name());
            fail(&mut record, &failure);
            return arrival.refuse(failure.status());
        }
    };
    if let Ok(tunnel) = arrival.accept(None) {
        copy(record, Rewind::new(Default::default(), tunnel.into_stream()), backend).await;
    } else {
        record.end_because(End::ResetBySource, "the caller gave up");
    }
}

/// Carries what has turned out to be no HTTP.
pub(crate) async fn relay(
    worker: &Rc<Worker>,
    call: &Rc<Call>,
    stream: Rewind<Stream>,
    backend: Option<Result<Backend, Failure>>,
) {
    let mut record = begin(worker, call);
    let backend = match (authorize::connection(worker, call, &mut record), backend) {
        (Err(refused), _) => Err(refused),
        (Ok(()), Some(backend)) => backend,
        (Ok(()), None) => dial(worker, call).await,
    };
    match backend {
        Ok(backend) => copy(record, stream, backend).await,
        // Dropping the stream resets the caller.
        Err(failure) => {
            worker.shared.metrics.refused(failure.name());
            fail(&mut record, &failure);
        }
    }
}

fn begin(worker: &Worker, call: &Call) -> Record {
    let to = std::net::SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), call.port);
    let mut record = worker.shared.records.begin(Direction::Waypoint, call.source, to);
    record.source_identity(&call.claims.caller);
    record.security(Security::MutualTls);
    call.workload.iter().for_each(|workload| record.source(workload));
    if let crate::arrival::Called::Service(service) = &call.called {
        record.service(service);
    }
    record
}

fn fail(record: &mut Record, failure: &Failure) {
    let end = if failure.status() == StatusCode::UNAUTHORIZED { End::Denied } else { End::ConnectFailed };
    record.end_because(end, failure);
}

async fn copy(mut record: Record, caller: Rewind<Stream>, backend: Backend) {
    let Backend { target, io, said } = backend;
    record.destination(&target.workload);
    record.destination_address(target.address);
    record.opened();
    let (mut caller, mut backend) = (caller, Rewind::new(said.freeze(), io));
    // What is dropped before both directions have ended is reset on both sides.
    match copy_bidirectional(&mut caller, &mut backend).await {
        Ok((forth, back)) => {
            record.progress(Carried { forth, back });
            record.end(End::Finished);
        }
        Err(error) => record.end_because(End::Broken, error),
    }
}
