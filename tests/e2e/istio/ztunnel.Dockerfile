# Istio's ztunnel, for `cargo xtask e2e --istio`.
FROM scratch
COPY ztunnel /ztunnel
ENTRYPOINT ["/ztunnel"]
