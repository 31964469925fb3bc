#!/bin/sh
set -eu
export GOWORK=off
go mod init example.org/clients 2>/dev/null
mkdir shop
go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -generate types,client -package shop -o shop/client.go "$OPENAPI"
cp "$CLIENT/client.go" .
go mod tidy 2>/dev/null
go vet ./...
go run .
