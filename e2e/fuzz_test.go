package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"shop.example/gen/openapi"
)

// apiDocument is what tests need of the OpenAPI document.
type apiDocument struct {
	Paths map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Parameters  []parameter
		RequestBody *struct{ Content map[string]media }
		Responses   map[string]saidAnswer
	}
	Components struct{ Schemas map[string]*jsonType }
}

// saidAnswer is a response as the document describes it.
type saidAnswer struct {
	Headers map[string]any
	Content map[string]media
	Reasons []string `json:"x-reasons"`
}

type media struct {
	Schema  *jsonType
	Example any
}

type parameter struct {
	Name     string
	In       string
	Required bool
	Schema   *jsonType
}

type jsonType struct {
	Type       string
	Format     string
	Enum       []string
	Known      []string `json:"x-extensible-enum"`
	Ref        string   `json:"$ref"`
	ReadOnly   bool     `json:"readOnly"`
	Required   []string
	Minimum    *float64
	Example    any
	Items      *jsonType
	Properties map[string]*jsonType
}

// operation is one operation of the document.
type operation struct {
	id, method, path string
	parameters       []parameter
	body             *jsonType // nil for none
	answers          map[string]saidAnswer
}

func (d apiDocument) operations() (all []operation) {
	for path, calls := range d.Paths {
		for method, call := range calls {
			op := operation{id: call.OperationID, method: strings.ToUpper(method), path: path, parameters: call.Parameters, answers: call.Responses}
			if call.RequestBody != nil {
				op.body = call.RequestBody.Content["application/json"].Schema
			}
			all = append(all, op)
		}
	}
	slices.SortFunc(all, func(a, b operation) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	return all
}

// hostile are JSON values that programs often fail on.
var hostile = []string{
	`null`, `true`, `0`, `-1`, `1`, `2147483648`, `9223372036854775808`, `1e400`, `0.1`, `"NaN"`, `""`, `" "`, `"1"`, `[]`, `{}`, `[[]]`, `[null]`, `{"":{}}`,
	`"' OR '1'='1"`, `"'; DROP TABLE orders.\"order\"; --"`, `"1) UNION SELECT version()--"`, `"\u0000"`, `"\u202e\ufeff\ud83d\udca5e\u0301"`, `"\ud800"`, `"../../etc/passwd"`,
	`"${jndi:ldap://x}"`, `"%s%n%x"`, `"<script>alert(1)</script>"`, `"\r\nX-Injected: yes"`, `"0001-01-01T00:00:00Z"`, `"9999-12-31T23:59:59.999999999Z"`, `"00000000-0000-0000-0000-000000000000"`,
	`"` + strings.Repeat("a", 300) + `"`, `"` + strings.Repeat("💥", 5000) + `"`, `[` + strings.Repeat(`{},`, 3000) + `{}]`, strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
}

// attacker makes requests from the document that are wrong in some places.
type attacker struct {
	*rand.Rand
	definitions map[string]*jsonType
}

// value returns JSON of the type or, with a probability of odds percent, something hostile.
func (a attacker) value(of *jsonType, odds, depth int) string {
	if of == nil || depth > 6 || a.IntN(100) < odds {
		return hostile[a.IntN(len(hostile))]
	}
	if of.Ref != "" {
		return a.value(a.definitions[strings.TrimPrefix(of.Ref, "#/components/schemas/")], odds, depth+1)
	}
	if of.Example != nil && a.IntN(3) == 0 {
		text, _ := json.Marshal(of.Example)
		return string(text)
	}
	switch of.Type {
	case "object":
		var fields []string
		for name, field := range of.Properties {
			if a.IntN(8) > 0 && (!field.ReadOnly || a.IntN(100) < odds) {
				fields = append(fields, fmt.Sprintf("%q:%s", name, a.value(field, odds, depth+1)))
			}
		}
		if a.IntN(100) < odds {
			fields = append(fields, `"constructor":{"prototype":{}}`)
		}
		return "{" + strings.Join(fields, ",") + "}"
	case "array":
		elements := make([]string, a.IntN(4))
		for i := range elements {
			elements[i] = a.value(of.Items, odds, depth+1)
		}
		return "[" + strings.Join(elements, ",") + "]"
	case "integer", "number":
		return fmt.Sprint(a.IntN(12))
	case "boolean":
		return "true"
	}
	switch {
	case len(of.Enum) > 0:
		return fmt.Sprintf("%q", of.Enum[a.IntN(len(of.Enum))])
	case len(of.Known) > 0:
		return fmt.Sprintf("%q", of.Known[a.IntN(len(of.Known))])
	case of.Format == "email" || of.Format == "idn-email":
		return `"ada@example.org"`
	case of.Format == "uuid":
		return fmt.Sprintf(`"0197a000-0000-7000-8000-%012d"`, a.IntN(1000))
	case of.Format == "date-time":
		return `"2030-12-31T23:59:59Z"`
	case of.Format == "int64":
		return fmt.Sprintf(`"%d"`, a.IntN(100))
	}
	return fmt.Sprintf(`"text %d"`, a.IntN(100))
}

// plain returns a value in the form of a parameter.
func (a attacker) plain(of *jsonType, odds int) string {
	text := a.value(of, odds, 0)
	if len(text) > 2000 {
		text = text[:2000]
	}
	return strings.Trim(text, `"`)
}

// request makes a request for an operation.
func (a attacker) request(op operation, odds int) (path, body string, header []string) {
	path = op.path
	query := url.Values{}
	for _, p := range op.parameters {
		switch p.In {
		case "path":
			path = strings.ReplaceAll(path, "{"+p.Name+"}", url.PathEscape(a.plain(p.Schema, odds)))
		case "query":
			if a.IntN(3) == 0 {
				query.Add(p.Name, a.plain(p.Schema, odds))
			}
		case "header":
			if a.IntN(2) == 0 {
				value := strings.Map(func(r rune) rune {
					if r < ' ' || r == 0x7f {
						return '_' // the client refuses to send it
					}
					return r
				}, a.plain(p.Schema, odds))
				header = append(header, p.Name, value)
			}
		}
	}
	if op.body != nil {
		body = a.value(op.body, odds, 0)
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	if a.IntN(4) > 0 {
		header = append(header, "Authorization", "Bearer "+operatorToken)
	}
	return path, body, header
}

// TestFuzz_NoCallOfTheDocumentBreaksTheShop sends wrong, huge, empty, foreign and malicious values to every operation of
// the OpenAPI document, for three seconds or for FUZZ_DURATION. After that the shop must work as before.
func TestFuzz_NoCallOfTheDocumentBreaksTheShop(t *testing.T) {
	t.Parallel()
	duration, seed := 3*time.Second, uint64(time.Now().UnixNano())
	if given := os.Getenv("FUZZ_DURATION"); given != "" {
		var err error
		if duration, err = time.ParseDuration(given); err != nil {
			t.Fatalf("FUZZ_DURATION: %v", err)
		}
	}
	s := start(t)
	var d apiDocument
	if err := json.Unmarshal(openapi.Shop, &d); err != nil {
		t.Fatal(err)
	}
	calls := slices.DeleteFunc(d.operations(), operation.endless)
	a := attacker{rand.New(rand.NewPCG(seed, 0)), d.Components.Schemas} //nolint:gosec // no secret
	seen, reached := map[string]map[int]int{}, map[string]bool{}
	sent := 0
	for deadline := time.Now().Add(duration); sent < 5*len(calls) || time.Now().Before(deadline); sent++ {
		op := calls[sent%len(calls)]
		path, body, header := a.request(op, []int{0, 5, 30}[a.IntN(3)])
		got := s.call(t, op.method, path, body, header...)
		s.failOnFault(t, got, fmt.Sprintf("seed %d: %s %.300s %q %.1000s", seed, op.method, path, header, body))
		name := op.method + " " + op.path
		if seen[name] == nil {
			seen[name] = map[int]int{}
		}
		seen[name][got.code]++
		if !strings.Contains(string(got.body), `"UNKNOWN_PATH"`) {
			reached[name] = true
		}
	}
	t.Logf("%d calls: %v", sent, seen)
	for name, codes := range seen {
		if !reached[name] {
			t.Errorf("%s was never reached: %v", name, codes)
		}
	}
	// Nothing is stuck: an order goes all the way, and the queues are empty.
	if o := s.decided(t, s.place(t, s.unlimitedStock(t)[0], 1)); o.State != "CONFIRMED" {
		t.Errorf("an order after the fuzz run is %s", o.State)
	}
	ch := s.openChannel(t)
	eventually(t, func() error { return emptyQueues(t, ch) })
	if letters := s.deadLetters(t, ""); len(letters) > 0 {
		t.Errorf("%d calls became dead letters: %+v", len(letters), letters[0])
	}
}

// failOnFault fails if an answer shows a fault of the shop. Whether the contract describes it is checked by call.
func (s *shop) failOnFault(t *testing.T, got answer, call string) {
	t.Helper()
	if got.code >= http.StatusInternalServerError {
		t.Errorf("%s\nis answered with %d %s", call, got.code, got.body)
		return
	}
	if got.code < http.StatusBadRequest {
		return
	}
	var refusal struct {
		Code    int
		Message string
		Details []map[string]any
	}
	if err := json.Unmarshal(got.body, &refusal); err != nil || refusal.Code == 0 || len(refusal.Details) == 0 {
		t.Errorf("%s\nis refused with %d %s, which is no google.rpc.Status", call, got.code, got.body)
	}
	for _, inside := range []string{"pq:", "SQLSTATE", "goroutine ", ".go:", "127.0.0.1", "proto:"} {
		if strings.Contains(refusal.Message, inside) {
			t.Errorf("%s\nis refused with %q, which tells of the inside", call, refusal.Message)
		}
	}
}
