#!/bin/sh
# The examples in TypeScript, with the bundle of contracts.
set -eu
cp "$EXAMPLES"/typescript/*.ts "$EXAMPLES"/typescript/*.json "$EXAMPLES"/typescript/*.yaml .
npm install --silent --no-audit --no-fund
npm run --silent generate
npm run --silent build
"$CLIENT/../try-examples.sh" "node out/order.js" "node out/events.js" "node out/webhook.js"
