// Package compat finds out whether a change of the contracts breaks those who use them, as far as `buf breaking` does not
// see it: routes, access, ways over the broker, identities, validation rules, names in the published documents.
package compat

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	optionsv1 "shop.example/gen/shop/options/v1"
)

// The presence of a field. A rule for one without presence is about its zero value, too.
const (
	implicit = "implicit"
	explicit = "explicit"
)

// anybody publishes an event that names nobody.
const anybody = "anybody"

// Facts are what clients and services rely on. The key is a kind of fact and what it is about, for example "access
// /shop.order.v1.OrderService/GetOrder"; the value is what is true of it.
type Facts map[string]string

// Of returns the facts in the contracts of files.
func Of(files []protoreflect.FileDescriptor) Facts {
	f := Facts{}
	for _, file := range files {
		options, _ := file.Options().(*descriptorpb.FileOptions)
		f.add("java_package", file.Path(), options.GetJavaPackage())
		f.add("csharp_namespace", file.Path(), options.GetCsharpNamespace())
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				f.method(methods.Get(j))
			}
		}
		f.messages(file.Messages())
	}
	return f
}

func (f Facts) add(kind, about string, value ...string) {
	if text := strings.Join(value, " "); text != "" {
		f[kind+" "+about] = text
	}
}

func (f Facts) method(md protoreflect.MethodDescriptor) {
	name := fmt.Sprintf("/%s/%s", md.Parent().FullName(), md.Name())
	if rule, _ := proto.GetExtension(md.Options(), annotations.E_Http).(*annotations.HttpRule); rule != nil {
		for _, r := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
			f.add("route", verbAndPath(r), name, "body="+r.GetBody(), "response="+r.GetResponseBody())
		}
	}
	if access, _ := proto.GetExtension(md.Options(), optionsv1.E_Access).(optionsv1.Access); access != 0 {
		f.add("access", name, access.String())
	}
	callers, _ := proto.GetExtension(md.Options(), optionsv1.E_Callers).([]string)
	f.add("callers", name, callers...)
	if rpc, _ := proto.GetExtension(md.Options(), optionsv1.E_Rpc).(*optionsv1.Rpc); rpc != nil {
		f.add("call", name, rpc.GetExchange(), rpc.GetRoutingKey(), rpc.GetQueue())
		f.add("called_by", name, rpc.GetCalledBy()...)
		f.add("answered_by", name, rpc.GetAnsweredBy())
	}
}

func verbAndPath(r *annotations.HttpRule) string {
	switch p := r.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return "GET " + p.Get
	case *annotations.HttpRule_Put:
		return "PUT " + p.Put
	case *annotations.HttpRule_Post:
		return "POST " + p.Post
	case *annotations.HttpRule_Delete:
		return "DELETE " + p.Delete
	case *annotations.HttpRule_Patch:
		return "PATCH " + p.Patch
	case *annotations.HttpRule_Custom:
		return p.Custom.GetKind() + " " + p.Custom.GetPath()
	}
	return ""
}

func (f Facts) messages(all protoreflect.MessageDescriptors) {
	for i := range all.Len() {
		md := all.Get(i)
		name := string(md.FullName())
		f.add("type", name, "message")
		if event, _ := proto.GetExtension(md.Options(), optionsv1.E_Event).(*optionsv1.Event); event != nil {
			f.add("event", name, event.GetExchange(), event.GetRoutingKey())
			f.add("identity", name, event.GetIdentity()...)
			f.add("published_by", name, cmp.Or(strings.Join(event.GetPublishedBy(), " "), anybody))
			f.add("handled_by", name, event.GetHandledBy()...)
			f.add("answer", name, event.GetAnswer())
		}
		rules, _ := proto.GetExtension(md.Options(), validate.E_Message).(*validate.MessageRules)
		f.rules(name, "", rules.ProtoReflect())
		for j := range md.Fields().Len() {
			fd := md.Fields().Get(j)
			presence := implicit
			if fd.HasPresence() {
				presence = explicit
			}
			f.add("field", string(fd.FullName()), presence)
			rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
			f.rules(string(fd.FullName()), "", rules.ProtoReflect())
		}
		f.messages(md.Messages())
	}
}

// rules adds the validation rules that m sets, each by its path: "repeated.items.string.uuid".
func (f Facts) rules(about, path string, m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		at := strings.TrimPrefix(path+"."+string(fd.Name()), ".")
		switch {
		case fd.IsList() && fd.Message() != nil: // rules in CEL
			for i := range value.List().Len() {
				rule := value.List().Get(i).Message().Interface().(*validate.Rule)
				f.add("rule", about+" "+at+"."+rule.GetId(), rule.GetExpression())
			}
		case fd.IsList():
			var all []string
			for i := range value.List().Len() {
				all = append(all, fmt.Sprint(value.List().Get(i)))
			}
			f.add("rule", about+" "+at, all...)
		case fd.Message() != nil && fd.Message().FullName().Parent() == "buf.validate":
			f.rules(about, at, value.Message())
		case fd.Message() != nil: // a limit of time
			f.add("rule", about+" "+at, fmt.Sprint(value.Message().Interface()))
		default:
			f.add("rule", about+" "+at, value.String())
		}
		return true
	})
}

// AddDocuments adds the names that generated clients get from an OpenAPI document, in JSON, and an AsyncAPI document, in
// YAML.
func (f Facts) AddDocuments(openAPI, asyncAPI []byte) error {
	var rest struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
		}
		Definitions map[string]json.RawMessage // of version 2
		Components  struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal(openAPI, &rest); err != nil {
		return fmt.Errorf("reading the OpenAPI document: %w", err)
	}
	for path, item := range rest.Paths {
		for verb, operation := range item {
			f.add("operation", strings.ToUpper(verb)+" "+path, operation.OperationID)
		}
	}
	for _, schema := range slices.Concat(slices.Collect(maps.Keys(rest.Definitions)), slices.Collect(maps.Keys(rest.Components.Schemas))) {
		f.add("schema", "OpenAPI "+schema, schema)
	}
	var events struct {
		Channels   map[string]yaml.Node
		Operations map[string]yaml.Node
		Components struct{ Messages, Schemas map[string]yaml.Node }
	}
	if err := yaml.Unmarshal(asyncAPI, &events); err != nil {
		return fmt.Errorf("reading the AsyncAPI document: %w", err)
	}
	for kind, names := range map[string]map[string]yaml.Node{
		"channel": events.Channels, "message": events.Components.Messages, "schema": events.Components.Schemas, "operation": events.Operations,
	} {
		for name := range names {
			f.add(kind, "AsyncAPI "+name, name)
		}
	}
	return nil
}
