// Package asyncapi holds the AsyncAPI 3.0 description of what travels over the broker, which is generated from the contracts.
package asyncapi

import _ "embed"

// Shop is the description, a YAML document.
//
//go:embed shop.asyncapi.yaml
var Shop []byte
