#!/bin/bash
# Puts Prometheus and promtool into .bin: those that are installed, or those of Debian's and Ubuntu's package, unpacked. It needs
# no root and starts nothing. Elsewhere it says what to install.
set -euo pipefail
bin=$(cd "$(dirname "$0")/.." && pwd)/.bin
mkdir -p "$bin"
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
  for program in promtool prometheus; do # no links: make would renew the times of what they lead to
    rm -f "$bin/$program"
    printf '#!/bin/sh\nexec %q "$@"\n' "$(command -v $program)" >"$bin/$program"
    chmod +x "$bin/$program"
  done
  exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
  echo 'Prometheus and promtool are missing: install them from https://prometheus.io/download (2.42 or newer).' >&2
  exit 1
fi
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
cd "$unpacked"
apt-get -qq download prometheus 2>/dev/null || { apt-get -qq update; apt-get -qq download prometheus; }
dpkg -x prometheus_*.deb .
install usr/bin/prometheus usr/bin/promtool "$bin"
