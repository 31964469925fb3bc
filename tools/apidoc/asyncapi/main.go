// Command asyncapi is a plugin of protoc that writes the AsyncAPI document: what travels over the broker, as the options
// of shop.options.v1 say it.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/pluginpb"

	"shop.example/tools/apidoc/contract"
)

// fileName is the name of the document in the plugin's output folder.
const fileName = "shop.asyncapi.yaml"

func main() {
	log.SetFlags(0)
	log.SetPrefix("asyncapi: ")
	if err := run(os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(in io.Reader, out io.Writer) error {
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
	d, err := describe(contracts)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	text.WriteString("# Written by `make generate` from the contracts; never edited.\n")
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := encoder.Encode(d); err != nil {
		return err
	}
	if encoded, err = proto.Marshal(&pluginpb.CodeGeneratorResponse{
		SupportedFeatures: proto.Uint64(uint64(pluginpb.CodeGeneratorResponse_FEATURE_PROTO3_OPTIONAL)),
		File:              []*pluginpb.CodeGeneratorResponse_File{{Name: proto.String(fileName), Content: proto.String(text.String())}},
	}); err != nil {
		return err
	}
	_, err = out.Write(encoded)
	return err
}
