package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/gen/openapi"
	optionsv1 "shop.example/gen/shop/options/v1"
)

// Every test that calls the shop compares the answers with the OpenAPI document: see call.

// described are the calls of the document, each with the pattern of its path.
var described = sync.OnceValues(func() (map[*regexp.Regexp]operation, error) {
	var d apiDocument
	if err := json.Unmarshal(openapi.Shop, &d); err != nil {
		return nil, err
	}
	found := map[*regexp.Regexp]operation{}
	for _, op := range d.operations() {
		pattern := pathParameter.ReplaceAllString(regexp.QuoteMeta(op.method+" "+op.path), "[^/:]+")
		found[regexp.MustCompile("^"+pattern+"$")] = op
	}
	return found, nil
})

var pathParameter = regexp.MustCompile(`\\{\w+\\}`)

// checkDescribed fails if the document does not describe an answer to a call that it has.
func checkDescribed(t *testing.T, method, path string, got answer) {
	t.Helper()
	all, err := described()
	if err != nil {
		t.Fatal(err)
	}
	path, _, _ = strings.Cut(path, "?")
	for pattern, op := range all {
		if pattern.MatchString(method + " " + path) {
			if wrong := op.undescribed(got); wrong != "" {
				t.Errorf("%s %s: %s", method, path, wrong)
			}
		}
	}
}

// undescribed returns how a response differs from the document's description of the operation; "" if it does not.
func (op operation) undescribed(got answer) string {
	if reason := reasonIn(got); reason == "UNKNOWN_PATH" || reason == "METHOD_NOT_ALLOWED" { // what looks like a parameter is none
		return ""
	}
	said, ok := op.answers[fmt.Sprint(got.code)]
	if !ok {
		return fmt.Sprintf("%d %.300s: the document has no such answer", got.code, got.body)
	}
	for name := range got.header {
		named := func(other string) bool { return strings.EqualFold(name, other) }
		if !slices.ContainsFunc(ofEveryAnswer, named) && !slices.ContainsFunc(slices.Collect(maps.Keys(said.Headers)), named) {
			return fmt.Sprintf("%d with the header %s: the document has %v", got.code, name, slices.Collect(maps.Keys(said.Headers)))
		}
	}
	kind, _, _ := strings.Cut(got.header.Get("Content-Type"), ";")
	if kind != "application/json" {
		if _, ok := said.Content[kind]; !ok {
			return fmt.Sprintf("%d with %s: the document has %v", got.code, kind, slices.Collect(maps.Keys(said.Content)))
		}
		return ""
	}
	if reason := reasonIn(got); got.code >= http.StatusBadRequest && !slices.Contains(said.Reasons, reason) {
		return fmt.Sprintf("%d for the reason %s: the document has %q; add it to shop.options.v1.reasons of the method and its row in docs/api.md", got.code, reason, said.Reasons)
	}
	schema, err := schemaOf(op, got.code)
	if err != nil {
		return err.Error()
	}
	body, err := jsonschema.UnmarshalJSON(bytes.NewReader(got.body))
	if err == nil {
		err = schema.Validate(body)
	}
	if err != nil {
		return fmt.Sprintf("%d %.2000s is not what the document says: %v", got.code, got.body, err)
	}
	return ""
}

// ofEveryAnswer are headers of HTTP and for browsers, and of limits, which the document has once for all calls.
var ofEveryAnswer = []string{
	"Cache-Control", "Connection", "Content-Length", "Content-Security-Policy", "Content-Type", "Cross-Origin-Opener-Policy", "Cross-Origin-Resource-Policy",
	"Date", "RateLimit", "RateLimit-Policy", "Referrer-Policy", "Strict-Transport-Security", "Vary", "X-Content-Type-Options", "X-Frame-Options",
}

// endless reports whether the response of an operation is an endless stream.
func (op operation) endless() bool {
	_, is := op.answers["200"].Content["text/event-stream"]
	return is
}

// reasonIn is the reason of a refusal.
func reasonIn(got answer) string {
	var refusal struct{ Details []struct{ Reason string } }
	if json.Unmarshal(got.body, &refusal) == nil {
		for _, detail := range refusal.Details {
			if detail.Reason != "" {
				return detail.Reason
			}
		}
	}
	return ""
}

