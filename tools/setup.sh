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
# Ubuntu has Chromium as a snap alone, and apt-get installs nothing if it lacks one of the packages.
without_chromium() {
  [[ " ${packages[*]} " == *' chromium '* && $(LC_ALL=C apt-cache policy chromium) != *'Candidate: '[!\(]* ]] || return 0
  echo 'There is no package chromium here. For the tests of the page (make long) install Google Chrome: https://www.google.com/chrome' >&2
  local others=()
  for package in "${packages[@]}"; do [[ $package == chromium || $package == fonts-liberation ]] || others+=("$package"); done
  packages=("${others[@]}")
  ((${#packages[@]})) || exit 0
}
sudo=()
if ! command -v apt-get >/dev/null; then
  echo 'Install it and try again.' >&2
  exit 1
fi
if ((EUID)) && ! { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; then
  without_chromium
  echo "Install it and try again (sudo apt-get install ${packages[*]})." >&2
  exit 1
fi
((EUID)) && sudo=(sudo -n)
"${sudo[@]}" apt-get -q update >/dev/null || echo 'the package lists could not be renewed; going on with what there is' >&2
without_chromium
echo "installing ${packages[*]}" >&2
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 install --no-install-recommends "${packages[@]}" >/dev/null
