// Command protos writes the third-party definitions that our contracts import into a folder, printed from the
// descriptors that Go modules already carry. They are committed, so that a plain `buf generate` needs no registry.
//
// With -all it writes google/protobuf too, which protoc, buf and most libraries bring along, for a folder that needs nothing else.
//
//	protos [-all] DIR
package main

import (
	"flag"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	// Each import registers the files named in exported.
	_ "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	_ "github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2/options"
	_ "google.golang.org/genproto/googleapis/api/annotations"
	_ "google.golang.org/genproto/googleapis/api/httpbody"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	_ "google.golang.org/genproto/googleapis/rpc/status"
)

// exported are the files our contracts import; what these import in turn follows by itself.
var exported = []string{
	"buf/validate/validate.proto",
	"google/api/annotations.proto",
	"google/api/field_behavior.proto",
	"google/api/httpbody.proto",
	"google/rpc/error_details.proto",
	"google/rpc/status.proto",
	"protoc-gen-openapiv2/options/annotations.proto",
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("protos: ")
	all := flag.Bool("all", false, "google/protobuf, too")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: protos [-all] DIR")
	}
	if err := export(flag.Arg(0), *all); err != nil {
		log.Fatal(err)
	}
}

func export(dir string, all bool) error {
	var files []protoreflect.FileDescriptor
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] || fd.Package() == "google.protobuf" && !all {
			return
		}
		seen[fd.Path()] = true
		files = append(files, fd)
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i).FileDescriptor)
		}
	}
	for _, path := range exported {
		fd, err := protoregistry.GlobalFiles.FindFileByPath(path)
		if err != nil {
			return err
		}
		add(fd)
	}
	printer := protoprint.Printer{SortElements: false, Compact: true}
	for _, fd := range files {
		text, err := printer.PrintProtoToString(fd)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.FromSlash(fd.Path()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(withoutLists(text)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

var (
	listOfMessages = regexp.MustCompile(`(\w+): \[\s*\{`)
	// token is a string, in which a brace is none, or a brace.
	token = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[{}\]]`)
)

// withoutLists writes each list of messages in an option, `cel: [{…}, {…}]`, as a field that is repeated, `cel: {…} cel: {…}`.
// It means the same, and protobufjs, which Node's loader of protobuf files is made of, reads nothing else.
func withoutLists(text string) string {
	var out strings.Builder
	for {
		list := listOfMessages.FindStringSubmatchIndex(text)
		if list == nil {
			return out.String() + text
		}
		name := text[list[2]:list[3]]
		out.WriteString(text[:list[0]])
		text = text[list[1]-1:]
		depth, begin, separator := 0, 0, ""
	messages:
		for _, at := range token.FindAllStringIndex(text, -1) {
			switch text[at[0]] {
			case '{':
				if depth == 0 {
					begin = at[0]
				}
				depth++
			case '}':
				if depth--; depth == 0 {
					out.WriteString(separator + name + ": " + text[begin:at[1]])
					separator = " "
				}
			case ']':
				if depth == 0 {
					text = text[at[1]:]
					break messages
				}
			}
		}
	}
}
