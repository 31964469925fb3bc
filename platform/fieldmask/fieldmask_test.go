package fieldmask_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/platform/fieldmask"
)

func TestPaths_AMissingMaskIsWhatIsSetAndAStarEverything(t *testing.T) {
	t.Parallel()
	hook := &webhooksv1.Webhook{Id: "1", State: webhooksv1.Webhook_PAUSED}
	for what, test := range map[string]struct {
		mask *fieldmaskpb.FieldMask
		want []string
	}{
		"none":   {nil, []string{"id", "state"}},
		"empty":  {&fieldmaskpb.FieldMask{}, []string{"id", "state"}},
		"a star": {&fieldmaskpb.FieldMask{Paths: []string{"*"}}, []string{"state", "url"}},
		"paths":  {&fieldmaskpb.FieldMask{Paths: []string{"description"}}, []string{"description"}},
	} {
		got := slices.Sorted(slices.Values(fieldmask.Paths(test.mask, hook, "url", "state")))
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", what, got, test.want)
		}
	}
}
