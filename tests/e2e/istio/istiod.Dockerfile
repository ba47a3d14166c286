# istiod, for `cargo xtask e2e --istio`.
FROM scratch
COPY pilot-discovery /usr/local/bin/pilot-discovery
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/pilot-discovery"]
