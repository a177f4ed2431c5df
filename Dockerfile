# buildah bud -t nodevitals .                     or docker build
#
# Both bases can be replaced: by a mirror, or by a tree made with debootstrap where no registry is reachable.
ARG BUILD_IMAGE=docker.io/library/rust:1-bookworm
ARG RUN_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
# A binary in the build context to take as it is, instead of compiling. It must run on RUN_IMAGE's libc.
ARG PREBUILT=
WORKDIR /src
COPY . .
RUN set -eu; \
    mkdir -p /out; \
    if [ -n "$PREBUILT" ]; then \
        cp "$PREBUILT" /out/nodevitals; \
    else \
        cp "$(scripts/build.sh)" /out/nodevitals; \
    fi; \
    chmod 0755 /out/nodevitals

FROM ${RUN_IMAGE}
LABEL org.opencontainers.image.title="nodevitals" \
      org.opencontainers.image.description="Tells what is wrong with a Kubernetes worker, why, since when, and what to do next." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/nodevitals/nodevitals"
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# iptables-legacy-save and ip6tables-legacy-save read the legacy tables; nf_tables are read over netlink, without a tool.
RUN set -eu; \
    if ! command -v iptables-legacy-save >/dev/null || ! command -v ip6tables-legacy-save >/dev/null; then \
        apt-get update; \
        apt-get install -y --no-install-recommends iptables; \
        rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*; \
    fi
COPY --from=build /out/nodevitals /usr/local/bin/nodevitals
# Root, because the agent reads what only root may read. The aggregator's pod says runAsUser itself.
ENTRYPOINT ["nodevitals"]
