//! What to try in a world that was kept.

use bed::{World, mesh};

/// Prints the hints.
pub(crate) fn print(world: &World) {
    let id = world.id();
    let manifests = world.manifests().folder();
    let logs = world.folder().join("logs");
    let inside = |pod: &str| format!("ip netns exec cv{id}-{pod}");
    let front = inside("shop-storefront");
    println!(
        "
  Everything is still running. For what follows:

    M={manifests}
    L={logs}
    A=http://127.0.0.1:{admin}

  Then try:

    a shell in a pod            {front} bash
    a call over the wire        {front} curl http://10.96.0.1/
    one that policy refuses     {intern} curl http://10.96.0.1/
    a call that lasts           {front} redis-cli -h 10.20.2.2 SUBSCRIBE news
      what ztunnel carries      {node} curl -s $A/connections
    who calls whom              tail -f $L/b-ztunnel.log
    the manifests, live         ls $M
      break a policy            sed -i 's/principals/principles/' $M/policy-*.yaml; tail $L/control.log
      mend it                   sed -i 's/principles/principals/' $M/policy-*.yaml
      un-enroll the shop        sed -i 's/: ambient/: none/' $M/namespace-shop.yaml
        (10.96.0.1 is known to the mesh only: call 10.20.2.1 then; policies go, too)
      enroll it again           sed -i 's/: none/: ambient/' $M/namespace-shop.yaml
    what a ztunnel knows        {node} curl -s $A/config_dump
    what it counts              {node} curl -s http://127.0.0.1:{metrics}/metrics
    more in a-ztunnel-2.log     {node} curl -s -X POST \"$A/logging?level=debug\"
    the wire                    {wire} tcpdump -ni br0      (package tcpdump)

  Remove it:  cargo xtask demo --down",
        intern = inside("shop-intern"),
        node = inside("a"),
        wire = inside("wire"),
        logs = logs.display(),
        manifests = manifests.display(),
        admin = mesh::ADMIN,
        metrics = mesh::METRICS,
    );
}
