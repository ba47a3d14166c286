# istio-cni, for `cargo xtask e2e --istio`: with the iptables of the cluster's nodes, since it has none of its own.
FROM scratch
ADD iptables.tar /
COPY istio-cni /opt/cni/bin/istio-cni
COPY install-cni /usr/local/bin/install-cni
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/cni/bin
WORKDIR /opt/cni/bin
CMD ["/usr/local/bin/install-cni"]
