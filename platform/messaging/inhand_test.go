package messaging_test

import (
	"context"
	"errors"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	eventsv1 "shop.example/gen/shop/events/v1"
	"shop.example/platform/messaging"
	"shop.example/platform/testkit/brokertest"
)

// labels writes the values of labels, in the order of their names.
type labels struct{}

var encoderID = attribute.NewEncoderID()

func (labels) ID() attribute.EncoderID { return encoderID }

func (labels) Encode(all attribute.Iterator) string {
	var values []string
	for all.Next() {
		values = append(values, all.Attribute().Value.AsString())
	}
	return strings.Join(values, ",")
}

// collected returns the values of a metric, by queue and verdict, or routing key and outcome.
func (w *watched) collected(t *testing.T, name string) map[string]float64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := w.metrics.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					values[p.Attributes.Encoded(labels{})] = float64(p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					values[p.Attributes.Encoded(labels{})] = float64(p.Value)
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					values[p.Attributes.Encoded(labels{})] = p.Value
				}
			}
		}
	}
	return values
}

func TestConsumer_ProfilesTellQueuesApart(t *testing.T) {
	t.Parallel()
	w := watch(t, brokertest.New(t).URL, "order")
	label := make(chan string, 1)
	w.orders(func(ctx context.Context, _ []messaging.Message[*eventsv1.OrderPlaced]) error {
		queue, _ := pprof.Label(ctx, "queue")
		label <- queue
		return nil
	})
	publish(t, w.party, placed())
	if got := next(t, label, "the message to be handled"); got != "order" {
		t.Errorf("the label is %q", got)
	}
}

// What a frozen dependency holds was invisible: it had left the queue, and nothing had failed.
func TestInHand_IsWhatWasTakenAndIsNotSettled(t *testing.T) {
	t.Parallel()
	url := brokertest.New(t).URL
	order := watch(t, url, "order")
	begun, release := make(chan struct{}), make(chan struct{})
	order.orders(func(context.Context, []messaging.Message[*eventsv1.OrderPlaced]) error {
		begun <- struct{}{}
		<-release
		return nil
	})
	publish(t, order.party, placed())
	next(t, begun, "the message to be handled")
	if n, age := order.collected(t, "messaging.in_hand")["order"], order.collected(t, "messaging.in_hand.oldest.age")["order"]; n != 1 || age <= 0 {
		t.Errorf("%v messages are in hand, for %v s", n, age)
	}
	if n := order.consume.InHand()["order"]; n != 1 {
		t.Errorf("%d messages are in hand", n)
	}
	close(release)
	deadline := time.Now().Add(testTimeout)
	for order.consume.InHand()["order"] > 0 {
		if time.Now().After(deadline) {
			t.Fatal("it stays in hand")
		}
		<-time.After(time.Millisecond)
	}
	if age := order.collected(t, "messaging.in_hand.oldest.age")["order"]; age != 0 {
		t.Errorf("nothing is in hand, for %v s", age)
	}
}

// One message that no queue takes made failures of all that were sent with it.
func TestMetrics_WhatIsConfirmedBesideARefusedMessageIsCountedSo(t *testing.T) {
	t.Parallel()
	order := watch(t, brokertest.New(t).URL, "order")
	good, err := messaging.NewOutgoing(t.Context(), placed())
	if err != nil {
		t.Fatal(err)
	}
	lost := good
	lost.MessageID, lost.Exchange = uuid.NewString(), "shop.direct"
	if err := order.pub.Send(within(t), []messaging.Outgoing{good, lost, good, lost, good}); !errors.Is(err, messaging.ErrUnroutable) {
		t.Fatal(err)
	}
	values := order.collected(t, "messaging.published")
	if confirmed, failed := values["confirmed,shop.order.placed"], values["failed,shop.order.placed"]; confirmed != 3 || failed != 2 {
		t.Errorf("%v are confirmed, %v have failed: %v", confirmed, failed, values)
	}
}

// A counter that comes into being with 1 is no increase: the first dead letter raised no alarm.
func TestMetrics_CountersAreThereWithZero(t *testing.T) {
	t.Parallel()
	order := watch(t, brokertest.New(t).URL, "order")
	messaging.NewConsumer(order.consume, order.pub, "order", messaging.ConsumerOptions{})
	for name, series := range map[string][]string{
		"messaging.consumed":   {"order,handled", "order,retried", "order,dead"},
		"messaging.published":  {"confirmed,shop.order.confirmed", "unconfirmed,shop.order.confirmed", "refused,order.retry.1s", "failed,order"},
		"messaging.reconnects": {"lost", "dial"},
	} {
		values := order.collected(t, name)
		for _, s := range series {
			if n, there := values[s]; !there || n != 0 {
				t.Errorf("%s of %s is there: %v, %v; all: %v", name, s, there, n, values)
			}
		}
	}
}
