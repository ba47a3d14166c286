# The stand-in for the echo image of the Gateway API's conformance suite, which runs `client` inside its pods.
FROM scratch
COPY app /app
COPY app /usr/local/bin/client
COPY sbom.json /sbom.json
USER 65532:65532
ENTRYPOINT ["/app", "echo-server"]
