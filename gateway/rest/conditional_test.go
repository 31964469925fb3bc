package rest

import (
	"context"
	"net/http"
	"slices"
	"testing"

	"github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2/options"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

func TestConditions_AreThoseOfRFC9110(t *testing.T) {
	t.Parallel()
	const tag = "3"
	for name, c := range map[string]struct {
		match, noneMatch []string
		hold             bool
	}{
		"none":                           {hold: true},
		"the tag":                        {match: []string{`"3"`}, hold: true},
		"one of several":                 {match: []string{`"1", "3"`}, hold: true},
		"one of several lines":           {match: []string{`"1"`, `"3"`}, hold: true},
		"another":                        {match: []string{`"4"`}},
		"any":                            {match: []string{"*"}, hold: true},
		"a tag with a comma":             {match: []string{`"1,", "3"`}, hold: true},
		"a part of a tag":                {match: []string{`"1,3"`}},
		"a weak one is never strong":     {match: []string{`W/"3"`}},
		"an empty list":                  {match: []string{""}},
		"not the tag":                    {noneMatch: []string{`"3"`}},
		"not it, weak":                   {noneMatch: []string{`W/"3"`}},
		"not another":                    {noneMatch: []string{`"4"`}, hold: true},
		"not any":                        {noneMatch: []string{"*"}},
		"the tag of the compressed form": {match: []string{`"3-gzip"`}, hold: true},
		"not the compressed form":        {noneMatch: []string{`"3-gzip"`}},
		"both":                           {match: []string{`"3"`}, noneMatch: []string{`"4"`}, hold: true},
	} {
		r, err := withConditions(&http.Request{Header: http.Header{"If-Match": c.match, "If-None-Match": c.noneMatch}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		conditions, given := r.Context().Value(conditionsKey{}).(*conditions)
		if given != (len(c.match)+len(c.noneMatch) > 0) || given && conditions.hold(tag) != c.hold {
			t.Errorf("%s: they hold: %t, want %t", name, !c.hold, c.hold)
		}
	}
	for _, wrong := range []string{"3", `"3`, `W/3`, `"3" 4`} {
		if tags, err := parseTags("If-Match", []string{wrong}, false); err == nil {
			t.Errorf("%s is read as %q", wrong, tags)
		}
	}
	if tags, err := parseTags("If-Match", []string{` ,"a" ,, "b"`}, false); err != nil || !slices.Equal(tags, []string{"a", "b"}) {
		t.Errorf("a list with gaps is read as %q, %v", tags, err)
	}
}

// The OpenAPI document has conditions, and says 304 and 412, where the contract has their headers.
func TestConditions_TheContractHasThemWhereTheyAreObserved(t *testing.T) {
	t.Parallel()
	calls := 0
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				md := methods.Get(j)
				rule, ok := proto.GetExtension(md.Options(), annotations.E_Http).(*annotations.HttpRule)
				if !ok || rule.GetPattern() == nil {
					continue
				}
				calls++
				name, observed := "If-Match", demands(t, md)
				if rule.GetGet() != "" {
					name, observed = "If-None-Match", hasTag(t, md)
				}
				if has := takesHeader(md, name); has != observed {
					t.Errorf("%s: the contract has the header %s: %t, it is observed: %t", md.FullName(), name, has, observed)
				}
			}
		}
		return true
	})
	if calls == 0 {
		t.Error("there are no calls")
	}
}

func takesHeader(md protoreflect.MethodDescriptor, name string) bool {
	operation, _ := proto.GetExtension(md.Options(), options.E_Openapiv2Operation).(*options.Operation)
	return slices.ContainsFunc(operation.GetParameters().GetHeaders(), func(h *options.HeaderParameter) bool { return h.GetName() == name })
}

// hasTag says whether what the call answers has an entity tag.
func hasTag(t *testing.T, md protoreflect.MethodDescriptor) bool {
	return tagOf(withETags(t, md.Output())) != ""
}

// withETags is a message whose fields have etags.
func withETags(t *testing.T, md protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		t.Fatal(err)
	}
	m := kind.New()
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if fd.Message() == nil || fd.Cardinality() == protoreflect.Repeated {
			continue
		}
		resource := m.Mutable(fd).Message()
		if etag := resource.Descriptor().Fields().ByName("etag"); etag != nil {
			resource.Set(etag, protoreflect.ValueOfString("1"))
		}
	}
	return m.Interface()
}

// reading is a connection that notices calls.
type reading struct {
	grpc.ClientConnInterface
	called bool
}

func (c *reading) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	c.called = true
	return nil
}

// demands says whether what the call is about to change is read under a condition.
func demands(t *testing.T, md protoreflect.MethodDescriptor) bool {
	conn := &reading{}
	_ = (&conditions{match: []string{"1"}}).demand(t.Context(), conn, withETags(t, md.Input())) // it does not hold
	return conn.called
}
