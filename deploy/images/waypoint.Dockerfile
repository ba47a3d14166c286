# One static binary and its bill of materials; no shell, no libraries, nothing else to attack or to update.
# Built by `cargo xtask image`, which puts the files beside each other.
FROM scratch
ARG VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Culvert waypoint" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY waypoint /waypoint
COPY sbom.json /sbom.json
# No need of root: it opens ports above 1024 of its own pod.
USER 65532:65532
ENTRYPOINT ["/waypoint"]
