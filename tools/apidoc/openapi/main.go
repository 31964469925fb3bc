// Command openapi is a plugin of protoc that writes the OpenAPI document. It tells protoc-gen-openapiv2 what the contracts
// say in other options than its own, protovalidate's rules about fields and who may make a call (main.go); turns the Swagger
// 2.0 that it gets into OpenAPI 3.1 and says what Swagger cannot (document.go); and lists the reasons of refusals (errors.go).
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2/options"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/pluginpb"

	"shop.example/tools/apidoc/contract"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("openapi: ")
	if err := run(context.Background(), os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, in io.Reader, out io.Writer) error {
	encoded, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{}
	if err := proto.Unmarshal(encoded, request); err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	contracts, err := contract.Read(request)
	if err != nil {
		return err
	}
	table, err := readErrors("../../docs/errors.md")
	if err != nil {
		return err
	}
	if err := explain(request, contracts); err != nil {
		return err
	}
	response, err := generate(ctx, request)
	if err != nil {
		return err
	}
	for _, file := range response.GetFile() {
		document, err := inVersion3([]byte(file.GetContent()), contracts, table)
		if err != nil {
			return err
		}
		file.Name, file.Content = proto.String("shop.openapi.json"), proto.String(string(document))
	}
	if encoded, err = proto.Marshal(response); err != nil {
		return err
	}
	_, err = out.Write(encoded)
	return err
}

// generate calls protoc-gen-openapiv2.
func generate(ctx context.Context, request *pluginpb.CodeGeneratorRequest) (*pluginpb.CodeGeneratorResponse, error) {
	encoded, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	generator := exec.CommandContext(ctx, "go", "tool", "protoc-gen-openapiv2")
	generator.Stdin, generator.Stderr = bytes.NewReader(encoded), os.Stderr
	if encoded, err = generator.Output(); err != nil {
		return nil, fmt.Errorf("protoc-gen-openapiv2: %w", err)
	}
	response := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(encoded, response); err != nil {
		return nil, err
	}
	if response.Error != nil {
		return nil, errors.New("protoc-gen-openapiv2: " + response.GetError())
	}
	return response, nil
}

// explain adds the generator's options to the contracts of the request.
func explain(request *pluginpb.CodeGeneratorRequest, contracts *contract.Contracts) error {
	descriptors := map[protoreflect.FullName]proto.Message{}
	for _, file := range request.GetProtoFile() {
		index(descriptors, file)
		for _, at := range file.GetSourceCodeInfo().GetLocation() {
			if at.LeadingComments != nil {
				at.LeadingComments = proto.String(contract.Prose(at.GetLeadingComments()))
			}
		}
	}
	for _, md := range contracts.Messages() {
		explainMessage(descriptors, md)
	}
	for _, md := range contracts.Methods() {
		var access protoreflect.EnumNumber
		if option, said := contracts.Option(md, "access"); said {
			access = option.Enum()
		}
		said := operation(contract.Comment(md), access == operator || access == operatorOrOrderID || access == operatorOrOwner)
		method := descriptors[md.FullName()].(*descriptorpb.MethodDescriptorProto)
		if access == operatorOrOrderID {
			ofOrder, err := separate(descriptors[md.Parent().FullName()].(*descriptorpb.ServiceDescriptorProto), method)
			if err != nil {
				return err
			}
			explainMethod(ofOrder, operation(contract.Comment(md), false))
			said.Description = contract.Comment(md) + "\n\nIf order_id is given, the call is for anyone who has it; an order that was placed with a token of the issuer is its owner's alone."
		}
		explainMethod(method, said)
	}
	return nil
}

// These are values of shop.options.v1.Access.
const (
	operator          protoreflect.EnumNumber = 1
	operatorOrOrderID protoreflect.EnumNumber = 2
	operatorOrOwner   protoreflect.EnumNumber = 4
)

// separate makes a method of its own of the REST calls that have the order's id in their path: the generator knows one
// security for all calls of a method. Its name is such that the calls keep the ids that the generator gives them.
func separate(service *descriptorpb.ServiceDescriptorProto, method *descriptorpb.MethodDescriptorProto) (*descriptorpb.MethodDescriptorProto, error) {
	rule := proto.GetExtension(method.GetOptions(), annotations.E_Http).(*annotations.HttpRule)
	if len(rule.GetAdditionalBindings()) != 1 {
		return nil, fmt.Errorf("%s: a call for operators or by order id needs one additional binding, with the order's id in its path", method.GetName())
	}
	ofOrder := proto.CloneOf(method)
	ofOrder.Name = proto.String(method.GetName() + "2")
	proto.SetExtension(ofOrder.Options, annotations.E_Http, rule.GetAdditionalBindings()[0])
	rule.AdditionalBindings = nil
	proto.SetExtension(method.Options, annotations.E_Http, rule)
	service.Method = append(service.Method, ofOrder)
	return ofOrder, nil
}

