# Installs packages (the arguments) without what Debian would do with them besides: start their services, now or at
# boot, and make a main PostgreSQL cluster. A service that is there already is left as it is.
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.d/shop.conf
ours=''
cleanup() {
  if [ -n "$ours" ]; then rm -f "$policy"; fi
  rm -f "$clusters"
  rmdir --ignore-fail-on-non-empty /etc/postgresql-common/createcluster.d 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e "$policy" ]; then
  ours=1
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
mkdir -p "${clusters%/*}"
echo 'create_main_cluster = false' >"$clusters"
apt="apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
new=''
for package in "$@"; do
  installed "$package" || new="$new $package"
done
mapper='epmd.socket epmd.service' # Erlang's port mapper comes with RabbitMQ
if installed erlang-base; then mapper=''; fi
$apt update || echo 'the package lists could not be renewed; going on with what there is'
$apt install --no-install-recommends "$@"
for package in $new; do
  update-rc.d "$package" disable || true
done
if [ -n "$mapper" ] && command -v systemctl >/dev/null; then
  systemctl disable $mapper || true
fi
