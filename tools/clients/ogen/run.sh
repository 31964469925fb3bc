#!/bin/sh
set -eu
export GOWORK=off
go mod init example.org/clients 2>/dev/null
go run github.com/ogen-go/ogen/cmd/ogen@v1.25.0 --target shop --package shop --clean "$OPENAPI" 2>generator.log || { cat generator.log; exit 1; }
cp "$CLIENT/client.go" .
go mod tidy 2>/dev/null
go vet ./...
go run .
