# One static binary and its bill of materials; no shell, no libraries, nothing else to attack or to update.
# Built by `cargo xtask image`, which puts the files beside each other.
FROM scratch
ARG VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Culvert node agent" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY agent /agent
# The agent installs it on the node.
COPY culvert-cni /culvert-cni
COPY sbom.json /sbom.json
# Root of the node, by named capabilities: it loads kernel programs and enters network namespaces.
USER 0:0
ENTRYPOINT ["/agent"]
