// Command promises compares the contracts, as `buf build` compiles them, with what proto/promised.json promises, and writes
// what is new into it. It fails if something that was promised breaks, unless it is given a reason.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"shop.example/e2e/compat"
	"shop.example/gen/asyncapi"
	"shop.example/gen/openapi"
)

const path = "proto/promised.json"

func main() {
	because := flag.String("because", "", "break what was promised, for this reason")
	flag.Parse()
	breaks, err := run(flag.Arg(0), *because)
	for _, b := range breaks {
		fmt.Fprintln(os.Stderr, b)
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "promises:", err)
		os.Exit(1)
	case len(breaks) > 0 && *because == "":
		fmt.Fprintln(os.Stderr, compat.HowToBreak)
		os.Exit(1)
	}
}

func run(image, because string) ([]compat.Break, error) {
	text, err := os.ReadFile(image)
	if err != nil {
		return nil, fmt.Errorf("reading what buf build has written: %w", err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(text, &set); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, err
	}
	var own []protoreflect.FileDescriptor
	files.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(string(file.Package()), "shop.") {
			own = append(own, file)
		}
		return true
	})
	now := compat.Of(own)
	if err := now.AddDocuments(openapi.Shop, asyncapi.Shop); err != nil {
		return nil, err
	}
	promises, err := compat.ReadPromises(path)
	if err != nil {
		return nil, err
	}
	breaks := promises.Become(now, because)
	if len(breaks) > 0 && because == "" {
		return breaks, nil
	}
	return breaks, promises.Write(path)
}
