package eventlog

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/enduser"
	accessv1 "shop.example/gen/shop/access/v1"
	customerv1 "shop.example/gen/shop/customer/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
)

// An order's events have its customer's name and address: they are for those who may see the order.
func TestOwner_EventsOfAnOrderAreForItsOwner(t *testing.T) {
	t.Parallel()
	f := start(t)
	const issuer = "https://login.example.org"
	placed := func(owner string) *eventsv1.OrderPlaced {
		return &eventsv1.OrderPlaced{
			OrderId: uuid.NewString(), CustomerName: "Ada", CustomerEmail: "ada@example.org", Owner: owner, PlacedAt: timestamppb.Now(),
			Lines: []*eventsv1.RequestedLine{{ProductId: 1, Quantity: 1}},
		}
	}
	adas, nobodys, late := placed(enduser.Owner(issuer, "ada")), placed(""), placed(enduser.Owner(issuer, "ada"))
	f.publish(t, adas, nobodys)
	f.event(t, adas)
	f.event(t, nobodys)
	as := func(subject string) context.Context {
		u := &accessv1.EndUser{}
		switch subject {
		case "operator":
			u.Operator = true
		case "":
		default:
			u.Issuer, u.Subject = issuer, subject
		}
		return enduser.With(within(t), u)
	}
	for who, sees := range map[string]bool{"ada": true, "operator": true, "eve": false, "": false} {
		list, err := f.events.ListEvents(as(who), &loggingv1.ListEventsRequest{OrderId: adas.GetOrderId()})
		if sees && (err != nil || len(list.GetEvents()) != 1) || !sees && status.Code(err) != codes.NotFound {
			t.Errorf("%q lists Ada's events: %v, %v", who, list, err)
		}
		stream, err := f.events.StreamEvents(as(who), &loggingv1.StreamEventsRequest{OrderId: adas.GetOrderId()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); sees && err != nil || !sees && status.Code(err) != codes.NotFound {
			t.Errorf("%q follows Ada's events: %v", who, err)
		}
		if list, err := f.events.ListEvents(as(who), &loggingv1.ListEventsRequest{OrderId: nobodys.GetOrderId()}); err != nil || len(list.GetEvents()) != 1 {
			t.Errorf("%q lists nobody's events: %v, %v", who, list, err)
		}
	}
	// Nobody has become its owner when Ada is erased, nor everybody.
	for _, person := range []*customerv1.Person{{Owner: adas.GetOwner()}, {Email: nobodys.GetCustomerEmail()}} {
		if erased, err := customerv1.NewPersonalDataServiceClient(f.conn).ErasePersonalData(within(t), &customerv1.ErasePersonalDataRequest{Person: person}); err != nil || erased.GetEvents() != 1 {
			t.Fatalf("erased %v, %v", erased, err)
		}
	}
	for who, sees := range map[string]bool{"ada": false, "operator": true, "eve": false, "": false} {
		list, err := f.events.ListEvents(as(who), &loggingv1.ListEventsRequest{OrderId: adas.GetOrderId()})
		if sees && (err != nil || len(list.GetEvents()) != 1) || !sees && status.Code(err) != codes.NotFound {
			t.Errorf("once Ada is erased, %q lists the events of her order: %v, %v", who, list, err)
		}
		if list, err := f.events.ListEvents(as(who), &loggingv1.ListEventsRequest{OrderId: nobodys.GetOrderId()}); err != nil || len(list.GetEvents()) != 1 {
			t.Errorf("once Ada is erased, %q lists nobody's events: %v, %v", who, list, err)
		}
	}
	// A stream that began before the order was logged ends when it is known whose the order is.
	stream, err := f.events.StreamEvents(as("eve"), &loggingv1.StreamEventsRequest{OrderId: late.GetOrderId()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	f.publish(t, late)
	if reply, err := stream.Recv(); status.Code(err) != codes.NotFound {
		t.Errorf("Eve follows Ada's order from before it was logged: %v, %v", reply, err)
	}
}
