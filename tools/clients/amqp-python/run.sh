#!/bin/sh
# The program of docs/amqp.md as it stands there, and calls.
set -eu
python3 -m venv venv
venv/bin/pip install --quiet pika==1.4.4 grpcio-tools==1.85.1
mkdir gen
(cd "$CONTRACTS/proto" && find buf google/api google/rpc protoc-gen-openapiv2 shop -name '*.proto') |
    xargs venv/bin/python -m grpc_tools.protoc -I "$CONTRACTS/proto" --python_out=gen
export PYTHONPATH=gen
awk '/^```python/ { on = 1; next } /^```/ { on = 0 } on' "$EXAMPLES/../docs/amqp.md" >command.py
product="Tripod $$"
venv/bin/python command.py "$COMMANDER_URL" "$product" | grep -q "product_name: \"$product\""
refused=$(venv/bin/python command.py "$COMMANDER_URL" "$product" 2>&1) && exit 1
echo "$refused" | grep -q "there is an item \"$product\" already"
# What the broker does not take waits nowhere: a user who may not send commands is told so.
venv/bin/python command.py "$AMQP_URL" "$product" >refused.txt 2>&1 && exit 1
grep -q ACCESS_REFUSED refused.txt || { cat refused.txt; exit 1; }
venv/bin/python "$CLIENT/client.py"
