#!/bin/sh
# The examples in Go, with what plugins write from the bundle of contracts in the place of this repository's gen/.
set -eu
export GOWORK=off GOBIN="$PWD/bin" PATH="$PWD/bin:$PATH"
cp -r "$EXAMPLES" .
go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
mkdir gen
"$EXAMPLES/../.bin/buf" generate "$CONTRACTS/proto" --path "$CONTRACTS/proto/shop" --template '{"version": "v2", "plugins": [
  {"local": "protoc-gen-go", "out": "gen", "opt": "module=shop.example/gen"},
  {"local": "protoc-gen-go-grpc", "out": "gen", "opt": "module=shop.example/gen"}]}'
(cd gen && go mod init shop.example/gen && go mod tidy) 2>/dev/null
cd examples
go mod tidy 2>/dev/null
go build -o "$GOBIN" ./...
"$CLIENT/../try-examples.sh" client events webhook
