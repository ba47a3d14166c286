//! What a pod dials: captured, planned by one snapshot, and carried straight on, to another pod of this
//! node, or through a tunnel.
//!
//! What is refused, or cannot be dialled, is reset towards the app with a reason in the record.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use hbone::{
    Tunnel,
    client::{Connect, Key, OpenError, Tries, TunnelInfo},
    copy::{direct, relay},
};
use identity::assertion::Claims;
use mesh::{Behind, Identity, Outbound, Plan, PlanError, Snapshot, Target, Verdict, Workload};
use runtime::record::{Direction, End, Security};
use tokio::net::TcpStream;

use crate::{
    dns,
    failure::{Failure, tcp, tell_decision, tell_end},
    live::{Admitted, Carried, Path, Stop},
    pods::{Place, Pod},
    sockets::{self, Accepted, FirstBytes, Measure},
    splice::{self, App, Splice},
    vouch::{self, Vouched},
    worker::Worker,
};

/// The port of HBONE at every pod.
const HBONE_PORT: u16 = 15008;

/// Carries one captured connection to its end.
pub(crate) async fn carry(worker: &Rc<Worker>, pod: &Arc<Pod>, accepted: Accepted) {
    if is_probe(accepted.original) {
        // The agent measures that capture works; that it got here is the answer.
        return;
    }
    let record = worker.shared.records.begin(Direction::Outbound, accepted.peer, accepted.original);
    let carried = worker.live.enter(pod.clone(), Path::Outbound, record);
    if let Err(failure) = go(worker, &carried, &accepted).await {
        worker.shared.metrics.refused(failure.name());
        failure.tell(&carried);
        accepted.reset();
    }
}

/// The address of the agent's probe connections.
fn is_probe(address: SocketAddr) -> bool {
    address.port() == capture::PROBE_PORT
        && (address.ip() == IpAddr::from(capture::PROBE_V4)
            || address.ip() == IpAddr::from(capture::PROBE_V6))
}

async fn go(worker: &Rc<Worker>, carried: &Carried, accepted: &Accepted) -> Result<(), Failure> {
    let pod = &carried.pod;
    if pod.is_own_port(accepted.original.port()) && is_of_the_pod_alone(accepted.original.ip()) {
        // Whatever the state of the mesh, so it need not be waited for.
        return Err(Failure::OwnListener(accepted.original));
    }
    let limit = worker.shared.settings.hbone.dial_timeout + worker.shared.settings.hbone.handshake_timeout;
    let tries = Tries::new(&pod.peers, limit);
    loop {
        // Anew for each try: one may take seconds, and what is decided on a node is decided by what holds now.
        let state = worker.shared.state_for(pod, accepted.peer.ip());
        let (snapshot, source) = until_stopped(carried, state).await??;
        carried.record().source(&source);
        check(pod, &source, accepted)?;
        let call = Call { worker, pod, carried, accepted, source: &source };
        let plan = call.plan(&snapshot, &tries).await?;
        match call.follow(plan, &snapshot, &tries).await {
            // Nothing was sent: it may go to another, or wait for this one after all.
            Err(Failure::Open(source) | Failure::Waypoint { source, .. }) if tries.again(&source) => {
                tracing::debug!(pod = %pod.uid, error = %source, "another is chosen");
                worker.shared.metrics.chosen_again.inc();
            }
            carried => return carried,
        }
    }
}

/// An address that leads nowhere but into the namespace that it is dialled in.
fn is_of_the_pod_alone(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// A captured connection comes from the pod's own address and goes elsewhere; anything else has found
/// our listener by another way, and carrying it on could lead back to us.
fn check(pod: &Pod, source: &Workload, accepted: &Accepted) -> Result<(), Failure> {
    let to = accepted.original;
    let local = is_of_the_pod_alone(to.ip()) || source.addresses.contains(&to.ip());
    if local && pod.is_own_port(to.port()) {
        return Err(Failure::OwnListener(to));
    }
    if source.addresses.contains(&accepted.peer.ip()) {
        Ok(())
    } else {
        Err(Failure::NotThePod(accepted.peer.ip()))
    }
}

/// A tunnel's other end: where it is, who it must be, and what it is asked for.
struct Way {
    peer: SocketAddr,
    expected: Arc<[Identity]>,
    authority: String,
}

struct Call<'a> {
    worker: &'a Rc<Worker>,
    pod: &'a Arc<Pod>,
    carried: &'a Carried,
    accepted: &'a Accepted,
    source: &'a Arc<Workload>,
}

