package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"mvdan.cc/sh/v3/shell"
)

// apiRow is a row of docs/api.md.
type apiRow struct {
	call, curl, grpcurl, answer string
	errors                      []string
}

func (r apiRow) method() string {
	name, _, _ := strings.Cut(r.call, ",")
	return name
}

var quoted = regexp.MustCompile("`([^`]+)`")

func apiRows(t *testing.T) []apiRow {
	t.Helper()
	text, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []apiRow
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 5 || strings.HasPrefix(line, "| ---") || strings.HasPrefix(line, "| call ") {
			continue
		}
		r := apiRow{call: strings.TrimSpace(cells[0]), answer: cells[3]}
		if m := quoted.FindStringSubmatch(cells[1]); m != nil {
			r.curl = m[1]
		}
		if m := quoted.FindStringSubmatch(cells[2]); m != nil {
			r.grpcurl = m[1]
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[4], -1) {
			r.errors = append(r.errors, m[1])
		}
		rows = append(rows, r)
	}
	return rows
}

func TestAPI_EachMethodOfTheContractsHasARow(t *testing.T) {
	t.Parallel()
	rows := map[string]bool{}
	for _, r := range apiRows(t) {
		rows[r.method()] = true
	}
	used := reasons(t)
	for _, r := range apiRows(t) {
		for _, reason := range r.errors {
			if used[reason] == "" {
				t.Errorf("docs/api.md: %s may fail with %s, which no source uses", r.call, reason)
			}
		}
	}
	methods := map[string]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(file.Package()), "shop.") {
			return true
		}
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				md := file.Services().Get(i).Methods().Get(j)
				methods[string(md.Name())] = true
				if !rows[string(md.Name())] {
					t.Errorf("docs/api.md has no row for %s: add | %s | `curl …` | `grpcurl … %s/%s` | 200: fields | reasons |",
						md.FullName(), md.Name(), md.Parent().FullName(), md.Name())
				}
			}
		}
		return true
	})
	for method := range rows {
		if !methods[method] {
			t.Errorf("docs/api.md has a row for %s, which no service has: remove it", method)
		}
	}
}

func TestAPI_EachCallDoesWhatItsRowSays(t *testing.T) {
	t.Parallel()
	s := start(t)
	letters := s.makeDeadLetters(t, 8)
	hook, delivery := s.deliveredWebhook(t)
	otherHook, _ := s.createWebhook(t, "https://receiver.example/")
	variables := func(name string) string {
		switch name {
		case "TOKEN":
			return operatorToken
		case "ID": // a new one each time: what was cancelled cannot be changed again
			order := s.decided(t, s.place(t, 5, 1))
			s.settled(t)
			return order.ID
		case "SHARE":
			var share struct {
				Token string `json:"share_token"`
			}
			s.call(t, http.MethodPost, s.place(t, 5, 1)+":share", "{}").json(t, &share)
			return share.Token
		case "LETTER": // a new one each time: what was redriven cannot be discarded
			next := letters[0]
			letters = letters[1:]
			return next.ID
		case "WEBHOOK":
			return hook
		case "DELIVERY":
			return delivery
		case "OTHER_WEBHOOK":
			return otherHook
		}
		return ""
	}
	conn := s.dial(t)
	ran := 0
	for _, r := range apiRows(t) {
		if r.curl != "" {
			ran++
			s.checkCurl(t, r, words(t, r.curl, variables))
		}
		if r.grpcurl != "" {
			ran++
			checkGRPCurl(t, r, words(t, r.grpcurl, variables), conn)
		}
	}
	if ran < 30 {
		t.Errorf("%d calls were made: the table was not read", ran)
	}
}

// words splits a command line as a shell does.
func words(t *testing.T, line string, variables func(string) string) []string {
	t.Helper()
	fields, err := shell.Fields(line, variables)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return fields[1:]
}

// makeDeadLetters publishes n messages that cannot be decoded, and returns their dead letters.
func (s *shop) makeDeadLetters(t *testing.T, n int) []deadLetter {
	t.Helper()
	ch := s.openChannel(t)
	for i := range n {
		err := ch.PublishWithContext(t.Context(), "shop.topic", "shop.order.placed", true, false,
			amqp.Publishing{MessageId: strconv.Itoa(i), DeliveryMode: amqp.Persistent, Body: []byte("unreadable")})
		if err != nil {
			t.Fatal(err)
		}
	}
	var letters []deadLetter
	eventually(t, func() error {
		if letters = s.deadLetters(t, "OPEN"); len(letters) < n {
			return fmt.Errorf("%d of %d dead letters are there", len(letters), n)
		}
		return nil
	})
	return letters
}

