package service_test

import (
	"context"
	"strings"
	"testing"

	"shop.example/platform/service"
	"shop.example/platform/telemetry"
	"shop.example/platform/testkit/brokertest"
)

func TestBroker_AUserThatIsSharedIsSaidOnceAtTheStart(t *testing.T) {
	t.Parallel()
	out := &logs{}
	for _, run := range []struct {
		url   string
		lines int // with those before
	}{
		{"amqp://order:secret@127.0.0.1:1/", 0},
		{"amqp://shop2-order:secret@127.0.0.1:1/", 0},
		{"amqp://guest:guest@127.0.0.1:1/", 1},
		{"amqp://guest:guest@127.0.0.1:1/", 1},
	} {
		tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "order", Output: out})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tel.Shutdown(context.Background()) })
		s, err := service.New(t.Context(), service.Config{}, tel)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Broker(run.url, brokertest.Topology(), "order", tel); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "who publishes a message is not checked"); n != run.lines {
			t.Errorf("%s: said %d times, want %d: %s", run.url, n, run.lines, out)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