impl Call<'_> {
    /// Where it goes: past whoever does not answer.
    async fn plan(&self, snapshot: &Snapshot, tries: &Tries<'_>) -> Result<Plan, Failure> {
        let avoided = |ip| tries.avoids(ip);
        let (to, node) = (self.accepted.original, &self.worker.shared.settings.node);
        let outbound =
            Outbound { source: self.source, destination: to, seed: rand::random(), avoided: Some(&avoided) };
        let plan = snapshot.plan(node, &outbound)?;
        let Plan::Named { workload, service, port } = plan else { return Ok(plan) };
        let host = workload.hostname.clone();
        // An address of a family that the pod has none of is of no use to it.
        let either = self.source.addresses.iter().any(|ip| ip.is_ipv4() != to.is_ipv4());
        let resolve = dns::resolve(self.pod, &host, to.is_ipv4(), either, rand::random_range(0..64));
        let found = until_stopped(self.carried, Box::pin(resolve)).await?;
        let ip = found.map_err(|source| Failure::Unresolved { host: (&*host).into(), source })?;
        let target = Target { workload, address: SocketAddr::new(ip, port), service: Some(service) };
        Ok(snapshot.plan_resolved(node, &outbound, target)?)
    }

    /// Goes there.
    async fn follow(&self, plan: Plan, snapshot: &Snapshot, tries: &Tries<'_>) -> Result<(), Failure> {
        match plan {
            Plan::Passthrough { to } if self.is_dns() => Box::pin(self.dns(Path::Passthrough, to)).await,
            Plan::Passthrough { to } => Box::pin(self.plain(Path::Passthrough, to)).await,
            // It was resolved.
            Plan::Named { service, .. } => Err(PlanError::NoAddress(service.key.clone()).into()),
            Plan::Plain(target) => {
                self.tell(&target);
                if self.is_dns() {
                    return Box::pin(self.dns(Path::Plain, target.address)).await;
                }
                Box::pin(self.plain(Path::Plain, target.address)).await
            }
            Plan::SameNode(target) => {
                self.tell(&target);
                match self.worker.shared.pods.find(&target.workload) {
                    Some(there) => Box::pin(self.same_node(there, snapshot, target)).await,
                    // The pod is another ztunnel's for now (a takeover, say): go the way strangers go.
                    None => {
                        let peer = SocketAddr::new(target.address.ip(), HBONE_PORT);
                        let expected = Arc::from([target.workload.identity()]);
                        let way = Way { peer, expected, authority: target.address.to_string() };
                        self.hbone(Box::pin(self.open_tunnel(&target, way, None, tries)).await?).await
                    }
                }
            }
            Plan::Hbone { target, peer, expected, authority } => {
                self.tell(&target);
                let way = Way { peer, expected, authority };
                self.hbone(Box::pin(self.open_tunnel(&target, way, None, tries)).await?).await
            }
            Plan::Waypoint { target, expected, authority, behind } => {
                self.tell(&target);
                let way = Way { peer: target.address, expected, authority };
                let open = self.open_waypoint(&target, way, behind, tries);
                let (opened, _vouched) = Box::pin(open).await?;
                self.hbone(opened).await
            }
        }
    }

    /// Writes into the record whom the plan chose.
    fn tell(&self, target: &Target) {
        let mut record = self.carried.record();
        record.destination(&target.workload);
        record.destination_address(target.address);
        target.service.iter().for_each(|service| record.service(service));
    }

    /// The pod's address of the family of `to`: the caller's own where it can be.
    fn source_ip(&self, to: SocketAddr) -> Result<IpAddr, Failure> {
        let mut own = std::iter::once(self.accepted.peer.ip()).chain(self.source.addresses.iter().copied());
        own.find(|ip| ip.is_ipv4() == to.is_ipv4()).ok_or(Failure::NoSourceAddress(to))
    }

    /// The app that calls.
    fn caller(&self) -> App {
        App { pod: self.pod.clone(), local: self.accepted.peer, remote: self.accepted.original }
    }

    fn app(&self) -> Result<TcpStream, Failure> {
        self.accepted.take().map_err(Failure::Caller)
    }

    async fn plain(&self, path: Path, to: SocketAddr) -> Result<(), Failure> {
        let carried = self.carried;
        splice::release(&self.worker.shared, &self.caller());
        carried.path.set(path);
        let from = self.source_ip(to)?;
        let options = &self.worker.shared.settings.sockets;
        let dial = sockets::dial(&self.pod.netns, &self.pod.own, Some(from), to, Measure::No, options);
        let there = until_stopped(carried, dial).await?.map_err(|source| Failure::Dial { to, source })?;
        let app = self.app()?;
        carried.record().opened();
        let end = direct(app, there, &carried.meter, carried.stopped(), ()).await;
        tell_end(&end, carried);
        Ok(())
    }

    /// Whether it goes to a resolver whose part we take. One that is reached by the mesh is carried to as ever:
    /// what it may be asked is a matter of policy.
    fn is_dns(&self) -> bool {
        self.pod.dns.is_some() && self.accepted.original.port() == dns::PORT
    }

    /// Answers queries, and passes the others on to the resolver at `to`.
    async fn dns(&self, path: Path, to: SocketAddr) -> Result<(), Failure> {
        let carried = self.carried;
        splice::release(&self.worker.shared, &self.caller());
        carried.path.set(path);
        let from = self.source_ip(to)?;
        let options = &self.worker.shared.settings.sockets;
        let dial = async || {
            sockets::dial(&self.pod.netns, &self.pod.own, Some(from), to, Measure::No, options).await
        };
        let app = self.app()?;
        carried.record().opened();
        let asked = (self.accepted.peer.ip(), self.accepted.original);
        match until_stopped(carried, dns::carry(self.worker, self.pod, app, asked, dial)).await? {
            Ok(()) => carried.records(|record| record.end(End::Finished)),
            Err(error) => carried.records(|record| record.end_because(End::Broken, &error)),
        }
        Ok(())
    }

    async fn same_node(&self, there: Arc<Pod>, snapshot: &Snapshot, target: Target) -> Result<(), Failure> {
        let (carried, to) = (self.carried, target.address);
        carried.path.set(Path::SameNode);
        let caller = self.source_ip(to)?;
        let mut inbound = self.worker.shared.records.begin(
            Direction::Inbound,
            SocketAddr::new(caller, self.accepted.peer.port()),
            to,
        );
        inbound.source(self.source);
        inbound.destination(&target.workload);
        target.service.iter().for_each(|service| inbound.service(service));
        carried.add_inbound(inbound);
        carried.records(|record| {
            record.source_identity(&self.pod.identity);
            record.destination_identity(&there.identity);
            record.security(Security::SameNode);
        });
        if there.is_own_port(to.port()) {
            return Err(Failure::OwnListener(to));
        }
        let _place = self.place_at(&there)?;
        let admitted = Admitted::attempt(Some(self.pod.identity.clone()), caller, target.workload, to);
        let decision = admitted.judge(snapshot);
        carried.judging_record(|record| tell_decision(&decision, record));
        if let Verdict::Refuse(refusal) = decision.verdict {
            return Err(refusal.into());
        }
        // Both are set once in the life of a connection: here.
        let _ = (carried.admitted.set(admitted), carried.other.set(there.clone()));
        let shared = &self.worker.shared;
        let mut splice = Splice::new(shared, carried, self.caller(), &there, to);
        let expect = |from| splice.iter_mut().for_each(|splice| splice.expect(from));
        let inside = there.inside();
        let first = FirstBytes::at_hand(self.accepted.has_bytes());
        let dial = sockets::onward(&inside, caller, to, first, &shared.settings.sockets, expect);
        let onward = until_stopped(carried, dial).await?.map_err(|source| Failure::Dial { to, source })?;
        let app = self.app()?;
        carried.records(runtime::record::Connection::opened);
        let end = direct(app, onward, &carried.meter, carried.stopped(), splice).await;
        tell_end(&end, carried);
        Ok(())
    }

    /// A place at the destination; a pod that calls itself has its place already.
    fn place_at(&self, there: &Arc<Pod>) -> Result<Option<Place>, Failure> {
        if Arc::ptr_eq(there, self.pod) {
            return Ok(None);
        }
        let limit = self.worker.shared.settings.connections_per_pod;
        there.place(limit).map(Some).ok_or(Failure::PodLimit)
    }

    /// A tunnel to a waypoint, which is told who calls by what only the caller's key can sign.
    async fn open_waypoint(
        &self,
        target: &Target,
        way: Way,
        behind: Behind,
        tries: &Tries<'_>,
    ) -> Result<((Tunnel, TunnelInfo), Vouched), Failure> {
        let waypoint = &target.workload;
        let name = || format!("{}/{}", waypoint.namespace, waypoint.name).into();
        let shared = &self.worker.shared;
        let certified = until_stopped(self.carried, shared.store.certified(&self.pod.identity)).await?;
        let certified = certified.map_err(OpenError::from)?;
        let claims = Claims {
            caller: self.pod.identity.clone(),
            address: self.accepted.peer.ip(),
            waypoint: waypoint.identity(),
            behind,
        };
        let assertion = shared.assertions.assert(&shared.store, &certified, &claims)?;
        let key = self.key(way.peer, way.expected.clone())?;
        let open = self.open_tunnel(target, way, Some(assertion), tries);
        let opened = open.await.map_err(|failure| match failure {
            Failure::Open(source) => Failure::Waypoint { waypoint: name(), source },
            other => other,
        })?;
        Ok((opened, vouch::vouch(self.worker, self.pod, key, claims)))
    }

    /// Whose tunnel it takes.
    fn key(&self, peer: SocketAddr, expected: Arc<[Identity]>) -> Result<Key, Failure> {
        let source_ip = self.source_ip(peer)?;
        Ok(Key { source: self.pod.identity.clone(), source_ip, peer, expected })
    }

    async fn open_tunnel(
        &self,
        target: &Target,
        Way { peer, expected, authority }: Way,
        assertion: Option<Arc<str>>,
        tries: &Tries<'_>,
    ) -> Result<(Tunnel, TunnelInfo), Failure> {
        let carried = self.carried;
        splice::release(&self.worker.shared, &self.caller());
        carried.path.set(Path::Hbone);
        let key = self.key(peer, expected)?;
        let source_ip = key.source_ip;
        let connect = Connect {
            authority,
            source: self.accepted.peer,
            service_host: target.service.as_ref().map(|service| service.key.hostname.to_string()),
            baggage: Some(self.worker.baggage(self.source).to_string()),
            traceparent: None,
            assertion,
        };
        {
            let mut record = carried.record();
            record.tunnel(peer);
            record.source_identity(&self.pod.identity);
            record.security(Security::MutualTls);
        }
        let (pod, shared) = (self.pod.clone(), self.worker.shared.clone());
        let dial = async move || {
            shared.metrics.tunnels_dialled.inc();
            let options = &shared.settings.sockets;
            sockets::dial(&pod.netns, &pod.own, Some(source_ip), peer, Measure::Yes, options).await
        };
        let pool = self.worker.pool(self.pod);
        let mut early = |buffer: &mut [u8]| self.accepted.read_now(buffer);
        let patience = Some(tries.patience(peer.ip()));
        let open = pool.open_with(&key, dial, &connect, &mut early, patience);
        Ok(until_stopped(carried, open).await??)
    }

    async fn hbone(&self, opened: (Tunnel, TunnelInfo)) -> Result<(), Failure> {
        let (carried, (tunnel, info)) = (self.carried, opened);
        let app = self.app()?;
        {
            let mut record = carried.record();
            record.destination_identity(&info.peer);
            record.opened();
        }
        let end = relay(app, tunnel, &carried.meter, carried.stopped()).await;
        if let Some(Some(stats)) = info.socket.with_fd(|socket| self.pod.own.tcp_stats(socket)) {
            carried.record().tcp(tcp(stats));
        }
        tell_end(&end, carried);
        Ok(())
    }
}

/// Waits for `work` unless the connection is ended first.
pub(crate) async fn until_stopped<T>(carried: &Carried, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = carried.stopped() => Err(Failure::Stopped(carried.reason().unwrap_or(Stop::Ends))),
        done = work => Ok(done),
    }
}
