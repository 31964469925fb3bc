package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/e2e/compat"
	"shop.example/gen/asyncapi"
	"shop.example/gen/openapi"
)

func TestContracts_WhatWasPromisedIsKept(t *testing.T) {
	t.Parallel()
	promises, err := compat.ReadPromises("../proto/promised.json")
	if err != nil {
		t.Fatal(err)
	}
	var own []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(string(file.Package()), "shop.") {
			own = append(own, file)
		}
		return true
	})
	now := compat.Of(own)
	if err := now.AddDocuments(openapi.Shop, asyncapi.Shop); err != nil {
		t.Fatal(err)
	}
	breaks := promises.Facts.Breaks(now)
	for _, b := range breaks {
		t.Errorf("%s", b)
	}
	if len(breaks) > 0 {
		t.Fatal(compat.HowToBreak)
	}
	if changed := promises.Unpromised(now); len(changed) > 0 {
		t.Errorf("proto/promised.json does not have what is new, and breaks nobody: run make generate and commit it\n%s", strings.Join(changed, "\n"))
	}
}

// protobufjs, of which Node's loader of protobuf files is made, refuses a list of messages in an option.
func TestContracts_NodeCanLoadThem(t *testing.T) {
	t.Parallel()
	listOfMessages := regexp.MustCompile(`\w+: *\[\s*\{`)
	for _, dir := range []string{"../proto", "../third_party/proto"} {
		files := 0
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".proto") {
				return err
			}
			files++
			text, err := os.ReadFile(path)
			if list := listOfMessages.Find(text); list != nil {
				t.Errorf("%s has %q: repeat the field instead, `a: {…} a: {…}`", path, list)
			}
			return err
		})
		if err != nil || files == 0 {
			t.Errorf("%s: %d files, %v", dir, files, err)
		}
	}
}