// explainMethod adds what is said to what the contract says in the generator's options.
func explainMethod(method *descriptorpb.MethodDescriptorProto, said *options.Operation) {
	if method.Options == nil {
		method.Options = &descriptorpb.MethodOptions{}
	}
	proto.Merge(said, proto.GetExtension(method.Options, options.E_Openapiv2Operation).(*options.Operation))
	proto.SetExtension(method.Options, options.E_Openapiv2Operation, said)
}

// index finds the descriptors by name.
func index(found map[protoreflect.FullName]proto.Message, file *descriptorpb.FileDescriptorProto) {
	pkg := protoreflect.FullName(file.GetPackage())
	var messages func(in protoreflect.FullName, list []*descriptorpb.DescriptorProto)
	messages = func(in protoreflect.FullName, list []*descriptorpb.DescriptorProto) {
		for _, m := range list {
			name := in.Append(protoreflect.Name(m.GetName()))
			found[name] = m
			for _, f := range m.GetField() {
				found[name.Append(protoreflect.Name(f.GetName()))] = f
			}
			messages(name, m.GetNestedType())
		}
	}
	messages(pkg, file.GetMessageType())
	for _, s := range file.GetService() {
		found[pkg.Append(protoreflect.Name(s.GetName()))] = s
		for _, m := range s.GetMethod() {
			found[pkg.Append(protoreflect.Name(s.GetName())).Append(protoreflect.Name(m.GetName()))] = m
		}
	}
}

func explainMessage(descriptors map[protoreflect.FullName]proto.Message, md protoreflect.MessageDescriptor) {
	var required []string
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		rules := contract.RulesOf(fd)
		if rules.Required {
			required = append(required, string(fd.Name()))
		}
		field := descriptors[fd.FullName()].(*descriptorpb.FieldDescriptorProto)
		if said := inJSONSchema(rules); proto.Size(said) > 0 {
			if field.Options == nil {
				field.Options = &descriptorpb.FieldOptions{}
			}
			proto.Merge(said, proto.GetExtension(field.GetOptions(), options.E_Openapiv2Field).(*options.JSONSchema))
			proto.SetExtension(field.Options, options.E_Openapiv2Field, said)
		}
	}
	if len(required) == 0 {
		return
	}
	message := descriptors[md.FullName()].(*descriptorpb.DescriptorProto)
	if message.Options == nil {
		message.Options = &descriptorpb.MessageOptions{}
	}
	said := &options.Schema{JsonSchema: &options.JSONSchema{Required: required}}
	proto.Merge(said, proto.GetExtension(message.GetOptions(), options.E_Openapiv2Schema).(*options.Schema))
	proto.SetExtension(message.Options, options.E_Openapiv2Schema, said)
}

// minimum is the extension in which a lower bound comes through the generator.
const minimum = "x-minimum"

func inJSONSchema(r contract.Rules) *options.JSONSchema {
	s := &options.JSONSchema{
		MinLength: r.MinLength, MaxLength: r.MaxLength, Pattern: r.Pattern, Format: r.Format,
		MinItems: r.MinItems, MaxItems: r.MaxItems, UniqueItems: r.UniqueItems,
	}
	if r.Minimum != nil { // its own option for it knows no bound of 0
		s.Extensions = map[string]*structpb.Value{minimum: structpb.NewNumberValue(*r.Minimum)}
	}
	if r.Maximum != nil {
		s.Maximum = *r.Maximum
	}
	return s
}

// operation says who may make a call, what it is for in a sentence and in full, and what every call answers.
func operation(comment string, forOperators bool) *options.Operation {
	summary, _, _ := strings.Cut(strings.ReplaceAll(comment, "\n", " "), ". ")
	said := &options.Operation{
		Summary: strings.TrimSuffix(summary, "."),
		Responses: map[string]*options.Response{
			"200": {Description: "The answer."},
		},
	}
	if said.Summary != strings.TrimSuffix(comment, ".") {
		said.Description = comment
	}
	if forOperators {
		said.Security = []*options.SecurityRequirement{{
			SecurityRequirement: map[string]*options.SecurityRequirement_SecurityRequirementValue{bearer: {}},
		}}
	}
	return said
}
