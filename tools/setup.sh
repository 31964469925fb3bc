#!/bin/bash
# Installs what `make test` needs besides Go and make, if it is missing: on Debian and Ubuntu, as root or with sudo.
# Elsewhere it says what to install. PostgreSQL and RabbitMQ are not among it: `shopdev exec` brings its own.
set -euo pipefail

missing=() packages=()
need() { # need WHAT PACKAGE... -- COMMAND...: the packages, if the command fails
  local what=$1 those=()
  shift
  while [[ $1 != -- ]]; do those+=("$1"); shift; done
  shift
  "$@" >/dev/null 2>&1 || { missing+=("$what"); packages+=("${those[@]}"); }
}
compiles() { echo '#include <stdlib.h>' | "${CC:-cc}" -E -; }
browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

need 'git (contracts are compared with main)' git -- command -v git
need 'curl (the commands in the documents)' curl ca-certificates -- command -v curl
need 'a C compiler (the race detector)' gcc libc6-dev -- compiles
need 'Chromium (the tests of the page)' chromium fonts-liberation -- browser

((${#missing[@]})) || exit 0
printf 'missing: %s\n' "${missing[@]}" >&2
sudo=()
if ! command -v apt-get >/dev/null || { ((EUID)) && ! { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }; then
  echo "Install it and try again (Debian, Ubuntu: sudo apt-get install ${packages[*]})." >&2
  exit 1
fi
((EUID)) && sudo=(sudo -n)
echo "installing ${packages[*]}" >&2
"${sudo[@]}" apt-get -q update >/dev/null || echo 'the package lists could not be renewed; going on with what there is' >&2
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 install --no-install-recommends "${packages[@]}" >/dev/null
