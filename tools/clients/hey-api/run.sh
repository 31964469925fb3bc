#!/bin/sh
set -eu
npm install --silent --no-audit --no-fund @hey-api/openapi-ts@0.95.0 typescript@5.9.3 esbuild@0.25.12 @types/node@20
npx --no-install openapi-ts -i "$OPENAPI" -o shop -c @hey-api/client-fetch
cp "$CLIENT/client.ts" .
npx --no-install tsc --noEmit --strict --module esnext --moduleResolution bundler --target es2022 --lib es2022,dom,dom.iterable --skipLibCheck --types node client.ts
npx --no-install esbuild client.ts --bundle --platform=node --format=esm --outfile=client.mjs --log-level=error
node client.mjs
