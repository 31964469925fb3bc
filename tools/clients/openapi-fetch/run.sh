#!/bin/sh
set -eu
npm install --silent --no-audit --no-fund openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3 @types/node@20
npx --no-install openapi-typescript "$OPENAPI" -o shop.d.ts
cp "$CLIENT/client.ts" .
echo '{"type": "module"}' > package.json
npx --no-install tsc --strict --module nodenext --target es2022 --skipLibCheck --types node client.ts
node client.js
