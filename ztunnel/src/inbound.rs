//! What others dial of a pod: HBONE tunnels, whose CONNECT streams are admitted by a proved identity, and
//! plaintext, which is admitted without one.
//!
//! The app is dialled, from the caller's own address, before a CONNECT is answered.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use hbone::{
    Authority, Tunnel,
    client::OpenError,
    copy::{direct, relay},
    server::{Arrival, Ends, Limits, ServeError, serve},
};
use mesh::{Identity, Passage, PortMapping, ServiceKey, Snapshot, Verdict, Workload};
use runtime::record::{Direction, Security};
use tokio::net::TcpStream;

use crate::{
    failure::{Failure, tcp, tell_decision, tell_end},
    live::{Admitted, Carried, Path},
    outbound::until_stopped,
    pods::{Place, Pod},
    sockets::{self, Accepted, FirstBytes},
    worker::{Load, Worker},
};

/// Serves one TCP connection to a pod's HBONE port, with all the streams that come over it.
pub(crate) async fn tunnel(worker: &Rc<Worker>, pod: &Arc<Pod>, accepted: Accepted) {
    let remote = accepted.peer;
    if let Err(error) = Box::pin(serve_tunnel(worker, pod, accepted)).await {
        worker.shared.metrics.handshake_failures.inc();
        tracing::debug!(pod = %pod.uid, %remote, %error, "no tunnel");
    }
}

