// Package fieldmask says which fields of a resource an update changes.
package fieldmask

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// Paths returns the paths of the mask of an update, or those that it stands for, as AIP-134 says: without a mask the fields that are
// set in the resource, in no order, and with "*" all that can be changed.
func Paths(mask *fieldmaskpb.FieldMask, resource proto.Message, all ...string) []string {
	switch given := mask.GetPaths(); {
	case slices.Equal(given, []string{"*"}):
		return all
	case len(given) > 0:
		return given
	}
	var paths []string
	resource.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		paths = append(paths, string(fd.Name()))
		return true
	})
	return paths
}
