# One static binary and its bill of materials; no shell, no libraries, nothing else to attack or to update.
# Built by `cargo xtask image`, which puts the files beside each other.
FROM scratch
ARG VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Culvert layer-4 proxy" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY ztunnel /ztunnel
COPY sbom.json /sbom.json
# Root, by named capabilities: it opens sockets in the network namespaces of pods.
USER 0:0
ENTRYPOINT ["/ztunnel"]
