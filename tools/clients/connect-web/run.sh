#!/bin/sh
# A page with clients that connect-es makes of the protos: index.html is opened in a browser then, from another origin than the shop's.
set -eu
npm install --silent --no-audit --no-fund @connectrpc/connect@2.3.0 @connectrpc/connect-web@2.3.0 @bufbuild/protobuf@2.17.0 \
    @bufbuild/protoc-gen-es@2.17.0 @bufbuild/buf@1.75.0 typescript@5.9.3 esbuild@0.25.12
npx --no-install buf generate "$CONTRACTS/proto" --template '{"version": "v2", "plugins": [
  {"local": "protoc-gen-es", "out": "gen", "opt": ["target=ts", "import_extension=js"]}]}'
cp "$CLIENT/page.ts" .
npx --no-install tsc --noEmit --strict --module esnext --moduleResolution bundler --target es2022 --lib es2022,dom,dom.iterable --skipLibCheck page.ts
npx --no-install esbuild page.ts --bundle --format=iife --outfile=page.js --log-level=error
echo '<!doctype html><link rel="icon" href="data:,"><script src="page.js"></script>' >index.html