/// Why a caller got no tunnel.
#[derive(Debug, thiserror::Error)]
enum NoTunnel {
    #[error(transparent)]
    Certificate(#[from] identity::CertificateError),
    #[error("the socket cannot be used: {0}")]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

async fn serve_tunnel(worker: &Rc<Worker>, pod: &Arc<Pod>, accepted: Accepted) -> Result<(), NoTunnel> {
    let shared = &worker.shared;
    let certified = match shared.store.current(&pod.identity) {
        Some(certified) => certified,
        None => shared.store.certified(&pod.identity).await?,
    };
    let config = shared.store.server_config(&certified);
    let ends = Ends { remote: accepted.peer, local: accepted.original };
    let drain = {
        let (shared, accepting) = (shared.clone(), pod.accepting.clone());
        async move {
            tokio::select! {
                () = shared.drain.started() => {}
                () = accepting.cancelled() => {}
            }
        }
    };
    let limits = Limits { settings: shared.settings.hbone.clone(), ..Limits::default() };
    let handler = {
        let (worker, pod) = (worker.clone(), pod.clone());
        move |arrival| {
            // On the heap, and gone when the stream is open: an idle one is to cost little.
            let opening = Box::pin(receive(worker.clone(), pod.clone(), arrival));
            async move {
                let opened = opening.await;
                if let Some(opened) = opened {
                    carry_stream(opened).await;
                }
            }
        }
    };
    shared.metrics.tunnels_accepted.inc();
    let _open = shared.metrics.tunnel_open();
    tokio::select! {
        biased;
        // The streams have been ended one by one, each with its reason; what is left is the shell.
        () = pod.ended.cancelled() => Ok(()),
        served = serve(accepted.take()?, ends, config, &limits, drain, handler) => Ok(served.map(|_| ())?),
    }
}

/// A CONNECT that was accepted: what it takes to carry it on.
struct Opened {
    carried: Carried,
    app: TcpStream,
    tunnel: Tunnel,
    /// The tunnel's, for statistics.
    socket: hbone::Socket,
    _load: Load,
    _place: Place,
}

/// One CONNECT, from its head to its answer; `None` if it was refused.
async fn receive(worker: Rc<Worker>, pod: Arc<Pod>, mut arrival: Arrival) -> Option<Opened> {
    let dialled = SocketAddr::new(arrival.ends.local.ip(), arrival.authority.port());
    let mut record = worker.shared.records.begin(Direction::Inbound, caller(&arrival), dialled);
    record.source_identity(&arrival.peer);
    record.destination_identity(&pod.identity);
    record.security(Security::MutualTls);
    let carried = worker.live.enter(pod, Path::InboundHbone, record);
    let _load = worker.load();
    let (app, baggage, _place) = match open_arrival(&worker, &carried, &mut arrival).await {
        Ok(opened) => opened,
        Err(failure) => {
            worker.shared.metrics.refused(failure.name());
            failure.tell(&carried);
            arrival.refuse(failure.status());
            return None;
        }
    };
    let socket = arrival.socket.clone();
    let tunnel = match arrival.accept(Some(&baggage)) {
        Ok(tunnel) => tunnel,
        Err(_gone) => {
            sockets::reset_on_close(&app);
            Failure::CallerGone.tell(&carried);
            return None;
        }
    };
    carried.record().opened();
    Some(Opened { carried, app, tunnel, socket, _load, _place })
}

/// Carries an accepted CONNECT to its end.
async fn carry_stream(opened: Opened) {
    let Opened { carried, app, tunnel, socket, _load, _place } = opened;
    let end = relay(app, tunnel, &carried.meter, carried.stopped()).await;
    if let Some(Some(stats)) = socket.with_fd(|socket| carried.pod.own.tcp_stats(socket)) {
        carried.record().tcp(tcp(stats));
    }
    tell_end(&end, &carried);
}

/// Who calls, for the record: the tunnel's other end, with the port that the app has there if the caller
/// says so. Nothing is decided by what it says.
fn caller(arrival: &Arrival) -> SocketAddr {
    let said = arrival.forwarded.as_ref().map(|forwarded| forwarded.source);
    said.filter(|said| said.ip() == arrival.ends.remote.ip()).unwrap_or(arrival.ends.remote)
}

async fn open_arrival(
    worker: &Rc<Worker>,
    carried: &Carried,
    arrival: &mut Arrival,
) -> Result<(TcpStream, Rc<str>, Place), Failure> {
    let pod = &carried.pod;
    let state = worker.shared.state_for(pod, arrival.ends.local.ip());
    let (snapshot, workload) = until_stopped(carried, state).await??;
    carried.record().destination(&workload);
    let who = caller_of(worker, carried, arrival).await?;
    let source =
        snapshot.workload_at(&workload.network, who.address).filter(|w| w.identity() == who.identity);
    source.iter().for_each(|workload| carried.record().source(workload));
    let to = resolve(&arrival.authority, arrival.ends.local.ip(), &workload, &snapshot)?;
    carried.record().destination_address(to);
    let place = pod.place(worker.shared.settings.connections_per_pod).ok_or(Failure::PodLimit)?;
    let admitted =
        Admitted::attempt(Some(who.identity), who.address, workload.clone(), to).through(who.through);
    let first = FirstBytes::at_hand(arrival.has_bytes());
    // A caller of the other family of IP cannot be shown to the app: then it sees who brought the call.
    let remote = arrival.ends.remote.ip();
    let from = if who.address.is_ipv4() == to.is_ipv4() { who.address } else { remote };
    let dial = admit_and_dial(worker, carried, &snapshot, admitted, from, to, first);
    let app = tokio::select! {
        biased;
        app = dial => app?,
        () = arrival.cancelled() => return Err(Failure::CallerGone),
    };
    Ok((app, worker.baggage(&workload), place))
}

/// Who calls.
struct Caller {
    identity: Identity,
    address: IpAddr,
    /// The waypoint that brought it.
    through: Option<Passage>,
}

/// Who calls: the other end of the tunnel, unless it brings somebody's assertion. One that is not to be believed is
/// refused: to take its bearer for the caller would give the caller the bearer's rights.
async fn caller_of(worker: &Worker, carried: &Carried, arrival: &Arrival) -> Result<Caller, Failure> {
    let (peer, address) = (&arrival.peer, arrival.ends.remote.ip());
    let Some(assertion) = &arrival.assertion else {
        return Ok(Caller { identity: peer.clone(), address, through: None });
    };
    let shared = &worker.shared;
    let certified = until_stopped(carried, shared.store.certified(&carried.pod.identity)).await?;
    let certified = certified.map_err(OpenError::from)?;
    let verified = shared.assertions.verify(&shared.store, &certified, peer, assertion)?;
    let claims = &verified.claims;
    let mut record = carried.record();
    record.source_identity(&claims.caller);
    record.through(peer);
    let said = arrival.forwarded.as_ref().map_or(0, |forwarded| forwarded.source.port());
    record.source_address(SocketAddr::new(claims.address, said));
    Ok(Caller {
        identity: claims.caller.clone(),
        address: claims.address,
        through: Some(Passage { waypoint: peer.clone(), behind: claims.behind.clone() }),
    })
}

/// Carries one plaintext connection to a pod to its end.
pub(crate) async fn plain(worker: &Rc<Worker>, pod: &Arc<Pod>, accepted: Accepted) {
    let record = worker.shared.records.begin(Direction::Inbound, accepted.peer, accepted.original);
    let carried = worker.live.enter(pod.clone(), Path::InboundPlain, record);
    if let Err(failure) = carry_plain(worker, &carried, &accepted).await {
        worker.shared.metrics.refused(failure.name());
        failure.tell(&carried);
        accepted.reset();
    }
}

async fn carry_plain(worker: &Rc<Worker>, carried: &Carried, accepted: &Accepted) -> Result<(), Failure> {
    let pod = &carried.pod;
    let state = worker.shared.state_for(pod, accepted.original.ip());
    let (snapshot, workload) = until_stopped(carried, state).await??;
    carried.record().destination(&workload);
    let (caller, to) = (accepted.peer.ip(), accepted.original);
    let source = snapshot.workload_at(&workload.network, caller);
    source.iter().for_each(|workload| carried.record().source(workload));
    if !workload.addresses.contains(&to.ip()) {
        return Err(Failure::NotThePod(to.ip()));
    }
    let admitted = Admitted::attempt(None, caller, workload.clone(), to);
    let first = FirstBytes::at_hand(accepted.has_bytes());
    let app = admit_and_dial(worker, carried, &snapshot, admitted, caller, to, first).await?;
    let front = accepted.take().map_err(Failure::Caller)?;
    carried.record().opened();
    let end = direct(front, app, &carried.meter, carried.stopped(), ()).await;
    tell_end(&end, carried);
    Ok(())
}

/// The one way to a pod's app: judged by the snapshot, then dialled from the caller's address.
async fn admit_and_dial(
    worker: &Rc<Worker>,
    carried: &Carried,
    snapshot: &Snapshot,
    admitted: Admitted,
    caller: IpAddr,
    to: SocketAddr,
    first: FirstBytes,
) -> Result<TcpStream, Failure> {
    let pod = &carried.pod;
    if pod.is_own_port(to.port()) {
        return Err(Failure::OwnListener(to));
    }
    let decision = admitted.judge(snapshot);
    tell_decision(&decision, &mut carried.record());
    if let Verdict::Refuse(refusal) = decision.verdict {
        return Err(refusal.into());
    }
    // Set once in the life of a connection: here.
    let _ = carried.admitted.set(admitted);
    let options = &worker.shared.settings.sockets;
    let inside = pod.inside();
    let dial = sockets::onward(&inside, caller, to, first, options, |_from| ());
    until_stopped(carried, dial).await?.map_err(|source| Failure::Dial { to, source })
}

/// The address in the pod that a CONNECT names. Only the pod's own, at which the tunnel arrived, will do:
/// a tunnel must not be a way to anywhere else.
fn resolve(
    authority: &Authority,
    local: IpAddr,
    workload: &Workload,
    snapshot: &Snapshot,
) -> Result<SocketAddr, Failure> {
    let (name, port) = match authority {
        Authority::Ip(address) => {
            let ip = address.ip().to_canonical();
            let own = ip == local && workload.addresses.contains(&ip);
            return if own { Ok(SocketAddr::new(ip, address.port())) } else { Err(Failure::NotThePod(ip)) };
        }
        Authority::Host { name, port } => (name, *port),
    };
    if **name == *workload.hostname {
        return Ok(SocketAddr::new(local, port));
    }
    let service = workload.services.iter().find(|(key, _)| *key.hostname == **name);
    let Some((key, own_ports)) = service else {
        let known = namespace_of(name).is_some_and(|namespace| {
            snapshot.service(&ServiceKey { namespace: namespace.into(), hostname: (**name).into() }).is_some()
        });
        return Err(if known {
            Failure::NotThisHost(name.clone())
        } else {
            Failure::UnknownHost(name.clone())
        });
    };
    let of = |ports: &[PortMapping]| ports.iter().find(|mapping| mapping.service_port == port).copied();
    let service_ports = snapshot.service(key).map(|service| service.ports.as_slice()).unwrap_or_default();
    let mapping = of(own_ports).or_else(|| of(service_ports));
    let mapping = mapping.ok_or_else(|| Failure::NoSuchPort(name.clone(), port))?;
    let target = if mapping.target_port == 0 { mapping.service_port } else { mapping.target_port };
    Ok(SocketAddr::new(local, target))
}

/// The namespace in a Kubernetes service's host name, `NAME.NAMESPACE.svc.…`.
fn namespace_of(host: &str) -> Option<&str> {
    let mut labels = host.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some(_), Some(namespace), Some("svc")) => Some(namespace),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::StatusCode;
    use mesh::{NetworkAddress, Service};

    use super::*;

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "shop".into(), hostname: format!("{name}.shop.svc.cluster.local").into() }
    }

    fn service(name: &str, ports: &[(u16, u16)]) -> Service {
        let ports =
            ports.iter().map(|&(service_port, target_port)| PortMapping { service_port, target_port });
        Service {
            addresses: vec![NetworkAddress { network: "".into(), address: "10.96.0.1".parse().unwrap() }],
            ports: ports.collect(),
            canonical: false,
            ..Service::named(key(name), name)
        }
    }

    fn world() -> (Workload, Snapshot) {
        let mut workload = Workload::named("c//Pod/shop/web", "shop", "web");
        workload.addresses = vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        workload.hostname = "web.example".into();
        let own = vec![PortMapping { service_port: 443, target_port: 8443 }];
        workload.services = BTreeMap::from([(key("web"), own), (key("plain"), Vec::new())]);
        let mut edit = Snapshot::default().edit();
        edit.put_service(service("web", &[(80, 8080), (443, 9999), (81, 0)]));
        edit.put_service(service("plain", &[(80, 8081)]));
        edit.put_service(service("other", &[(80, 8080)]));
        edit.put_workload(workload.clone());
        (workload, edit.finish())
    }

    fn ask(authority: &str) -> Result<SocketAddr, StatusCode> {
        let (workload, snapshot) = world();
        let authority: Authority = authority.parse().unwrap();
        resolve(&authority, "10.1.0.5".parse().unwrap(), &workload, &snapshot)
            .map_err(|failure| failure.status())
    }

    #[test]
    fn an_address_must_be_the_pods_own_at_which_the_tunnel_arrived() {
        assert_eq!(ask("10.1.0.5:80"), Ok("10.1.0.5:80".parse().unwrap()));
        assert_eq!(ask("10.1.0.6:80"), Err(StatusCode::BAD_REQUEST));
        assert_eq!(ask("127.0.0.1:80"), Err(StatusCode::BAD_REQUEST));
        assert_eq!(ask("[fd00::5]:80"), Err(StatusCode::BAD_REQUEST), "the tunnel came to the other address");
    }

    #[test]
    fn a_name_takes_its_port_from_the_endpoint_then_from_the_service() {
        assert_eq!(ask("web.shop.svc.cluster.local:443"), Ok("10.1.0.5:8443".parse().unwrap()));
        assert_eq!(ask("web.shop.svc.cluster.local:80"), Ok("10.1.0.5:8080".parse().unwrap()));
        assert_eq!(ask("web.shop.svc.cluster.local:81"), Ok("10.1.0.5:81".parse().unwrap()));
        assert_eq!(ask("plain.shop.svc.cluster.local:80"), Ok("10.1.0.5:8081".parse().unwrap()));
        assert_eq!(ask("web.example:7000"), Ok("10.1.0.5:7000".parse().unwrap()));
    }

    #[test]
    fn other_names_and_ports_are_refused() {
        assert_eq!(ask("other.shop.svc.cluster.local:80"), Err(StatusCode::BAD_REQUEST));
        assert_eq!(ask("nobody.shop.svc.cluster.local:80"), Err(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(ask("nobody.example:80"), Err(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(ask("web.shop.svc.cluster.local:82"), Err(StatusCode::BAD_REQUEST));
    }
}
