// Package openapi holds the OpenAPI (Swagger 2.0) description of the REST API, which is generated from the contracts.
package openapi

import _ "embed"

// Shop is the description, a JSON document.
//
//go:embed shop.swagger.json
var Shop []byte
