package pagetoken_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/platform/pagetoken"
)

func TestSize_IsCapped(t *testing.T) {
	t.Parallel()
	for asked, want := range map[int32]int{0: 50, 1: 1, 1000: 1000, 1001: 1000, math.MaxInt32: 1000} {
		if got := pagetoken.Size(asked); got != want {
			t.Errorf("%d: %d, want %d", asked, got, want)
		}
	}
}

func TestParseID_ReadsWhatNewIDMade(t *testing.T) {
	t.Parallel()
	for _, id := range []int64{0, 1, -1, math.MaxInt64, math.MinInt64} {
		if got, err := pagetoken.ParseID(pagetoken.NewID(id, "orders"), "orders"); got != id || err != nil {
			t.Errorf("%d: %d, %v", id, got, err)
		}
	}
	if id, err := pagetoken.ParseID("", "orders"); id != 0 || err != nil {
		t.Errorf("the first page: %d, %v", id, err)
	}
}

func TestParse_OtherTokensAreInvalid(t *testing.T) {
	t.Parallel()
	token := pagetoken.New([]byte("place"), "orders")
	for _, other := range []string{"", "?", "x", "eA", token[1:], token + "AAAA", pagetoken.New([]byte("places"), "orders"), pagetoken.New([]byte("place"), "items")} {
		if _, err := pagetoken.Parse(other, "orders", 5); !errors.Is(err, pagetoken.ErrInvalid) {
			t.Errorf("%q: %v", other, err)
		}
	}
}

func TestListOf_DiffersByTypeAndFields(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, list := range []string{
		pagetoken.ListOf(&durationpb.Duration{}), pagetoken.ListOf(&durationpb.Duration{Seconds: 1}), pagetoken.ListOf(&timestamppb.Timestamp{Seconds: 1}),
	} {
		if seen[list] {
			t.Errorf("%q twice", list)
		}
		seen[list] = true
	}
}

func Example() {
	token := pagetoken.NewID(41, "orders of ada")
	after, err := pagetoken.ParseID(token, "orders of ada")
	fmt.Println(after, err)
	_, err = pagetoken.ParseID(token, "orders of bob")
	fmt.Println(errors.Is(err, pagetoken.ErrInvalid))
	// Output:
	// 41 <nil>
	// true
}
