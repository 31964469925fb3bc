package orderid_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"shop.example/domain/orderid"
	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/contract"
)

// A line with the last 12 digits of an order's id and the id of its message, which begins with the first 12 and is a hash of
// the whole, gave the whole id away within a minute: whoever read the log could cancel the order.
func TestAttr_WithTheMessageIDLeavesHalfOfTheIDUnknown(t *testing.T) {
	t.Parallel()
	for _, id := range []string{uuid.Must(uuid.NewV7()).String(), "fd0e4dca-3e5a-80d5-bcbd-8f7ebae11e24"} {
		message := contract.MessageID(&eventsv1.OrderPlaced{OrderId: id}).String()
		logged := orderid.Attr(id).Value.String()
		if !strings.HasPrefix(id, logged) || len(logged) != len("01234567-89ab-cdef") {
			t.Errorf("of %s is logged %s", id, logged)
		}
		if _, secret, _ := strings.Cut(id, logged); strings.Contains(message, secret[len("-0123-"):]) {
			t.Errorf("the message id %s has the end of %s", message, id)
		}
	}
	if attr := orderid.Attr(""); attr.Key != "" {
		t.Errorf("without an id: %v", attr)
	}
}
