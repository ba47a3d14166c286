# The traffic program of the tests, for `cargo xtask kind`; never shipped.
FROM scratch
ARG VERSION
LABEL org.opencontainers.image.title="Culvert traffic program" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY app /app
COPY sbom.json /sbom.json
USER 65532:65532
ENTRYPOINT ["/app"]
