// Package openapi holds the OpenAPI 3.1 description of the REST API, which is generated from the contracts.
package openapi

import _ "embed"

// Shop is the description, a JSON document.
//
//go:embed shop.openapi.json
var Shop []byte
