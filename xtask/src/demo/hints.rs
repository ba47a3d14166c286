//! What to try in a world that was kept.

use bed::{World, mesh};

/// Prints the hints.
pub(crate) fn print(world: &World) {
    let id = world.id();
    let manifests = world.manifests().folder().display();
    let logs = world.folder().join("logs");
    let inside = |pod: &str| format!("ip netns exec cv{id}-{pod}");
    let front = inside("shop-storefront");
    println!(
        "
  Everything is still running. Try:

    a shell in a pod            {front} bash
    a call over the wire        {front} curl http://10.96.0.1/
    one that policy refuses     {intern} curl http://10.96.0.1/
    who calls whom              tail -f {logs}/b-ztunnel.log
    the manifests, live         ls {manifests}
      un-enroll the shop        sed -i 's/: ambient/: none/' {manifests}/namespace-shop.yaml
      enroll it again           sed -i 's/: none/: ambient/' {manifests}/namespace-shop.yaml
    what a ztunnel knows        {node} curl -s http://127.0.0.1:{admin}/config_dump
    what it carries now         {node} curl -s http://127.0.0.1:{admin}/connections
    what it counts              {node} curl -s http://127.0.0.1:{metrics}/metrics
    more in its log             {node} curl -s -X POST 'http://127.0.0.1:{admin}/logging?level=debug'
    the wire                    {wire} tcpdump -ni br0      (package tcpdump)

  Remove it:  cargo xtask demo --down",
        intern = inside("shop-intern"),
        node = inside("a"),
        wire = inside("wire"),
        logs = logs.display(),
        admin = mesh::ADMIN,
        metrics = mesh::METRICS,
    );
}
