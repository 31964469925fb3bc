package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2/options"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/tools/apidoc/contract"
)

// object is an object of a JSON document.
type object = map[string]any

// document is an OpenAPI document that is being written. What it says about messages follows from the contracts, and what it
// says about errors from docs/errors.md.
type document struct {
	root      object
	schemas   object // components.schemas
	messages  map[string]protoreflect.MessageDescriptor
	contracts *contract.Contracts
	errors    errorTable
}

// inVersion3 turns the Swagger 2.0 document that protoc-gen-openapiv2 writes into OpenAPI 3.1, and adds what only the shop
// knows.
func inVersion3(swagger []byte, contracts *contract.Contracts, table errorTable) ([]byte, error) {
	var two openapi2.T
	if err := json.Unmarshal(swagger, &two); err != nil {
		return nil, fmt.Errorf("reading what protoc-gen-openapiv2 has written: %w", err)
	}
	three, err := openapi2conv.ToV3(&two)
	if err != nil {
		return nil, fmt.Errorf("converting to OpenAPI 3: %w", err)
	}
	text, err := three.MarshalJSON()
	if err != nil {
		return nil, err
	}
	d := &document{messages: map[string]protoreflect.MessageDescriptor{}, contracts: contracts, errors: table}
	if err := json.Unmarshal(text, &d.root); err != nil {
		return nil, err
	}
	if err := d.finish(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err = encoder.Encode(d.root)
	return out.Bytes(), err
}

func (d *document) finish() error {
	d.root["openapi"] = "3.1.0"
	// The API is served at the address that serves the document.
	d.root["servers"] = []any{object{"url": "/", "description": "The gateway that serves this document."}}
	components := d.root["components"].(object)
	components["securitySchemes"] = object{bearer: object{
		"type": "http", "scheme": "bearer",
		"description": "The operator token, which `make up` prints, or with OIDC a token of the issuer.",
	}}
	d.schemas = components["schemas"].(object)
	if err := d.rename(); err != nil {
		return err
	}
	var calls []call
	var tagged []protoreflect.MessageDescriptor
	for _, md := range d.contracts.Methods() {
		for _, c := range d.callsOf(md) {
			calls = append(calls, c)
			if c.takes(ifNoneMatch) {
				tagged = append(tagged, c.answer())
			}
		}
	}
	for _, c := range calls {
		d.sayBody(c)
		if err := d.sayAnswers(c); err != nil {
			return err
		}
		c.sayHeaders(tagged)
	}
	d.errorSchemas()
	d.prune()
	d.openEnums()
	d.required()
	walk(d.root, func(o object) {
		delete(o, "x-originalParamName")       // where the converter had a body from
		if example, ok := o["x-example"]; ok { // of a parameter, which Swagger has no word for
			delete(o, "x-example")
			o["example"] = example
		}
		if all, ok := o["allOf"].([]any); ok { // of Swagger, where nothing can stand beside a reference
			delete(o, "allOf")
			maps.Copy(o, all[0].(object))
		}
		if bound, ok := o[minimum]; ok {
			delete(o, minimum)
			of := o
			if schema, is := o["schema"].(object); is { // of a parameter
				of = schema
			}
			of["minimum"] = bound
		}
		// Any JSON object, a google.protobuf.Struct: without this it would be an empty one to TypeScript.
		for _, property := range objectsIn(o["properties"]) {
			if property["type"] == "object" && property["properties"] == nil && property["additionalProperties"] == nil {
				property["additionalProperties"] = true
			}
		}
	})
	return nil
}

// rename gives each schema the name of its message, with the names of those it is within, and without its package:
// OrderState. That it does not depend on other messages keeps generated clients compiling when one is added.
func (d *document) rename() error {
	names, taken := map[string]string{}, object{}
	for _, full := range slices.Sorted(maps.Keys(d.schemas)) {
		name := schemaName(full)
		if taken[name] != nil {
			return fmt.Errorf("two messages would have the schema name %s, one of them %s: give the new one another name", name, full)
		}
		names[full], taken[name] = name, d.schemas[full]
	}
	for _, md := range d.contracts.Messages() {
		if _, used := names[string(md.FullName())]; used {
			d.messages[schemaName(string(md.FullName()))] = md
		}
	}
	d.schemas = taken
	d.root["components"].(object)["schemas"] = taken
	walk(d.root, func(o object) {
		if ref, ok := o["$ref"].(string); ok {
			o["$ref"] = refTo(names[strings.TrimPrefix(ref, refTo(""))])
		}
	})
	return nil
}

func refTo(schema string) string { return "#/components/schemas/" + schema }

// schemaName is the name of a message's schema: OrderState for shop.order.v1.Order.State, CancelOrderBody for
// shop.order.v1.OrderService.CancelOrderBody, which the generator makes of a request.
func schemaName(full string) string {
	switch full {
	case "google.rpc.Status":
		return errorResponse
	case "google.protobuf.Any":
		return errorDetail
	}
	parts := strings.Split(full, ".")
	first := slices.IndexFunc(parts, func(part string) bool { return part != strings.ToLower(part) })
	if first < len(parts)-1 && strings.HasSuffix(parts[first], "Service") {
		first++
	}
	return strings.Join(parts[first:], "")
}

// call is one way to call a method over REST.
type call struct {
	object
	method    protoreflect.MethodDescriptor
	safe      bool // it changes nothing: a GET
	public    bool // it needs no token
	contracts *contract.Contracts
}

// callsOf are the REST calls of a method.
func (d *document) callsOf(md protoreflect.MethodDescriptor) []call {
	var found []call
	id := fmt.Sprintf("%s_%s", md.Parent().Name(), md.Name())
	for _, path := range objectsIn(d.root["paths"]) {
		for verb, op := range objectsIn(path) {
			if op["operationId"] == id || op["operationId"] == id+"2" { // see separate
				found = append(found, call{op, md, verb == "get", op["security"] == nil, d.contracts})
			}
		}
	}
	return found
}

// sayBody gives the body of a call a schema of its own if it is a field of the request. What the call needs of it is said by
// that field; an answer of the same type has more that is always there.
func (d *document) sayBody(c call) {
	body, ok := c.object["requestBody"].(object)
	if !ok {
		return
	}
	body["required"] = true
	content := body["content"].(object)["application/json"].(object)
	schema := content["schema"].(object)
	fd := c.body()
	if fd == nil {
		return
	}
	if ref, ok := schema["$ref"].(string); ok { // nothing of it is in the path
		schema = maps.Clone(d.schemas[strings.TrimPrefix(ref, refTo(""))].(object))
	} else {
		delete(schema, "title")
		// A client that sends back what it has read sends what is in the path, too.
		schema["properties"].(object)["id"] = c.pathID()
	}
	schema["description"] = contract.Comment(fd)
	delete(schema, "required") // of answers
	if needed := proto.GetExtension(fd.Options(), options.E_Openapiv2Field).(*options.JSONSchema).GetRequired(); len(needed) > 0 {
		schema["required"] = needed
		properties := maps.Clone(schema["properties"].(object))
		for _, name := range needed {
			if list := properties[name].(object); list["type"] == "array" { // an empty one is as good as none
				list = maps.Clone(list)
				list["minItems"] = 1
				properties[name] = list
			}
		}
		schema["properties"] = properties
	}
	name := string(c.method.Name()) + "Body"
	d.schemas[name] = schema
	content["schema"] = object{"$ref": refTo(name)}
}

// body is the field of the request that the body is; nil if it is the request itself, or there is none.
func (c call) body() protoreflect.FieldDescriptor {
	rule := proto.GetExtension(c.method.Options(), annotations.E_Http).(*annotations.HttpRule)
	return c.method.Input().Fields().ByName(protoreflect.Name(rule.GetBody()))
}

// pathID is the schema of what the path names, as it is read.
func (c call) pathID() object {
	parameters, _ := c.object["parameters"].([]any)
	for _, p := range parameters {
		if parameter, ok := p.(object); ok && parameter["in"] == "path" {
			id := maps.Clone(parameter["schema"].(object))
			id["readOnly"], id["description"] = true, parameter["description"]
			return id
		}
	}
	panic(fmt.Sprintf("the path of %s names nothing, and its body is a part of the request", c.method.FullName()))
}

// The headers with which a contract says that a call is about one resource with an ETag.
const (
	ifNoneMatch = "If-None-Match"
	ifMatch     = "If-Match"
)

// takes says whether the contract has a header of that name.
func (c call) takes(header string) bool {
	parameters, _ := c.object["parameters"].([]any)
	return slices.ContainsFunc(parameters, func(p any) bool { o, _ := p.(object); return o["in"] == "header" && o["name"] == header })
}

// answer is the type of the body of an answer.
func (c call) answer() protoreflect.MessageDescriptor {
	rule := proto.GetExtension(c.method.Options(), annotations.E_Http).(*annotations.HttpRule)
	if fd := c.method.Output().Fields().ByName(protoreflect.Name(rule.GetResponseBody())); fd != nil {
		return fd.Message()
	}
	return c.method.Output()
}

// sayHeaders says which headers the answers of a call have, as far as that follows from the contract. tagged are the types of
// resources with an ETag.
func (c call) sayHeaders(tagged []protoreflect.MessageDescriptor) {
	responses := c.object["responses"].(object)
	if c.takes(ifNoneMatch) {
		responses["304"] = object{"description": "The client has it as it is."}
	}
	for status, response := range objectsIn(responses) {
		add := func(holds bool, name, kind, description string) {
			if !holds {
				return
			}
			if response["headers"] == nil {
				response["headers"] = object{}
			}
			response["headers"].(object)[name] = object{"description": description, "schema": object{"type": kind}}
		}
		done := strings.HasPrefix(status, "2")
		add(status == "304" || status == "200" && slices.Contains(tagged, c.answer()), "ETag", "string", "Changes with each change.")
		add(done && c.takes("Idempotency-Key"), "Idempotent-Replayed", "string", "`true` if the call was made before under its key.")
		add(done && c.takes("Prefer"), "Preference-Applied", "string", "Which of the preferences in Prefer was followed.")
		add(status == "401", "WWW-Authenticate", "string", "The scheme of the token that is missing or wrong: Bearer.")
		add(status == "415", "Accept", "string", "The type that a body must have.")
		add(status == "415", "Accept-Encoding", "string", "If the body was compressed: the coding that it must have.")
		add(status == "429" || status == "503", "Retry-After", "integer", "When to try again, in seconds.")
	}
}

// sayAnswers says who may make a call, and what it answers.
func (d *document) sayAnswers(c call) error {
	c.object["security"] = []any{object{bearer: []any{}}}
	if c.public { // with a token as well
		c.object["security"] = []any{object{}, object{bearer: []any{}}}
	}
	if c.method.IsStreamingServer() {
		answer := c.object["responses"].(object)["200"].(object)
		answer["content"] = object{"text/event-stream": object{"schema": object{"type": "string"}}}
	}
	return d.errors.describe(c)
}

// bearer is the name of the security scheme.
const bearer = "bearer"

// prune removes schemas and tags that no call uses: messages that are only in gRPC's answers, services of the inside.
func (d *document) prune() {
	used := d.reachable(d.root["paths"])
	maps.DeleteFunc(d.schemas, func(name string, _ any) bool { return !used[name] })
	tags := map[any]bool{}
	for _, path := range objectsIn(d.root["paths"]) {
		for _, op := range objectsIn(path) {
			for _, tag := range op["tags"].([]any) {
				tags[tag] = true
			}
		}
	}
	all, _ := d.root["tags"].([]any)
	d.root["tags"] = slices.DeleteFunc(all, func(tag any) bool { return !tags[tag.(object)["name"]] })
}

// reachable are the schemas that are used from a part of the document.
func (d *document) reachable(from any) map[string]bool {
	used := map[string]bool{}
	var visit func(o object)
	visit = func(o object) {
		ref, _ := o["$ref"].(string)
		name, is := strings.CutPrefix(ref, refTo(""))
		if is && !used[name] {
			used[name] = true
			walk(d.schemas[name], visit)
		}
	}
	walk(from, visit)
	return used
}

// openEnums makes enumerations texts with known values: a client that was generated before a value came must not refuse the
// whole answer.
func (d *document) openEnums() {
	for _, schema := range objectsIn(d.schemas) {
		if values, ok := schema["enum"]; ok {
			delete(schema, "enum")
			openEnum(schema, values)
		}
	}
}

func openEnum(schema object, values any) {
	said, _ := schema["description"].(string)
	schema["type"], schema["x-extensible-enum"] = "string", values
	schema["description"] = strings.TrimSpace(said + "\n\nA later release may have other values than these.")
}

// required says which fields every answer has: those that are written with their zero value. What clients send as well
// keeps what the contracts ask of them.
func (d *document) required() {
	sent := map[string]bool{}
	for _, path := range objectsIn(d.root["paths"]) {
		for _, op := range objectsIn(path) {
			maps.Copy(sent, d.reachable(op["requestBody"]))
		}
	}
	for name, md := range d.messages {
		schema, used := d.schemas[name].(object)
		if !used || sent[name] {
			continue
		}
		said, _ := schema["required"].([]any)
		for i := range md.Fields().Len() {
			if fd := md.Fields().Get(i); !fd.HasPresence() {
				said = append(said, string(fd.Name()))
			}
		}
		slices.SortFunc(said, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
		if said = slices.Compact(said); len(said) > 0 {
			schema["required"] = said
		}
	}
}

// walk calls f with each object within value.
func walk(value any, f func(object)) {
	switch value := value.(type) {
	case object:
		f(value)
		for _, key := range slices.Sorted(maps.Keys(value)) {
			walk(value[key], f)
		}
	case []any:
		for _, element := range value {
			walk(element, f)
		}
	}
}

// objectsIn are the objects that are the values of an object.
func objectsIn(value any) map[string]object {
	found := map[string]object{}
	members, _ := value.(object)
	for key, member := range members {
		if o, ok := member.(object); ok {
			found[key] = o
		}
	}
	return found
}
