package main

import (
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/tools/apidoc/contract"
)

// schema is a JSON Schema, of the JSON form of a message.
type schema struct {
	Ref         string `yaml:"$ref,omitempty"`
	Type        string `yaml:",omitempty"`
	Format      string `yaml:",omitempty"`
	Description string `yaml:",omitempty"`
	AllOf       []ref  `yaml:"allOf,omitempty"`

	// Known are values that a later release may have more of: a reader must not refuse those.
	Known     []string `yaml:"x-extensible-enum,omitempty"`
	MinLength uint64   `yaml:"minLength,omitempty"`
	MaxLength uint64   `yaml:"maxLength,omitempty"`
	Pattern   string   `yaml:",omitempty"`
	Minimum   *number  `yaml:",omitempty"`
	Maximum   *number  `yaml:",omitempty"`

	Items       *schema `yaml:",omitempty"`
	MinItems    uint64  `yaml:"minItems,omitempty"`
	MaxItems    uint64  `yaml:"maxItems,omitempty"`
	UniqueItems bool    `yaml:"uniqueItems,omitempty"`

	Required   []string   `yaml:",omitempty"`
	Properties properties `yaml:",omitempty"`
}

// number is written without an exponent: 1e+09 is a text to readers of YAML 1.1.
type number float64

// MarshalYAML implements yaml.Marshaler.
func (n number) MarshalYAML() (any, error) {
	return &yaml.Node{Kind: yaml.ScalarNode, Value: strconv.FormatFloat(float64(n), 'f', -1, 64)}, nil
}

// properties are those of an object, in the order of the contract.
type properties []property

type property struct {
	name   string
	schema *schema
}

// MarshalYAML implements yaml.Marshaler.
func (p properties) MarshalYAML() (any, error) {
	node := &yaml.Node{Kind: yaml.MappingNode}
	for _, property := range p {
		key, value := &yaml.Node{}, &yaml.Node{}
		key.SetString(property.name)
		if err := value.Encode(property.schema); err != nil {
			return nil, err
		}
		node.Content = append(node.Content, key, value)
	}
	return node, nil
}

// schemas are those of the messages that were asked for and of what these consist of, by name.
type schemas map[string]*schema

// of returns a reference to the schema of a message.
func (s schemas) of(md protoreflect.MessageDescriptor) ref {
	name := nameOf(md)
	if _, known := s[name]; !known {
		object := &schema{Type: "object", Description: contract.Comment(md)}
		s[name] = object
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			rules := contract.RulesOf(fd)
			if rules.Required {
				object.Required = append(object.Required, string(fd.Name()))
			}
			object.Properties = append(object.Properties, property{string(fd.Name()), s.field(fd, rules)})
		}
	}
	return ref{"#/components/schemas/" + name}
}

// nameOf is a message's name within its file: "CreateItems.Item".
func nameOf(md protoreflect.MessageDescriptor) string {
	if parent, nested := md.Parent().(protoreflect.MessageDescriptor); nested {
		return nameOf(parent) + "." + string(md.Name())
	}
	return string(md.Name())
}

func (s schemas) field(fd protoreflect.FieldDescriptor, rules contract.Rules) *schema {
	if !fd.IsList() {
		single := s.single(fd, rules)
		if single.Ref != "" { // beside a reference nothing else counts
			single = &schema{AllOf: []ref{{single.Ref}}}
		}
		single.Description = contract.Comment(fd)
		return single
	}
	each := contract.Rules{}
	if rules.Items != nil {
		each = *rules.Items
	}
	return &schema{
		Type: "array", Description: contract.Comment(fd), Items: s.single(fd, each),
		MinItems: rules.MinItems, MaxItems: rules.MaxItems, UniqueItems: rules.UniqueItems,
	}
}

func (s schemas) single(fd protoreflect.FieldDescriptor, rules contract.Rules) *schema {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		switch fd.Message().FullName() {
		case "google.protobuf.Timestamp":
			return &schema{Type: "string", Format: "date-time"}
		case "google.protobuf.Struct":
			return &schema{Type: "object"}
		}
		return &schema{Ref: s.of(fd.Message()).Ref}
	case protoreflect.EnumKind:
		return &schema{Type: "string", Known: valuesOf(fd.Enum(), rules.NotIn)}
	case protoreflect.BoolKind:
		return &schema{Type: "boolean"}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return &schema{Type: "number", Minimum: (*number)(rules.Minimum), Maximum: (*number)(rules.Maximum)}
	case protoreflect.BytesKind:
		return &schema{Type: "string", Format: "byte"}
	case protoreflect.StringKind:
		return &schema{
			Type: "string", Format: rules.Format, MinLength: rules.MinLength, MaxLength: rules.MaxLength, Pattern: rules.Pattern,
		}
	case protoreflect.Int64Kind, protoreflect.Uint64Kind, protoreflect.Sint64Kind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
		return &schema{Type: "string", Format: "int64"} // JSON's numbers are not whole beyond 2^53
	default:
		return &schema{Type: "integer", Format: "int32", Minimum: (*number)(rules.Minimum), Maximum: (*number)(rules.Maximum)}
	}
}

func valuesOf(ed protoreflect.EnumDescriptor, without []int32) []string {
	var names []string
	for i := range ed.Values().Len() {
		if v := ed.Values().Get(i); !slices.Contains(without, int32(v.Number())) {
			names = append(names, string(v.Name()))
		}
	}
	return names
}