var (
	compiler = sync.OnceValues(func() (*jsonschema.Compiler, error) {
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi.Shop))
		if err != nil {
			return nil, err
		}
		c := jsonschema.NewCompiler()
		return c, c.AddResource("openapi.json", document)
	})
	compiling sync.Mutex
)

// schemaOf compiles the schema of an answer.
func schemaOf(op operation, status int) (*jsonschema.Schema, error) {
	c, err := compiler()
	if err != nil {
		return nil, err
	}
	compiling.Lock()
	defer compiling.Unlock()
	escape := strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D")
	return c.Compile(fmt.Sprintf("openapi.json#/paths/%s/%s/responses/%d/content/application~1json/schema", escape.Replace(op.path), strings.ToLower(op.method), status))
}

// ofStreams is what all streams may be refused for. It is no method's own reason.
const ofStreams = "TOO_MANY_STREAMS"

func TestOpenAPI_ReasonsOfACallAreThoseOfItsRow(t *testing.T) {
	t.Parallel()
	rows := map[string][]string{}
	for _, r := range apiRows(t) {
		for _, reason := range r.errors {
			if reason != ofStreams && !slices.Contains(rows[r.method()], reason) {
				rows[r.method()] = append(rows[r.method()], reason)
			}
		}
	}
	contracts := 0
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				md := methods.Get(j)
				reasons, _ := proto.GetExtension(md.Options(), optionsv1.E_Reasons).([]string)
				if len(reasons) == 0 {
					continue
				}
				contracts++
				if row := rows[string(md.Name())]; !slices.Equal(row, reasons) {
					t.Errorf("%s: the contract has the reasons %q, docs/api.md %q", md.FullName(), reasons, row)
				}
				delete(rows, string(md.Name()))
			}
		}
		return true
	})
	if contracts < 10 {
		t.Errorf("only %d methods have reasons", contracts)
	}
	for method, reasons := range rows {
		if len(reasons) > 0 {
			t.Errorf("docs/api.md: %s may fail with %q, which its contract does not say", method, reasons)
		}
	}
}

// A list said that the end of an id is required because it has a pattern, and generated clients could not list without one. What is
// in a query is a filter or a page of something.
func TestOpenAPI_NoListDemandsAFilter(t *testing.T) {
	t.Parallel()
	all, err := described()
	if err != nil {
		t.Fatal(err)
	}
	filters := 0
	for _, op := range all {
		for _, p := range op.parameters {
			if p.In != "query" {
				continue
			}
			filters++
			if p.Required {
				t.Errorf("%s %s demands %s, and is answered without it", op.method, op.path, p.Name)
			}
		}
	}
	if filters < 10 {
		t.Errorf("only %d parameters are in a query", filters)
	}
}

// A client sends back what it has read, and changes a part: the id in the body is the one in the path.
func TestOpenAPI_ABodyThatWasReadCanBeSentBack(t *testing.T) {
	t.Parallel()
	var d apiDocument
	if err := json.Unmarshal(openapi.Shop, &d); err != nil {
		t.Fatal(err)
	}
	changes := 0
	for _, op := range d.operations() {
		if op.method != http.MethodPatch {
			continue
		}
		changes++
		id := op.parameters[slices.IndexFunc(op.parameters, func(p parameter) bool { return p.In == "path" })].Schema
		body := d.Components.Schemas[strings.TrimPrefix(op.body.Ref, "#/components/schemas/")]
		if sent := body.Properties["id"]; sent == nil || sent.Type != id.Type || sent.Format != id.Format {
			t.Errorf("%s: the id of the path is %+v, that of the body %+v", op.path, id, sent)
		}
	}
	if changes < 2 {
		t.Errorf("only %d calls change something", changes)
	}
}

