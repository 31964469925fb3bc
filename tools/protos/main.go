// Command protos writes the third-party definitions that our contracts import into a folder, printed from the
// descriptors that Go modules already carry. They are committed, so that a plain `buf generate` needs no registry.
//
//	protos DIR
package main

import (
	"log"
	"os"

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
	if len(os.Args) != 2 {
		log.Fatal("usage: protos DIR")
	}
	if err := export(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func export(dir string) error {
	var files []protoreflect.FileDescriptor
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		// protoc and buf carry google/protobuf themselves.
		if seen[fd.Path()] || fd.Package() == "google.protobuf" {
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
	return printer.PrintProtosToFileSystem(files, dir)
}
