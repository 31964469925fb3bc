// Package contract reads the contracts as protoc's plugins get them: with the options of shop.options.v1, which the
// plugins know from the contracts alone, because they run before the code for them is written, and with
// protovalidate's rules in the terms of JSON Schema.
package contract

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// Contracts are the files of a request to a plugin.
type Contracts struct {
	files *protoregistry.Files
	types *dynamicpb.Types
	own   []string // the files to generate for; the others are imports
}

// Read reads the contracts of a request.
func Read(request *pluginpb.CodeGeneratorRequest) (*Contracts, error) {
	files, err := protodesc.NewFiles(&descriptorpb.FileDescriptorSet{File: request.GetProtoFile()})
	if err != nil {
		return nil, fmt.Errorf("reading the contracts: %w", err)
	}
	return &Contracts{files: files, types: dynamicpb.NewTypes(files), own: request.GetFileToGenerate()}, nil
}

// Messages lists the messages of the contracts, those within others too, in the order of files and fields.
func (c *Contracts) Messages() []protoreflect.MessageDescriptor {
	var all []protoreflect.MessageDescriptor
	var add func(list protoreflect.MessageDescriptors)
	add = func(list protoreflect.MessageDescriptors) {
		for i := range list.Len() {
			all = append(all, list.Get(i))
			add(list.Get(i).Messages())
		}
	}
	for _, file := range c.list() {
		add(file.Messages())
	}
	return all
}

// Methods lists the methods of all services of the contracts.
func (c *Contracts) Methods() []protoreflect.MethodDescriptor {
	var all []protoreflect.MethodDescriptor
	for _, file := range c.list() {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				all = append(all, methods.Get(j))
			}
		}
	}
	return all
}

func (c *Contracts) list() []protoreflect.FileDescriptor {
	var all []protoreflect.FileDescriptor
	for _, path := range slices.Sorted(slices.Values(c.own)) {
		if file, err := c.files.FindFileByPath(path); err == nil {
			all = append(all, file)
		}
	}
	return all
}

// Message returns the message of that name; an error if the contracts have none.
func (c *Contracts) Message(name protoreflect.FullName) (protoreflect.MessageDescriptor, error) {
	d, err := c.files.FindDescriptorByName(name)
	if err != nil {
		return nil, fmt.Errorf("message %s: %w", name, err)
	}
	md, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no message", name)
	}
	return md, nil
}

// Option returns the value of an option of shop.options.v1 ("event", "rpc", "access") on d, and whether it is set.
func (c *Contracts) Option(d protoreflect.Descriptor, name protoreflect.Name) (value protoreflect.Value, set bool) {
	encoded, err := proto.Marshal(d.Options())
	if err != nil {
		return value, false
	}
	options := d.Options().ProtoReflect().New()
	if (proto.UnmarshalOptions{Resolver: c.types}).Unmarshal(encoded, options.Interface()) != nil {
		return value, false
	}
	wanted := protoreflect.FullName("shop.options.v1").Append(name)
	options.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.FullName() == wanted {
			value, set = v, true
		}
		return !set
	})
	return value, set
}

// Comment is what the contracts say about d, as one paragraph for each of its paragraphs.
func Comment(d protoreflect.Descriptor) string {
	return Prose(d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments)
}

// Prose is a comment without what it says to buf, each paragraph on a line of its own.
func Prose(comment string) string {
	var paragraphs []string
	for paragraph := range strings.SplitSeq(comment, "\n\n") {
		var lines []string
		for line := range strings.Lines(paragraph) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "buf:lint:ignore") {
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			paragraphs = append(paragraphs, strings.Join(lines, " "))
		}
	}
	return strings.Join(paragraphs, "\n\n")
}
