#!/bin/sh
set -eu
python3 -m venv venv
venv/bin/pip install --quiet openapi-generator-cli==7.26.0
venv/bin/openapi-generator-cli generate -i "$OPENAPI" -g python -o generated --package-name shop_client >generator.log 2>&1 || { cat generator.log; exit 1; }
venv/bin/pip install --quiet -r generated/requirements.txt
PYTHONPATH=generated venv/bin/python "$CLIENT/client.py"
