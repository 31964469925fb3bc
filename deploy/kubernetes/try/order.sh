#!/usr/bin/env bash
# Places the sample order in the shop of the current context, and fails unless it is confirmed. The argument is the command `shop`.
set -euo pipefail
# Else the command would show this shop the token of the last `make up` in this folder, which it does not know.
SHOP_OPERATOR_TOKEN=$(sed -nE 's/^SHOP_OPERATOR_TOKENS=[^:]*:([^,]*).*/\1/p' "${0%/*}/secrets/shop.env")
export SHOP_OPERATOR_TOKEN
log=$(mktemp)
kubectl -n shop port-forward service/gateway :3000 >"$log" &
trap 'rm -f "$log"; kill $! 2>/dev/null || true' EXIT
for _ in $(seq 100); do # until the line that names the port is there
  server=$(sed -n 's/^Forwarding from \(127[^ ]*\) .*/\1/p' "$log")
  if [[ -n $server ]] || ! kill -0 $! 2>/dev/null; then break; fi
  sleep 0.1
done
if [[ -z $server ]]; then
  cat "$log" >&2
  echo "kubectl port-forward does not reach the gateway: no order was placed" >&2
  exit 1
fi
order=$("$1" order place --server "$server" --wait 30s --name Adrian --email adrian@example.org --item "Laptop Stand=3" --item "Mouse Pad=4")
echo "$order"
grep -q CONFIRMED <<<"$order"
