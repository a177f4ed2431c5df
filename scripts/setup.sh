#!/usr/bin/env bash
# Installs and builds what is missing, and says nothing when nothing is.
#
#   scripts/setup.sh run     what `cargo build` needs: a C compiler (for ring)
#   scripts/setup.sh test    that, and the real parts that the tests use (as root, Debian)
#
# The test parts are kept in ${NODEVITALS_CACHE:-~/.cache/nodevitals}: a Kubernetes control plane built from
# tests/control-plane/go.mod (set KUBEBUILDER_ASSETS to use another one), containerd 2 from tests/containerd/go.mod beside
# containerd 1.6 of the distribution, a small Debian root for container images,
# two tiny images, `pause` and `busybox`, BIRD 1.6, whose package cannot be installed beside that of BIRD 2, and the kernel of
# the virtual machine.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${NODEVITALS_CACHE:-$HOME/.cache/nodevitals}
suite=bookworm

# Runtime, network and packet filter of a worker; what makes images; what the tests call themselves.
test_packages=(
  containerd runc containernetworking-plugins
  iptables nftables ipset ipvsadm conntrack bird2 prometheus strace
  buildah debootstrap musl-tools busybox-static
  chromium chromium-driver
  qemu-system-x86
  iproute2 util-linux procps psmisc curl openssl tar systemd
)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_missing() {
  local missing=() package log
  for package in "$@"; do
    installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  [ "$(id -u)" = 0 ] || die "run as root once, or install by hand: ${missing[*]}"
  say "installing ${missing[*]}"
  log=$(mktemp)
  # No service may start: the tests run their own, in their own namespaces.
  if ! { apt-get update -q && with_policy_rc_d env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    die "apt-get failed, the whole log is $log"
  fi
  rm -f "$log"
}

# Debian asks /usr/sbin/policy-rc.d before a package starts its service; an existing one is left alone.
with_policy_rc_d() {
  local policy=/usr/sbin/policy-rc.d status=0
  [ -e "$policy" ] && { "$@"; return; }
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  "$@" || status=$?
  rm -f "$policy"
  return "$status"
}

compiler() {
  command -v cargo >/dev/null || die "cargo is missing: install Rust first (rustup)"
  if ! command -v cc >/dev/null; then
    install_missing gcc libc6-dev
  fi
}

control_plane() {
  local module=$root/tests/control-plane version to building x major minor rest
  version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$module/go.mod")
  to=$cache/control-plane-$version
  [ -n "${KUBEBUILDER_ASSETS:-}" ] && return
  [ -d "$to" ] && return
  command -v go >/dev/null || die "go is missing: the control plane is built with it (or set KUBEBUILDER_ASSETS)"
  say "building Kubernetes $version (about 7 minutes the first time)"
  IFS=. read -r major minor rest <<<"${version#v}"
  x=k8s.io/component-base/version
  building=$(mktemp -d "$cache/building.XXXXXX")
  (cd "$module" && GOTOOLCHAIN=local go build -buildvcs=false -o "$building/" -ldflags \
    "-s -w -X $x.gitVersion=$version -X $x.gitMajor=$major -X $x.gitMinor=$minor" tool) ||
    { rm -rf "$building"; die "the control plane does not build"; }
  mv "$building/server" "$building/etcd" # the package go.etcd.io/etcd/server
  chmod 755 "$building"
  mv -T "$building" "$to"
}

containerd_2() {
  local module=$root/tests/containerd version to building
  version=$(awk '$1 == "github.com/containerd/containerd/v2" { print $2 }' "$module/go.mod")
  to=$cache/containerd-$version
  [ -d "$to" ] && return
  command -v go >/dev/null || die "go is missing: containerd is built with it"
  say "building containerd $version (about 2 minutes the first time)"
  building=$(mktemp -d "$cache/building.XXXXXX")
  (cd "$module" && GOTOOLCHAIN=local CGO_ENABLED=0 go build -buildvcs=false -tags "no_btrfs no_devmapper no_zfs" \
    -o "$building/" -ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$version" tool) ||
    { rm -rf "$building"; die "containerd does not build"; }
  chmod 755 "$building"
  mv -T "$building" "$to"
}

# The mirror of this machine's own apt sources.
mirror() {
  # shellcheck disable=SC2016 # apt's own format, not the shell's
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v suite="$suite" '$2 == suite && $3 == "main" { print $1; exit }'
}

base_root() {
  local to=$cache/base-$suite.tar building from
  [ -e "$to" ] && return
  from=$(mirror)
  [ -n "$from" ] || die "no apt source of this machine offers Debian $suite main"
  say "making a Debian $suite root for container images (about a minute)"
  building=$(mktemp -d "$cache/building.XXXXXX")
  if ! debootstrap --variant=minbase --include=iptables,ca-certificates "$suite" "$building/root" "$from" \
      >"$building/log" 2>&1; then
    tail -n 20 "$building/log" >&2
    rm -rf "$building"
    die "debootstrap failed"
  fi
  tar -C "$building/root" --numeric-owner --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' \
    --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./usr/share/doc/*' \
    --exclude='./usr/share/locale/*' --exclude='./usr/share/man/*' -cf "$building/base.tar" .
  mv "$building/base.tar" "$to"
  rm -rf "$building"
}

bird_1() {
  local to=$cache/bird-1.6 building
  [ -e "$to" ] && return
  say "fetching BIRD 1.6"
  building=$(mktemp -d "$cache/building.XXXXXX")
  if ! { apt-get update -q && cd "$building" && apt-get download -q bird && dpkg-deb -x bird_*.deb root; } \
      >"$building/log" 2>&1; then
    tail -n 20 "$building/log" >&2
    rm -rf "$building"
    die "the package bird cannot be fetched"
  fi
  chmod 755 "$building/root"
  mv -T "$building/root" "$to"
  rm -rf "$building"
  cd "$root"
}

# Debian's kernel for virtual machines, with the modules that it loads in the tests: those of the packet filter, connection
# tracking, IPVS and WireGuard, a link and a disk.
kernel() {
  local to=$cache/linux-$suite building package version
  # One that was fetched earlier may lack a module.
  [ -n "$(find "$to" -name wireguard.ko 2>/dev/null)" ] && return
  say "fetching the kernel of the virtual machine"
  building=$(mktemp -d "$cache/building.XXXXXX")
  if ! { apt-get update -q && cd "$building" &&
      package=$(LC_ALL=C apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2 }') &&
      apt-get download -q "$package" && dpkg-deb -x linux-image-*.deb root && version=$(ls root/lib/modules) &&
      mkdir -p "kernel/lib/modules/$version" && cp root/boot/vmlinuz-* kernel/vmlinuz &&
      (cd "root/lib/modules/$version" && cp -r --parents kernel/net/{,ipv4/,ipv6/}netfilter kernel/lib/libcrc32c.ko \
        kernel/drivers/{net/dummy,net/wireguard/wireguard,block/brd}.ko kernel/net/{ipv4/udp_tunnel,ipv6/ip6_udp_tunnel}.ko \
        kernel/lib/crypto kernel/arch/x86/crypto/{chacha,poly1305,curve25519}-x86_64.ko \
        "$building/kernel/lib/modules/$version/") &&
      busybox depmod -b "$building/kernel" "$version"; } >"$building/log" 2>&1; then
    tail -n 20 "$building/log" >&2
    rm -rf "$building"
    die "the package linux-image-cloud-amd64 cannot be fetched"
  fi
  rm -rf "$to"
  mv -T "$building/kernel" "$to"
  rm -rf "$building"
  cd "$root"
}

# one_layer_image NAME DIRECTORY ENTRYPOINT ARCHIVE: an archive that `ctr images import` takes.
one_layer_image() {
  local name=$1 from=$2 entrypoint=$3 to=$4 building layer config
  building=$(mktemp -d "$cache/building.XXXXXX")
  tar -C "$from" --numeric-owner --owner=0 --group=0 -cf "$building/layer.tar" .
  layer=$(sha256sum "$building/layer.tar" | cut -d' ' -f1)
  printf '{"architecture":"amd64","os":"linux","config":{"Entrypoint":["%s"],"Env":["PATH=/bin"]},"rootfs":%s}' \
    "$entrypoint" "{\"type\":\"layers\",\"diff_ids\":[\"sha256:$layer\"]}" >"$building/config.json"
  config=$(sha256sum "$building/config.json" | cut -d' ' -f1)
  mv "$building/config.json" "$building/$config.json"
  printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$config" "$name" \
    >"$building/manifest.json"
  tar -C "$building" -cf "$building/image.tar" manifest.json "$config.json" layer.tar
  mv "$building/image.tar" "$to"
  rm -rf "$building"
}

pause_image() {
  local to=$cache/pause.tar from
  [ -e "$to" ] && return
  from=$(mktemp -d)
  gcc -O2 -static -x c -o "$from/pause" - <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0) ; }
int main(void) { signal(SIGTERM, leave); signal(SIGINT, leave); signal(SIGCHLD, reap); for (;;) pause(); }
C
  one_layer_image docker.io/library/pause:test "$from" /pause "$to"
  rm -rf "$from"
}

busybox_image() {
  local to=$cache/busybox.tar from
  [ -e "$to" ] && return
  from=$(mktemp -d)
  mkdir -p "$from/bin" "$from/tmp" "$from/www"
  cp /bin/busybox "$from/bin/busybox"
  chroot "$from" /bin/busybox --install -s /bin
  one_layer_image docker.io/library/busybox:test "$from" /bin/sh "$to"
  rm -rf "$from"
}

test_parts() {
  [ "$(id -u)" = 0 ] || die "the tests make namespaces and mounts: run them as root"
  install_missing gcc libc6-dev "${test_packages[@]}"
  mkdir -p "$cache"
  exec 9>"$cache/.lock"
  flock -n 9 || { say "waiting for another setup"; flock 9; }
  rm -rf "$cache"/building.*
  control_plane
  containerd_2
  base_root
  pause_image
  busybox_image
  bird_1
  kernel
}

case ${1:-run} in
  run) compiler ;;
  test)
    compiler
    test_parts
    ;;
  *) die "usage: scripts/setup.sh [run|test]" ;;
esac
