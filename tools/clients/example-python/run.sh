#!/bin/sh
# The examples in Python, with the bundle of contracts.
set -eu
cp "$EXAMPLES"/python/* .
python3 -m venv venv
venv/bin/pip install --quiet -r requirements.txt
mkdir gen
(cd "$CONTRACTS/proto" && find buf google/api google/rpc protoc-gen-openapiv2 shop -name "*.proto") |
    xargs venv/bin/python -m grpc_tools.protoc -I "$CONTRACTS/proto" --python_out=gen --grpc_python_out=gen
export PYTHONPATH=gen PYTHONUNBUFFERED=1
"$CLIENT/../try-examples.sh" "venv/bin/python order.py" "venv/bin/python events.py" "venv/bin/python webhook.py"
