package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/domain/orderid"
	optionsv1 "shop.example/gen/shop/options/v1"
	"shop.example/platform/contract"
	"shop.example/platform/testkit/netproxy"
)

// request is one of docs/requests.http.
type request struct {
	title, name        string
	status             int
	method, path, body string
	header             []string
}

var (
	statusNote = regexp.MustCompile(`^# (\d{3})$`)
	nameNote   = regexp.MustCompile(`^# @name (\w+)$`)
	// variable is {{name}}, or {{name.response.body.$.path}} for what an answer said.
	variable = regexp.MustCompile(`\{\{(\w+)(?:\.response\.body\.\$\.([\w.\[\]]+))?\}\}`)
	pathStep = regexp.MustCompile(`\w+`)
)

func parseRequests(t *testing.T, text string) []request {
	t.Helper()
	var all []request
	for _, block := range strings.Split("\n"+text, "\n### ")[1:] {
		title, rest, _ := strings.Cut(block, "\n")
		r := request{title: title}
		head, body, _ := strings.Cut(rest, "\n\n")
		r.body = strings.TrimSpace(body)
		for line := range strings.Lines(head) {
			line = strings.TrimSpace(line)
			if m := statusNote.FindStringSubmatch(line); m != nil {
				r.status, _ = strconv.Atoi(m[1])
			} else if m := nameNote.FindStringSubmatch(line); m != nil {
				r.name = m[1]
			} else if name, value, ok := strings.Cut(line, ": "); ok && r.method != "" {
				r.header = append(r.header, name, value)
			} else if r.method, r.path, ok = strings.Cut(line, " {{host}}"); !ok || line == "" {
				t.Fatalf("%s: nobody understands %q", title, line)
			}
		}
		if r.status == 0 || r.method == "" {
			t.Fatalf("%s: there is no status noted, or no request", title)
		}
		all = append(all, r)
	}
	return all
}

// filled puts in what variables stand for.
func filled(t *testing.T, s string, answers map[string]any) string {
	t.Helper()
	return variable.ReplaceAllStringFunc(s, func(reference string) string {
		m := variable.FindStringSubmatch(reference)
		value, ok := answers[m[1]]
		for _, key := range pathStep.FindAllString(m[2], -1) {
			switch v := value.(type) {
			case map[string]any:
				value, ok = v[key]
			case []any:
				i, err := strconv.Atoi(key)
				if ok = err == nil && i < len(v); ok {
					value = v[i]
				}
			default:
				ok = false
			}
		}
		if !ok {
			t.Fatalf("%s stands for nothing in %v", reference, answers[m[1]])
		}
		return fmt.Sprint(value)
	})
}

func TestRequestsFile_EveryRequestIsAnsweredAsItSays(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/requests.http")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t)
	ch := s.confirming(t)
	for range 2 { // what could not be handled
		s.send(t, ch, "shop.topic", "shop.order.placed", amqp.Publishing{Body: []byte("garbage"), MessageId: uuid.NewString()})
	}
	s.open(t, 2)
	answers := map[string]any{"token": operatorToken}
	sent := map[string]bool{}
	for _, r := range parseRequests(t, string(text)) {
		sent[r.method+" "+r.path] = true
		if got := s.sendRequest(t, r, answers); got.code != r.status {
			t.Errorf("%s: %d, want %d: %s", r.title, got.code, r.status, got.body)
		} else if r.name != "" {
			var body any
			got.json(t, &body)
			answers[r.name] = body
		}
	}
	for _, route := range routes() {
		if !covered(sent, route) {
			t.Errorf("there is no request %s", route)
		}
	}
}

// sendRequest sends a request and returns the answer; of a stream the head alone.
func (s *shop) sendRequest(t *testing.T, r request, answers map[string]any) answer {
	t.Helper()
	path, body := filled(t, r.path, answers), filled(t, r.body, answers)
	if !strings.Contains(path, ":stream") {
		header := make([]string, len(r.header))
		for i, h := range r.header {
			header[i] = filled(t, h, answers)
		}
		return s.call(t, r.method, path, body, header...)
	}
	req, err := http.NewRequestWithContext(t.Context(), r.method, s.url+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(r.header); i += 2 {
		req.Header.Set(r.header[i], filled(t, r.header[i+1], answers))
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return answer{code: res.StatusCode}
}

// eachMethod calls f with every method that clients of the shop can call.
func eachMethod(f func(protoreflect.MethodDescriptor)) {
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(file.Package()), "shop.") {
			return true
		}
		for i := range file.Services().Len() {
			for methods, j := file.Services().Get(i).Methods(), 0; j < methods.Len(); j++ {
				if proto.HasExtension(methods.Get(j).Options(), annotations.E_Http) {
					f(methods.Get(j))
				}
			}
		}
		return true
	})
}

// routes lists what the contracts say that REST has: "GET /v1/orders/{order_id}".
func routes() (all []string) {
	eachMethod(func(md protoreflect.MethodDescriptor) {
		rule, _ := proto.GetExtension(md.Options(), annotations.E_Http).(*annotations.HttpRule)
		for _, rule := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
			for method, path := range map[string]string{"GET": rule.GetGet(), "POST": rule.GetPost(), "PATCH": rule.GetPatch(), "DELETE": rule.GetDelete()} {
				if path != "" {
					all = append(all, method+" "+path)
				}
			}
		}
	})
	return all
}

