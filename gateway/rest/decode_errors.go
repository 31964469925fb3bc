package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"shop.example/gateway/ingress"
	"shop.example/platform/apierror"
)

// This file explains why a request could not be decoded: which field is wrong, in the client's spelling, and what it must be.
// The errors of protojson and grpc-gateway speak of Go and protobuf, so their parsers are run again for one field at a time,
// and what they refuse is described here. This runs only after a request has been refused.

const (
	// maxNameLength is how much of a field's name an error repeats, in bytes.
	maxNameLength = 64
	// maxFound is how many fields may be wrong before the rest is not looked at: a body of 1 MiB has room for hundreds of
	// thousands. It is more than an error names, so that most errors can say how many more there are.
	maxFound = 100
)

// violations are the fields that are wrong, maxFound at most.
type violations []apierror.Violation

func (v *violations) add(field, description string) {
	if !v.full() {
		*v = append(*v, apierror.Violation{Field: field, Description: description})
	}
}

// full reports whether nothing more is added.
func (v *violations) full() bool { return len(*v) >= maxFound }

// bodyError explains why body is not valid JSON of the message md.
func bodyError(md protoreflect.MessageDescriptor, body []byte) *apierror.Error {
	defer ingress.BeginDecoding(len(body))()
	var whole json.RawMessage
	if err := json.Unmarshal(body, &whole); err != nil {
		return apierror.New(codes.InvalidArgument, "INVALID_JSON", "the body is not valid JSON: %s", syntaxProblem(body, err))
	}
	if whole[0] != '{' {
		return apierror.New(codes.InvalidArgument, "INVALID_JSON", "the body must be a JSON object")
	}
	var found violations
	found.object("", md, whole)
	if len(found) == 0 {
		return apierror.New(codes.InvalidArgument, "INVALID_JSON", "the body cannot be read as %s", md.Name())
	}
	return apierror.InvalidArgument(found...)
}

// syntaxProblem says what is wrong with the JSON, and at which line and column.
func syntaxProblem(body []byte, err error) string {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return err.Error()
	}
	// The offset is that of the byte after the wrong one.
	before := body[:max(0, min(int(syntax.Offset)-1, len(body)))]
	line := 1 + bytes.Count(before, []byte("\n"))
	column := len(before) - bytes.LastIndexByte(before, '\n')
	return fmt.Sprintf("line %d, column %d: %v", line, column, syntax)
}

// nullErrors explains which fields of an update are null. Whoever writes that may mean that they stay or that they are cleared: an
// update is refused, because grpc-gateway would set them to nothing, and with them a product's stock or price to zero.
func nullErrors(md protoreflect.MessageDescriptor, body []byte) error {
	if !bytes.Contains(body, []byte("null")) {
		return nil
	}
	defer ingress.BeginDecoding(len(body))()
	var found violations
	if found.nulls("", md, body); len(found) > 0 {
		return apierror.InvalidArgument(found...)
	}
	return nil
}

func (v *violations) nulls(path string, md protoreflect.MessageDescriptor, raw json.RawMessage) {
	var members map[string]json.RawMessage
	if json.Unmarshal(raw, &members) != nil {
		return // it is no object, and bodyError explains whether it has to be one
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		fd := fieldNamed(md, name)
		switch at := join(path, name); {
		case fd == nil:
		case string(members[name]) == "null":
			v.add(at, "is null: leave it out if it stays as it is, or give its new value")
		case fd.Message() != nil && !fd.IsList():
			v.nulls(at, fd.Message(), members[name])
		}
	}
}

