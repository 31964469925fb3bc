#!/bin/sh
# A client in JavaScript, without generated code, that knows of the broker what docs/amqp.md and the AsyncAPI document say.
set -eu
cp "$CLIENT/client.mjs" .
npm install --silent --no-audit --no-fund amqplib@2.3.1 @grpc/proto-loader@0.8.1 protobufjs@8.8.1
node client.mjs
