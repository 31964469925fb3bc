#!/bin/sh
set -eu
python3 -m venv venv
venv/bin/pip install --quiet openapi-python-client==0.29.1
PATH="$PWD/venv/bin:$PATH" venv/bin/openapi-python-client generate --path "$OPENAPI" --output-path generated
PYTHONPATH=generated venv/bin/python "$CLIENT/client.py"