func (v *violations) object(path string, md protoreflect.MessageDescriptor, raw json.RawMessage) {
	if raw[0] != '{' {
		v.add(path, "must be an object")
		return
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	_, _ = dec.Token() // the brace
	seen := map[protoreflect.FieldNumber]bool{}
	for dec.More() && !v.full() {
		var value json.RawMessage
		key, _ := dec.Token()
		if err := dec.Decode(&value); err != nil {
			return // not reached: raw is valid JSON
		}
		name := fmt.Sprint(key)
		at := join(path, name)
		fd := fieldNamed(md, name)
		switch {
		case fd == nil:
			v.add(at, unknown("field", "this object", fieldNames(md)))
		case seen[fd.Number()]:
			v.add(at, "given twice")
		default:
			seen[fd.Number()] = true
			v.field(at, fd, value)
		}
	}
}

func (v *violations) field(path string, fd protoreflect.FieldDescriptor, raw json.RawMessage) {
	switch {
	case string(raw) == "null": // the same as absent
	case !fd.IsList():
		v.single(path, fd, raw)
	case raw[0] != '[':
		v.add(path, "must be an array")
	default:
		dec := json.NewDecoder(bytes.NewReader(raw))
		_, _ = dec.Token() // the bracket
		limit, before := apierror.MaxItems(fd), len(*v)
		for i := uint64(0); dec.More() && !v.full(); i++ {
			if i == limit { // a body of 1 MiB has room for hundreds of thousands of elements, the last of which may be the wrong one
				*v = append((*v)[:before], apierror.LongList(path, limit))
				return
			}
			var element json.RawMessage
			if err := dec.Decode(&element); err != nil {
				return // not reached: raw is valid JSON
			}
			v.single(fmt.Sprintf("%s[%d]", path, i), fd, element)
		}
	}
}

// single checks one value: a singular field or an element of a list.
func (v *violations) single(path string, fd protoreflect.FieldDescriptor, raw json.RawMessage) {
	if md := fd.Message(); md != nil && !fd.IsMap() && !strings.HasPrefix(string(md.FullName()), "google.protobuf.") {
		v.object(path, md, raw)
		return
	}
	value := []byte(raw)
	if fd.IsList() {
		value = slices.Concat([]byte("["), raw, []byte("]"))
	}
	alone := slices.Concat([]byte(`{"`+fd.JSONName()+`":`), value, []byte("}"))
	if protojson.Unmarshal(alone, dynamicpb.NewMessage(fd.ContainingMessage())) != nil {
		v.add(path, mustBe(fd, string(raw)))
	}
}

// parameterErrors explains which parameters of a query or path are wrong. bound reports whether a field is set by the path
// or the body, so that the query must not set it.
func parameterErrors(mt protoreflect.MessageType, parameters url.Values, bound func(field string) bool) violations {
	var found violations
	msg := mt.New().Interface()
	seen := map[string]bool{}
	for _, name := range sortedKeys(parameters) {
		if found.full() {
			break
		}
		values := parameters[name]
		field, fd := fieldAt(mt.Descriptor(), name)
		switch {
		case fd == nil || bound(field):
			found.add(truncateName(name), unknown("parameter", "this call", slices.DeleteFunc(fieldNames(mt.Descriptor()), bound)))
		case seen[field] || len(values) > 1 && !fd.IsList():
			found.add(name, "given twice")
		default:
			seen[field] = true
			found.parameter(msg, name, field, fd, values)
		}
	}
	return found
}

func (v *violations) parameter(msg proto.Message, name, field string, fd protoreflect.FieldDescriptor, values []string) {
	for _, value := range values {
		// Invalid UTF-8 would be noticed only when the message is encoded.
		if !utf8.ValidString(value) || runtime.PopulateFieldFromPath(msg, field, value) != nil {
			v.add(name, mustBe(fd, value))
		}
	}
}

// fieldNames are the contract's names of the fields of a message.
func fieldNames(md protoreflect.MessageDescriptor) []string {
	names := make([]string, md.Fields().Len())
	for i := range names {
		names[i] = string(md.Fields().Get(i).Name())
	}
	return names
}

// unknown says that there is no such thing, and what there is.
func unknown(thing, owner string, names []string) string {
	known := "none"
	if len(names) > 0 {
		known = strings.Join(names, ", ")
	}
	return fmt.Sprintf("unknown %s: %s has %s", thing, owner, known)
}

// fieldNamed finds a field by either of the names that JSON may use, or returns nil.
func fieldNamed(md protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if fd := md.Fields().ByJSONName(name); fd != nil {
		return fd
	}
	return md.Fields().ByTextName(name)
}

// fieldAt finds the field at a dotted path and returns the path in the contract's names; nil if there is none.
func fieldAt(md protoreflect.MessageDescriptor, path string) (string, protoreflect.FieldDescriptor) {
	var names []string
	var fd protoreflect.FieldDescriptor
	for name := range strings.SplitSeq(path, ".") {
		if md == nil {
			return "", nil
		}
		if fd = fieldNamed(md, name); fd == nil {
			return "", nil
		}
		names = append(names, string(fd.Name()))
		if md = fd.Message(); fd.IsList() || fd.IsMap() {
			md = nil
		}
	}
	return strings.Join(names, "."), fd
}

// mustBe says what a value of the field must be, given that raw is wrong.
func mustBe(fd protoreflect.FieldDescriptor, raw string) string {
	switch fd.Kind() {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return wholeNumber(raw, "-2147483648", "2147483647")
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return wholeNumber(raw, "-9223372036854775808", "9223372036854775807")
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return wholeNumber(raw, "0", "4294967295")
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return wholeNumber(raw, "0", "18446744073709551615")
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return "must be a number"
	case protoreflect.BoolKind:
		return "must be true or false"
	case protoreflect.StringKind:
		if strings.HasPrefix(raw, `"`) || !utf8.ValidString(raw) {
			return "must be valid UTF-8"
		}
		return "must be a string"
	case protoreflect.BytesKind:
		return "must be a string in base64"
	case protoreflect.EnumKind:
		return "must be one of " + strings.Join(enumNames(fd.Enum()), ", ")
	default:
		return mustBeMessage(fd.Message())
	}
}

func mustBeMessage(md protoreflect.MessageDescriptor) string {
	switch md.FullName() {
	case "google.protobuf.Timestamp":
		return "must be a time such as 2030-12-31T23:59:59Z"
	case "google.protobuf.FieldMask":
		return "must be names of fields, with commas between"
	default:
		return "must be a " + string(md.Name())
	}
}

func wholeNumber(raw, lowest, highest string) string {
	digits := strings.TrimPrefix(strings.Trim(raw, `"`), "-")
	if digits != "" && strings.Trim(digits, "0123456789") == "" {
		return fmt.Sprintf("must be between %s and %s", lowest, highest)
	}
	return "must be a whole number"
}

// enumNames lists the values that a client may send, without the zero value.
func enumNames(ed protoreflect.EnumDescriptor) []string {
	var names []string
	for i := range ed.Values().Len() {
		if v := ed.Values().Get(i); v.Number() != 0 {
			names = append(names, string(v.Name()))
		}
	}
	return names
}

// truncateName shortens a name for an error. It also makes it valid UTF-8, without which the status would lose its details.
func truncateName(name string) string {
	if len(name) > maxNameLength {
		return strings.ToValidUTF8(name[:maxNameLength], "") + "…"
	}
	return strings.ToValidUTF8(name, "\uFFFD")
}

// join adds a name to a path. A name with special characters is quoted.
func join(path, name string) string {
	name = truncateName(name)
	if name == "" || strings.ContainsAny(name, ".[]\" \t\n") {
		name = strconv.Quote(name)
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

func sortedKeys(values url.Values) []string {
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
