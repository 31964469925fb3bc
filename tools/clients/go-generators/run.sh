#!/bin/sh
# ogen and oapi-codegen write clients that compile.
set -eu
export GOWORK=off
go mod init example.org/clients 2>/dev/null
mkdir oapi
go run github.com/ogen-go/ogen/cmd/ogen@v1.25.0 --target ogen --package ogen --clean "$OPENAPI"
go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -generate types,client -package oapi -o oapi/client.go "$OPENAPI"
go mod tidy
go vet ./...
