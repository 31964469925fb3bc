package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"shop.example/e2e/compat"
	"shop.example/gen/asyncapi"
	"shop.example/gen/openapi"
	optionsv1 "shop.example/gen/shop/options/v1"
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

// Every method's contract says who may call it, also those of calls between services.
func TestContracts_SayWhoMayMakeEachCall(t *testing.T) {
	t.Parallel()
	said := map[optionsv1.Access]int{}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(file.Package()), "shop.") {
			return true
		}
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				md := methods.Get(j)
				access, _ := proto.GetExtension(md.Options(), optionsv1.E_Access).(optionsv1.Access)
				said[access]++
				overHTTP := proto.HasExtension(md.Options(), annotations.E_Http)
				if internal := access == optionsv1.Access_ACCESS_INTERNAL; access == optionsv1.Access_ACCESS_UNSPECIFIED || internal == overHTTP {
					t.Errorf("%s: %s, REST route: %t", md.FullName(), access, overHTTP)
				}
			}
		}
		return true
	})
	if said[optionsv1.Access_ACCESS_INTERNAL] == 0 || said[optionsv1.Access_ACCESS_PUBLIC] == 0 {
		t.Errorf("only %v: not all contracts were looked at", said)
	}
}

// Only the length of a list is checked before its elements are, so a list without a maximum, or a map, could make a request
// of 1 MiB take hundreds of times as much.
func TestContracts_EachListInARequestHasAMaximum(t *testing.T) {
	t.Parallel()
	lists := 0
	seen := map[protoreflect.FullName]bool{}
	var look func(protoreflect.MessageDescriptor)
	look = func(md protoreflect.MessageDescriptor) {
		if seen[md.FullName()] || !strings.HasPrefix(string(md.FullName()), "shop.") {
			return
		}
		seen[md.FullName()] = true
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
			if fd.IsList() {
				lists++
			}
			if fd.IsMap() || fd.IsList() && !rules.GetRepeated().HasMaxItems() {
				t.Errorf("%s: give it max_items", fd.FullName())
			}
			if fd.Message() != nil {
				look(fd.Message())
			}
		}
	}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				look(methods.Get(j).Input())
			}
		}
		return true
	})
	if lists == 0 {
		t.Error("there are no lists")
	}
}

// The bundle was packed by GNU's tar, with options that no other has.
func TestContracts_TheBundleIsTheSameBytesWhereverItIsPacked(t *testing.T) {
	t.Parallel()
	var bundles [2][]byte
	for i, mode := range []os.FileMode{0o600, 0o755} {
		base := t.TempDir()
		dir := filepath.Join(base, "contracts")
		if err := os.MkdirAll(filepath.Join(dir, "proto"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"LICENSE": "free", "proto/a.proto": "syntax"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(content), mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, time.Time{}, time.Unix(int64(i+1)*1e9, 0)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // a manifest that is there is none of the contracts
			cmd := exec.CommandContext(t.Context(), "go", "-C", "../tools/contracts", "run", ".", "v1.2.3", dir)
			cmd.Env = append(os.Environ(), "GOWORK=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		var err error
		if bundles[i], err = os.ReadFile(filepath.Join(base, "shop-contracts-v1.2.3.tar.gz")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(bundles[0], bundles[1]) {
		t.Error("times or modes of the files are in it")
	}
	zip, err := gzip.NewReader(bytes.NewReader(bundles[0]))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for files := tar.NewReader(zip); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%o %s\n", header.Mode, header.Name)
		if strings.HasSuffix(header.Name, ".json") {
			if _, err := io.Copy(&got, files); err != nil {
				t.Fatal(err)
			}
		}
	}
	const want = `755 shop-contracts-v1.2.3/
644 shop-contracts-v1.2.3/LICENSE
644 shop-contracts-v1.2.3/manifest.json
{
  "version": "v1.2.3",
  "sha256": {
    "LICENSE": "%x",
    "proto/a.proto": "%x"
  }
}
755 shop-contracts-v1.2.3/proto/
644 shop-contracts-v1.2.3/proto/a.proto
`
	if want := fmt.Sprintf(want, sha256.Sum256([]byte("free")), sha256.Sum256([]byte("syntax"))); got.String() != want {
		t.Errorf("in it is\n%s, want\n%s", &got, want)
	}
}

// protobufjs, on which Node's loader of protobuf files is built, refuses a list of messages in an option.
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
