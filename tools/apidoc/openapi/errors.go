package main

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// The schemas of a refusal.
const (
	errorResponse = "ErrorResponse"
	errorDetail   = "ErrorDetail"
	errorField    = "ErrorField"
	errorReason   = "ErrorReason"
)

// refusal is a row of docs/errors.md.
type refusal struct{ status, meaning string }

// errorTable is docs/errors.md, by reason. A test compares it with the sources.
type errorTable map[string]refusal

var errorRow = regexp.MustCompile("(?m)^\\| `(\\w+)` \\| \\w+ \\| (\\d+) \\| ([^|]+) \\|")

func readErrors(path string) (errorTable, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the table of errors: %w", err)
	}
	table := errorTable{}
	for _, row := range errorRow.FindAllStringSubmatch(string(text), -1) {
		table[row[1]] = refusal{row[2], strings.TrimSpace(row[3])}
	}
	return table, nil
}

// Reasons of calls that have something in common. A contract lists what only its own call has: shop.options.v1.reasons.
var (
	ofEveryCall = []string{
		"INVALID_ARGUMENT", "INVALID_QUERY", "RATE_LIMITED", "TOO_MANY_CALLS", "TOO_MANY_FAILED_LOGINS", "OPERATOR_TOKEN_INVALID",
		"TOKEN_INVALID", "TOKEN_EXPIRED", "ISSUER_UNAVAILABLE", "STOPPING", "UNAVAILABLE", "SERVICE_UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL",
	}
	withPathParameters = []string{"INVALID_PATH"}
	withBody           = []string{
		"BODY_REQUIRED", "BODY_TOO_LARGE", "INCOMPLETE_BODY", "INVALID_JSON", "UNSUPPORTED_MEDIA_TYPE", "REQUEST_TIMEOUT", "TOO_MUCH_AT_ONCE",
	}
	thatChange    = []string{"CROSS_ORIGIN"}
	ofOperators   = []string{"OPERATOR_TOKEN_REQUIRED", "ROLE_REQUIRED"}
	ofCustomers   = []string{"CUSTOMER_TOKEN_REQUIRED", "ROLE_REQUIRED"}
	ofEventStream = []string{"TOO_MANY_STREAMS"}
	withCondition = []string{"PRECONDITION_FAILED"}
)

// reasons are those for which a call may be refused.
func (c call) reasons() []string {
	all := slices.Clone(ofEveryCall)
	add := func(holds bool, reasons []string) {
		if holds {
			all = append(all, reasons...)
		}
	}
	access, _ := c.contracts.Option(c.method, "access")
	parameters, _ := c.object["parameters"].([]any)
	add(slices.ContainsFunc(parameters, func(p any) bool { return p.(object)["in"] == "path" }), withPathParameters)
	add(c.object["requestBody"] != nil, withBody)
	add(!c.safe, thatChange)
	add(!c.public, ofOperators)
	add(c.public || access.Enum() == operatorOrOwner, ofCustomers)
	add(c.method.IsStreamingServer(), ofEventStream)
	add(c.takes(ifNoneMatch) || c.takes(ifMatch), withCondition)
	if own, said := c.contracts.Option(c.method, "reasons"); said {
		for i := range own.List().Len() {
			all = append(all, own.List().Get(i).String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// describe lists the statuses of refusals of a call, each with its reasons.
func (t errorTable) describe(c call) error {
	byStatus := map[string][]string{}
	for _, reason := range c.reasons() {
		row, ok := t[reason]
		if !ok {
			return fmt.Errorf("%s may be refused for the reason %s, which docs/errors.md does not have", c.method.FullName(), reason)
		}
		byStatus[row.status] = append(byStatus[row.status], reason)
	}
	responses := c.object["responses"].(object)
	for status, reasons := range byStatus {
		said := make([]string, len(reasons))
		for i, reason := range reasons {
			said[i] = "- `" + reason + "`: " + t[reason].meaning
		}
		responses[status] = errorAnswer(strings.Join(said, "\n"))
		responses[status].(object)["x-reasons"] = reasons
	}
	responses["default"] = errorAnswer("Another refusal, of a later release for example. `reason` is in the ErrorInfo among the details.")
	return nil
}

func errorAnswer(description string) object {
	return object{
		"description": description,
		"content":     object{"application/json": object{"schema": object{"$ref": refTo(errorResponse)}}},
	}
}

// errorSchemas describes google.rpc.Status as the shop sends it: each detail has the fields of its type, of which these are
// known.
func (d *document) errorSchemas() {
	text := func(description string) object { return object{"type": "string", "description": description} }
	d.schemas[errorResponse] = object{
		"type": "object", "description": "A refusal: a google.rpc.Status.", "required": []any{"code", "message", "details"},
		"properties": object{
			"code":    object{"type": "integer", "format": "int32", "description": "The gRPC code."},
			"message": text("For people; it can change."),
			"details": object{"type": "array", "items": object{"$ref": refTo(errorDetail)}, "description": "Always an ErrorInfo, and what else there is."},
		},
	}
	d.schemas[errorDetail] = object{
		"type": "object", "required": []any{"@type"}, "additionalProperties": true,
		"description": "One of ErrorInfo, with the reason; BadRequest, with what is wrong with the request; RetryInfo, with when to try again.",
		"properties": object{
			"@type":            text("Ends with google.rpc.ErrorInfo, google.rpc.BadRequest or google.rpc.RetryInfo."),
			"reason":           object{"$ref": refTo(errorReason), "description": "Of an ErrorInfo."},
			"domain":           text("Of an ErrorInfo: shop.example."),
			"metadata":         object{"type": "object", "additionalProperties": object{"type": "string"}, "description": "Of an ErrorInfo: what the reason is about."},
			"field_violations": object{"type": "array", "items": object{"$ref": refTo(errorField)}, "description": "Of a BadRequest."},
			"retry_delay":      text("Of a RetryInfo: seconds, 1s for example."),
		},
	}
	d.schemas[errorField] = object{
		"type": "object", "required": []any{"description"},
		"properties": object{"field": text("As the client spelled it; absent if it is about several fields."), "description": text("What it must be.")},
	}
	known := map[string]bool{"UNKNOWN_PATH": true, "METHOD_NOT_ALLOWED": true} // of no call
	walk(d.root["paths"], func(o object) {
		reasons, _ := o["x-reasons"].([]string)
		for _, reason := range reasons {
			known[reason] = true
		}
	})
	reason := object{"description": "Why a call was refused, for programs: docs/errors.md says what to do."}
	openEnum(reason, slices.Sorted(maps.Keys(known)))
	d.schemas[errorReason] = reason
}
