# The images of the shop, static programs and nothing else:
#
#   docker build --build-arg SERVICE=order -t shop-order .     gateway, or a service by its folder in services/
#   docker build --target shop -t shop .                       the command: migrate, audit, …
#
# `make images VERSION=v1.2.3` builds all of them for a release (docs/releasing.md).
#
# BuildKit is needed, for the caches; Docker has had it since 18.09 and uses it by itself since 23.0.
FROM golang:1.26.8 AS build
WORKDIR /src
COPY . .
ARG VERSION
# All programs at once, since they share most of what is compiled.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -ldflags="-s -w -X shop.example/platform/telemetry.Release=${VERSION}" -o /out/ \
    ./gateway ./services/* ./shop && \
    mkdir /out/certs && \
    for name in gateway $(ls services) audit db rabbitmq; do mkdir -p "/out/all/$name"; done

FROM scratch AS base
ARG VERSION
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.licenses="Apache-2.0"
COPY LICENSE /LICENSE
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
# A volume that is mounted on a folder of the image becomes its owner's.
COPY --from=build --chown=65532:65532 /out/certs /certs
USER 65532:65532

FROM base AS shop
# Where `shop certs` finds the volumes of all that it makes certificates for.
COPY --from=build --chown=65532:65532 /out/all /certs
COPY --from=build /out/shop /shop
ENTRYPOINT ["/shop"]

FROM base AS service
ARG SERVICE
COPY --from=build /out/${SERVICE} /service
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 CMD ["/service", "healthcheck"]
ENTRYPOINT ["/service"]