// Fields that every answer has were optional in generated clients: all of a webhook, because a webhook is also sent.
func TestOpenAPI_AFieldThatIsAlwaysThereIsRequired(t *testing.T) {
	t.Parallel()
	var d apiDocument
	if err := json.Unmarshal(openapi.Shop, &d); err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{} // by schema, the fields in the rows of the calls that it answers
	for _, r := range apiRows(t) {
		status, shape, _ := strings.Cut(r.answer, ": ")
		shape, _, _ = strings.Cut(shape, "; in ")
		for _, op := range d.operations() {
			_, name, _ := strings.Cut(op.id, "_")
			if said := op.answers[status].Content["application/json"].Schema; said != nil && said.Ref != "" && strings.TrimSuffix(name, "2") == r.method() {
				rows[said.Ref] = append(rows[said.Ref], shape)
			}
		}
	}
	always := 0
	for ref, shapes := range rows {
		schema := d.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")]
		for field := range schema.Properties {
			inAll := !slices.ContainsFunc(shapes, func(shape string) bool { return !slices.Contains(strings.Split(shape, ", "), field) })
			if inAll {
				always++
			}
			if inAll && !slices.Contains(schema.Required, field) {
				t.Errorf("%s: %s is in every answer by docs/api.md, and is not required", ref, field)
			}
			if !inAll && slices.Contains(schema.Required, field) {
				t.Errorf("%s: %s is required, and docs/api.md says that it may be absent", ref, field)
			}
		}
	}
	if len(rows) < 20 || always < 50 {
		t.Errorf("only %d fields of %d answers are always there", always, len(rows))
	}
}

// A request without them was valid by the document, and refused.
func TestOpenAPI_ANewWebhookNeedsURLAndEventTypes(t *testing.T) {
	t.Parallel()
	all, err := described()
	if err != nil {
		t.Fatal(err)
	}
	var d apiDocument
	if err := json.Unmarshal(openapi.Shop, &d); err != nil {
		t.Fatal(err)
	}
	for _, op := range all {
		if op.id != "WebhookService_CreateWebhook" {
			continue
		}
		body := d.Components.Schemas[strings.TrimPrefix(op.body.Ref, "#/components/schemas/")]
		if !slices.Equal(body.Required, []string{"url", "event_types"}) {
			t.Errorf("required are %q", body.Required)
		}
		return
	}
	t.Error("the document has no CreateWebhook")
}

// Lower bounds of 0 got lost: -1 pieces were valid by the document, and refused.
func TestOpenAPI_HasLowerBoundsOfZero(t *testing.T) {
	t.Parallel()
	var d apiDocument
	if err := json.Unmarshal(openapi.Shop, &d); err != nil {
		t.Fatal(err)
	}
	bounds := map[string]*float64{
		"the quantity of a new product": d.Components.Schemas["CreateItemsRequestNewItem"].Properties["quantity"].Minimum,
		"the nanos of an amount":        d.Components.Schemas["Money"].Properties["nanos"].Minimum,
	}
	for _, op := range d.operations() {
		for _, p := range op.parameters {
			if p.Name == "page_size" {
				bounds["the page_size of "+op.id] = p.Schema.Minimum
			}
		}
	}
	for name, minimum := range bounds {
		if minimum == nil || *minimum != 0 {
			t.Errorf("%s has no minimum of 0", name)
		}
	}
	if len(bounds) < 5 {
		t.Errorf("only %d bounds were found", len(bounds))
	}
}

// What the contracts say about a field of a message's or an enumeration's type was lost behind its reference: that an order is rejected
// if its expected price is not the catalogue's, for example. Everything in the contracts has a comment.
func TestDocuments_EachFieldOfASchemaHasADescription(t *testing.T) {
	t.Parallel()
	var openAPI any
	if err := json.Unmarshal(openapi.Shop, &openAPI); err != nil {
		t.Fatal(err)
	}
	for name, document := range map[string]any{"OpenAPI": openAPI, "AsyncAPI": asyncAPI(t)} {
		fields := 0
		schemas := document.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any)
		for schema, value := range schemas {
			eachObject(value, func(o map[string]any) {
				properties, _ := o["properties"].(map[string]any)
				for field, said := range properties {
					fields++
					if description, _ := said.(map[string]any)["description"].(string); description == "" {
						t.Errorf("%s: %s of %s has no description", name, field, schema)
					}
				}
			})
		}
		if fields < 50 {
			t.Errorf("%s: only %d fields were found", name, fields)
		}
	}
}

