package messaging

import (
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// A node of a cluster was seen to confirm what came later and never one message, whose queue's leader had died meanwhile.
func TestPublishSession_AMessageIsOvertakenByLaterOnesOfItsRoutingKeyAlone(t *testing.T) {
	t.Parallel()
	s := &publishSession{windows: map[*inFlight]struct{}{}, finished: map[string]uint64{}}
	publish := func(key string) *inFlight {
		f := s.register([]Outgoing{{RoutingKey: key}})
		f.confirms[0] = &amqp.DeferredConfirmation{} // which nobody confirms
		f.sent.Store(true)
		return f
	}
	forgotten, other := publish("a"), publish("b")
	later := publish("a")
	s.finish(later)
	last := publish("a")
	if n := s.findOvertaken(time.Now()); n > 0 {
		t.Errorf("%d messages are overtaken before the broker had time to confirm them", n)
	}
	if n := s.findOvertaken(time.Now().Add(confirmStall)); n != 1 {
		t.Errorf("%d messages are overtaken, want 1", n)
	}
	for f, want := range map[*inFlight]bool{forgotten: true, other: false, last: false} {
		select {
		case <-f.overtaken:
			if !want {
				t.Errorf("message %d with key %s is overtaken", f.number, f.messages[0].RoutingKey)
			}
		default:
			if want {
				t.Error("the forgotten message is not overtaken")
			}
		}
	}
}

func TestPublishSession_NobodyWaitsForASessionThatIsOver(t *testing.T) {
	t.Parallel()
	s := &publishSession{windows: map[*inFlight]struct{}{}, finished: map[string]uint64{}}
	before := s.register([]Outgoing{{RoutingKey: "a"}})
	s.end()
	for _, f := range []*inFlight{before, s.register([]Outgoing{{RoutingKey: "a"}})} {
		select {
		case <-f.overtaken:
		default:
			t.Errorf("message %d is waited for", f.number)
		}
	}
}
