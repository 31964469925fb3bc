#!/bin/bash
# Says how large programs are as they are shipped, and which of their parts are the largest: tools/programs.sh ./gateway ./services/order …
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for program in "$@"; do
  go build -trimpath -ldflags='-s -w' -o "$dir/shipped" "$program"
  go build -trimpath -o "$dir/symbols" "$program"
  size=$(wc -c <"$dir/shipped")
  modules=$(go version -m "$dir/shipped" | awk '$1 == "mod" || $1 == "dep" { print $2 }')
  echo "$(basename "$program"): $((size / 100000))e5 bytes" | sed -E 's/([0-9]+)([0-9])e5 bytes/\1.\2 MB/' | tr '\n' ','
  echo " $(wc -l <<<"$modules") modules"
  # By the names of functions and data. What the linker makes has no symbols: where each line of code is, for stack traces, the
  # descriptions of types, texts. What begins behind runtime.bss is in no file.
  { awk '{ print "module", $0 }' <<<"$modules"; go tool nm -size -sort address "$dir/symbols"; } | awk -v size="$size" '
    $1 == "module" { modules[++n] = $2; next }
    $4 == "runtime.bss" || $4 == "runtime.noptrbss" { behind = 1 }
    behind || $3 !~ /^[TtRrDd]$/ || $4 ~ /^(type:|go:)/ { next }
    {
      owner = "standard library"; longest = 0
      for (i = 1; i <= n; i++) if (index($4, modules[i]) == 1 && length(modules[i]) > longest) { owner = modules[i]; longest = length(owner) }
      sum[owner] += $2; size -= $2
    }
    END {
      sum["tables of lines and types, and texts (linker)"] = size
      for (o in sum) printf "%8.1f MB  %s\n", sum[o] / 1e6, o
    }' | sort -rn | sed 6q
done
