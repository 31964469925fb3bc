#!/bin/sh
# Spectral and Redocly find no errors in the document.
set -eu
npm install --silent --no-audit --no-fund @stoplight/spectral-cli@6.16.3 @redocly/cli@2.77.0
echo 'extends: ["spectral:oas"]' > .spectral.yaml
npx --no-install spectral lint --fail-severity=error -r .spectral.yaml "$OPENAPI"
npx --no-install redocly lint "$OPENAPI"