// checkCurl makes the call that curl would make.
func (s *shop) checkCurl(t *testing.T, r apiRow, args []string) {
	t.Helper()
	method, body, path := http.MethodGet, "", ""
	header := http.Header{}
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "-X":
			i++
			method = args[i]
		case "-H":
			i++
			name, value, _ := strings.Cut(args[i], ": ")
			header.Add(name, value)
		case "-d":
			i++
			if body = args[i]; method == http.MethodGet {
				method = http.MethodPost
			}
		case "-N":
		default:
			path = strings.TrimPrefix(args[i], "localhost:3000")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", r.curl, err)
	}
	defer res.Body.Close()
	status, shape, _ := strings.Cut(r.answer, ": ")
	shape, _, _ = strings.Cut(shape, "; in ")
	kind := res.Header.Get("Content-Type")
	if strconv.Itoa(res.StatusCode) != status {
		text, _ := io.ReadAll(res.Body)
		t.Errorf("%s\nis answered with %d %s, the row says %s", r.curl, res.StatusCode, text, r.answer)
		return
	}
	if strings.HasPrefix(shape, "text/") {
		if !strings.HasPrefix(kind, shape) {
			t.Errorf("%s\nis answered with %s, the row says %s", r.curl, kind, shape)
		}
		return
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	checkShape(t, r.curl, shape, text)
}

// checkGRPCurl makes the call that grpcurl would make.
func checkGRPCurl(t *testing.T, r apiRow, args []string, conn *grpc.ClientConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	body, sent := "{}", metadata.MD{}
	for i := 0; i < len(args)-2; i++ {
		switch args[i] {
		case "-H":
			i++
			name, value, _ := strings.Cut(args[i], ": ")
			sent.Append(name, value)
		case "-d":
			i++
			body = args[i]
		}
	}
	ctx = metadata.NewOutgoingContext(ctx, sent)
	call := args[len(args)-1]
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(call, "/", ".")))
	if err != nil {
		t.Fatalf("%s: %v", r.grpcurl, err)
	}
	md := d.(protoreflect.MethodDescriptor)
	if string(md.Name()) != r.method() {
		t.Errorf("the row of %s calls %s", r.call, md.Name())
	}
	in, out := dynamicpb.NewMessage(md.Input()), dynamicpb.NewMessage(md.Output())
	if err := protojson.Unmarshal(fromGRPCurl(body), in); err != nil {
		t.Fatalf("%s: %v", r.grpcurl, err)
	}
	if md.IsStreamingServer() {
		if err := firstOf(ctx, conn, call, in, out); err != nil {
			t.Errorf("%s: %v", r.grpcurl, err)
		}
		return
	}
	if err := conn.Invoke(ctx, "/"+call, in, out); err != nil {
		t.Errorf("%s: %v", r.grpcurl, err)
		return
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	_, shape, _ := strings.Cut(r.answer, ": ")
	shape, within, _ := strings.Cut(shape, "; in ")
	if within != "" {
		var outer map[string]json.RawMessage
		if err := json.Unmarshal(text, &outer); err != nil || outer[within] == nil {
			t.Errorf("%s\nis answered with %s, the row says it is in %s", r.grpcurl, text, within)
			return
		}
		text = outer[within]
	}
	if !strings.Contains(shape, " ") && strings.Contains(shape, "/") || shape == "an array" { // as REST alone has it
		return
	}
	checkShape(t, r.grpcurl, shape, text)
}

func firstOf(ctx context.Context, conn *grpc.ClientConn, call string, in, out *dynamicpb.Message) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+call)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(in); err != nil {
		return err
	}
	return stream.RecvMsg(out)
}

// checkShape compares the fields of a JSON object with those that a row names.
func checkShape(t *testing.T, line, shape string, text []byte) {
	t.Helper()
	var got any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Errorf("%s\nis answered with %s: %v", line, text, err)
		return
	}
	object, isObject := got.(map[string]any)
	if shape == "an array" {
		if _, isArray := got.([]any); !isArray {
			t.Errorf("%s\nis answered with %s, the row says an array", line, text)
		}
		return
	}
	if !isObject {
		t.Errorf("%s\nis answered with %s, the row says %s", line, text, shape)
		return
	}
	left := maps.Clone(object)
	if shape != "nothing" {
		for field := range strings.SplitSeq(shape, ", ") {
			name, optional := strings.CutSuffix(field, "?")
			if _, there := object[name]; !there && !optional {
				t.Errorf("%s\nis answered without %s: %s", line, name, text)
			}
			delete(left, name)
		}
	}
	if len(left) > 0 {
		t.Errorf("%s\nis answered with %q, which the row does not name", line, slices.Sorted(maps.Keys(left)))
	}
}