// covered says whether a request of a route has been sent.
func covered(sent map[string]bool, route string) bool {
	pattern := regexp.MustCompile(`^` + regexp.MustCompile(`\\\{[^}]*\\\}`).ReplaceAllString(regexp.QuoteMeta(route), `[^/?:]+`) + `(\?.*)?$`)
	for request := range sent {
		if pattern.MatchString(variable.ReplaceAllString(request, "x")) {
			return true
		}
	}
	return false
}

var (
	grpcurlCall = regexp.MustCompile(`^grpcurl -plaintext .*localhost:3000 ([\w.]+)/(\w+)$`)
	grpcurlData = regexp.MustCompile(`-d '([^']*)'`)
)

func TestGRPCurlSheet_IsWhatTheContractsSay(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/grpcurl.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := strings.NewReplacer("\\\n  ", "", "'$ORDER'", uuid.NewString(), "'$WEBHOOK'", uuid.NewString(), "'$SHARE'", strings.Repeat("a", 59)).Replace(string(text))
	shown := map[protoreflect.FullName]bool{}
	for line := range strings.Lines(commands) {
		m := grpcurlCall.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			if strings.HasPrefix(line, "grpcurl") && !strings.Contains(line, " list\n") && !strings.Contains(line, " describe ") {
				t.Errorf("nobody understands %s", line)
			}
			continue
		}
		name := protoreflect.FullName(m[1] + "." + m[2])
		shown[name] = true
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		md, ok := d.(protoreflect.MethodDescriptor)
		if err != nil || !ok {
			t.Errorf("%s is no method: %v", name, err)
			continue
		}
		if err := checkCall(md, line); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	eachMethod(func(md protoreflect.MethodDescriptor) {
		if !shown[md.FullName()] {
			t.Errorf("%s is not shown", md.FullName())
		}
	})
}

var fieldMask = regexp.MustCompile(`\{"paths": \["(\w+)"\]\}`)

// fromGRPCurl is a request for grpcurl as package protojson reads it, to which a field mask is a text.
func fromGRPCurl(body string) []byte {
	return []byte(fieldMask.ReplaceAllStringFunc(body, func(mask string) string {
		path := fieldMask.FindStringSubmatch(mask)[1]
		return `"` + underscore.ReplaceAllStringFunc(path, func(s string) string { return strings.ToUpper(s[1:]) }) + `"`
	}))
}

var underscore = regexp.MustCompile(`_[a-z]`)

// checkCall compares a call of grpcurl with the contract of its method.
func checkCall(md protoreflect.MethodDescriptor, line string) error {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
	if err != nil {
		return err
	}
	m := mt.New().Interface()
	if data := grpcurlData.FindStringSubmatch(line); data != nil {
		if !json.Valid([]byte(data[1])) {
			return fmt.Errorf("%s is no JSON", data[1])
		}
		if err := protojson.Unmarshal(fromGRPCurl(data[1]), m); err != nil {
			return err
		}
	}
	if err := contract.Validate(m); err != nil {
		return err
	}
	access, _ := proto.GetExtension(md.Options(), optionsv1.E_Access).(optionsv1.Access)
	needed := access == optionsv1.Access_ACCESS_OPERATOR || access == optionsv1.Access_ACCESS_OPERATOR_OR_OWNER || access == optionsv1.Access_ACCESS_OPERATOR_OR_ORDER_ID && orderid.Of(m) == ""
	if strings.Contains(line, "Bearer $TOKEN") != needed {
		return fmt.Errorf("the operator token is needed: %v", needed)
	}
	return nil
}

func TestExample_PlacesAnOrderAndSeesItConfirmed(t *testing.T) {
	t.Parallel()
	s := start(t)
	cmd := exec.CommandContext(t.Context(), "go", "-C", "../examples", "run", "./client")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "SHOP_SERVER="+s.Gateway.HTTPAddr())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, key := range []string{"shop.order.placed", "shop.order.confirmed"} {
		if strings.Count(string(out), key) != 1 {
			t.Errorf("%s is not once in\n%s", key, out)
		}
	}
}

// The broker's library complained about the scheme of "", and the shop about a token that nobody had sent.
func TestExample_SaysWhichVariableIsNotSet(t *testing.T) {
	t.Parallel()
	for example, want := range map[string]string{"./events": "set AMQP_URL, for example to amqp://", "./webhook": "set SHOP_OPERATOR_TOKEN to the operator token"} {
		cmd := exec.CommandContext(t.Context(), "go", "-C", "../examples", "run", example)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "SHOP_SERVER=127.0.0.1:1", "AMQP_URL=", "SHOP_OPERATOR_TOKEN=")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", example, err, out)
		}
	}
}

func TestExample_GoesOnWhereItWasWhenItsConnectionIsCut(t *testing.T) {
	t.Parallel()
	s := start(t)
	through := netproxy.New(t, s.url)
	order := s.Services()["order"]
	if err := order.Stop(); err != nil { // nothing is decided until the connection has been cut
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "-C", "../examples", "run", "./client")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "SHOP_SERVER="+strings.TrimPrefix(through.URL, "http://"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		out = append(out, lines.Text())
		if len(out) > 1 {
			continue
		}
		through.Down()
		if err := order.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.logged(t, "shop.order.confirmed", 1)
		through.Up(t)
	}
	if err := cmd.Wait(); err != nil || len(out) != 2 || !strings.Contains(out[0], "shop.order.placed") || !strings.Contains(out[1], "shop.order.confirmed") {
		t.Errorf("%v\n%s", err, strings.Join(out, "\n"))
	}
}