// The document had an ETag on two reads, and the place of an order: clients could not know when to try again.
func TestOpenAPI_HasTheHeadersOfAnswers(t *testing.T) {
	t.Parallel()
	s := start(t)
	const order = `{"customer_name": "Ada", "customer_email": "ada@example.org", "order_items": [{"product_id": 5, "quantity": 1}]}`
	// call compares all headers with the document; the answers have those that are about the call.
	has := func(a answer, code int, headers ...string) {
		t.Helper()
		for _, name := range headers {
			if a.code != code || a.header.Get(name) == "" {
				t.Errorf("%d %s has no %s, want a %d that has", a.code, a.body, name, code)
			}
		}
	}
	has(s.call(t, http.MethodPost, "/v1/orders", order, "Idempotency-Key", "once"), http.StatusAccepted, "Location", "Retry-After")
	placed := s.call(t, http.MethodPost, "/v1/orders", order, "Idempotency-Key", "once", "Prefer", "wait=20")
	has(placed, http.StatusOK, "Location", "ETag", "Preference-Applied", "Idempotent-Replayed")
	has(s.call(t, http.MethodPost, placed.header.Get("Location")+":cancel", "{}"), http.StatusOK, "ETag")
	has(s.call(t, http.MethodPatch, "/v1/inventory/3", `{"on_hand": 7}`, "Authorization", "Bearer "+operatorToken), http.StatusOK, "ETag")
	has(s.call(t, http.MethodPatch, "/v1/inventory/3", `{"on_hand": 7}`), http.StatusUnauthorized, "WWW-Authenticate")
	has(s.call(t, http.MethodPost, "/v1/orders", order, "Content-Type", "text/xml"), http.StatusUnsupportedMediaType, "Accept")
}

// The example had quotation marks that the text has not, and JSON was listed, which is never sent.
func TestOpenAPI_AnOrderOfTheDemoIsAnsweredAsInTheExample(t *testing.T) {
	t.Parallel()
	var d apiDocument
	if err := json.Unmarshal(openapi.Shop, &d); err != nil {
		t.Fatal(err)
	}
	got := start(t).call(t, http.MethodPost, "/intermediary/order", sample)
	said := d.Paths["/intermediary/order"]["post"].Responses["200"].Content
	if got.code != http.StatusOK || len(said) != 1 || said["text/plain"].Example != string(got.body) {
		t.Errorf("the answer is %d %s, the document has %+v", got.code, got.body, said)
	}
}

// The document told of update_mask, a field that only gRPC has.
func TestOpenAPI_NamesNoFieldThatItLacks(t *testing.T) {
	t.Parallel()
	var document any
	if err := json.Unmarshal(openapi.Shop, &document); err != nil {
		t.Fatal(err)
	}
	fields, texts := map[string]bool{}, map[string]bool{}
	eachObject(document, func(o map[string]any) {
		properties, _ := o["properties"].(map[string]any)
		for name := range properties {
			fields[name] = true
		}
		if parameter, ok := o["name"].(string); ok {
			fields[parameter] = true
		}
		for _, key := range []string{"summary", "description"} {
			if text, ok := o[key].(string); ok {
				texts[text] = true
			}
		}
	})
	for text := range texts {
		for _, name := range fieldName.FindAllString(text, -1) {
			if !fields[name] {
				t.Errorf("the document has no field %s: %.300s", name, text)
			}
		}
	}
	if !fields["on_hand"] || len(texts) < 100 {
		t.Errorf("only %d fields and %d texts were found", len(fields), len(texts))
	}
}

var fieldName = regexp.MustCompile(`\b[a-z]+(?:_[a-z]+)+\b`)

// eachObject calls f with each object within a JSON value.
func eachObject(value any, f func(map[string]any)) {
	switch value := value.(type) {
	case map[string]any:
		f(value)
		for _, member := range value {
			eachObject(member, f)
		}
	case []any:
		for _, element := range value {
			eachObject(element, f)
		}
	}
}
