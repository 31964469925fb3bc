package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	loggingv1 "shop.example/gen/shop/logging/v1"
)

func TestRedrive_OnceItsCauseIsGoneTheMessageIsHandled(t *testing.T) {
	t.Parallel()
	s := start(t)
	ch := s.confirming(t)
	deleteItem := func(name string) {
		t.Helper()
		a := s.call(t, http.MethodDelete, fmt.Sprintf("/v1/inventory/%d", s.stock(t)[name].ID), "", "Authorization", "Bearer "+operatorToken)
		if a.code != http.StatusOK {
			t.Fatalf("deleting %s: %d %s", name, a.code, a.body)
		}
	}
	has := func(name string, pieces int) {
		t.Helper()
		eventually(t, func() error {
			if i, there := s.stock(t)[name]; !there || i.OnHand != pieces {
				return fmt.Errorf("%s: %v, %d pieces, want %d", name, there, i.OnHand, pieces)
			}
			return nil
		})
	}
	grpcCtx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken)
	client := loggingv1.NewDeadLetterServiceClient(s.dial(t))
	id := func(l deadLetter) int64 {
		n, err := strconv.ParseInt(l.ID, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}

	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, products("Chair", 1))})
	has("Chair", 1)
	chairs := products("Chair", 7)
	// It has been tried before: the next death is the last of four.
	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, chairs), Headers: amqp.Table{"shop-attempt": 3}})
	first := s.open(t, 1)[0]
	if first.Attempts != 4 {
		t.Errorf("dead after %d attempts, want 4", first.Attempts)
	}
	s.isLogged(t, first.MessageID, "error", first.Reason)

	// Still bad: it dies again, as a first attempt, and is a letter of its own.
	done, err := client.RedriveDeadLetter(grpcCtx, &loggingv1.RedriveDeadLetterRequest{Id: id(first)})
	if err != nil || done.GetDeadLetter().GetState() != loggingv1.DeadLetter_REDRIVEN {
		t.Fatalf("redriven over gRPC: %v, %v", done, err)
	}
	var second deadLetter
	eventually(t, func() error {
		open := s.deadLetters(t, "OPEN")
		if len(open) != 1 || open[0].ID == first.ID {
			return fmt.Errorf("open: %+v", open)
		}
		second = open[0]
		return nil
	})
	if second.Attempts != 1 || second.MessageID != first.MessageID || second.Reason != first.Reason || second.SourceQueue != "inventory" ||
		second.RoutingKey != "shop.inventory.create" || second.Exchange != "shop.topic" {
		t.Errorf("after a redrive in vain: %s", truncated(second))
	}
	s.isLogged(t, first.MessageID, "error", second.Reason)
	if _, err := client.RedriveDeadLetter(grpcCtx, &loggingv1.RedriveDeadLetterRequest{Id: id(first)}); err != nil {
		t.Errorf("redriving what was redriven: %v", err)
	}

	deleteItem("Chair")
	a := s.post(t, second.path()+":redrive")
	var redriven deadLetter
	a.json(t, &redriven)
	if a.code != http.StatusOK || redriven.State != "REDRIVEN" || redriven.MessageID != first.MessageID {
		t.Fatalf("redriven over REST: %d %s", a.code, a.body)
	}
	has("Chair", 7)
	s.isLogged(t, first.MessageID, "success", "")

	// Whoever did not see the answer asks again, and nothing is sent twice.
	for range 3 {
		if a := s.post(t, second.path()+":redrive"); a.code != http.StatusOK {
			t.Errorf("redriven once more: %d %s", a.code, a.body)
		}
	}
	if a := s.post(t, second.path()+":discard"); a.code != http.StatusBadRequest || !strings.Contains(string(a.body), "DEAD_LETTER_REDRIVEN") {
		t.Errorf("discarding what was redriven: %d %s", a.code, a.body)
	}
	s.isLogged(t, first.MessageID, "success", "")
	s.open(t, 0)
	if n := len(s.deadLetters(t, "REDRIVEN")); n != 2 {
		t.Errorf("%d letters are redriven, want 2", n)
	}

	// Given up: it stays in the list, and an error in the log.
	s.send(t, ch, "shop.topic", "shop.inventory.create", amqp.Publishing{Body: encode(t, products("Chair", 9))})
	third := s.open(t, 1)[0]
	if a := s.post(t, third.path()+":discard"); a.code != http.StatusOK {
		t.Fatalf("discarding: %d %s", a.code, a.body)
	}
	if a := s.post(t, third.path()+":redrive"); a.code != http.StatusBadRequest || !strings.Contains(string(a.body), "DEAD_LETTER_DISCARDED") {
		t.Errorf("redriving what was discarded: %d %s", a.code, a.body)
	}
	s.isLogged(t, third.MessageID, "error", third.Reason)
	if discarded := s.deadLetters(t, "DISCARDED"); len(discarded) != 1 || discarded[0].ID != third.ID {
		t.Errorf("discarded: %+v", discarded)
	}
	if a := s.post(t, "/v1/dead-letters/4711:redrive"); a.code != http.StatusNotFound {
		t.Errorf("redriving what is not there: %d %s", a.code, a.body)
	}
	if a := s.call(t, http.MethodPost, third.path()+":redrive", "{}"); a.code != http.StatusUnauthorized {
		t.Errorf("redriving without a token: %d %s", a.code, a.body)
	}
	eventually(t, func() error { return emptyQueues(t, ch) })
	has("Chair", 7)
	// Chair was made, refused, refused when redriven, made when redriven, and refused.
	if n := consumed(t, s.Inventory.AdminAddr(), "inventory", "handled") - consumed(t, s.Inventory.AdminAddr(), "inventory", "retried"); n != 2 {
		t.Errorf("%d messages were handled, want 2", n)
	}
	if n := consumed(t, s.Inventory.AdminAddr(), "inventory", "dead"); n != 3 {
		t.Errorf("%d messages died, want 3", n)
	}
}

// The broker takes the message, and its confirm is lost with the connection. Whether it was sent is unknown, so the dead
// letter stays open, and redriving it again has no second effect.
func TestRedrive_AConfirmThatIsLostLeavesTheLetterOpenAndHasOneEffect(t *testing.T) {
	t.Parallel()
	f := newDeployment(t, deploymentOptions{})
	proxy := f.broker.Proxy(t)
	logging := f.replicas["logging"][0]
	logging.env = append(logging.env, "AMQP_URL="+proxy.URL)
	f.up(t)
	f.publish(t, "shop.inventory.create", encode(t, products("Bench", 1)), 1)
	f.publish(t, "shop.inventory.create", encode(t, products("Bench", 5)), 1)
	dead := f.shop.open(t, 1)[0]
	var bench item
	eventually(t, func() error {
		if bench = f.stock(t)["Bench"]; bench.OnHand != 1 && bench.OnHand != 5 {
			return fmt.Errorf("bench: %+v", bench)
		}
		return nil
	})
	if a := f.call(t, http.MethodDelete, fmt.Sprintf("/v1/inventory/%d", bench.ID), "", "Authorization", "Bearer "+operatorToken); a.code != http.StatusOK {
		t.Fatalf("deleting the product: %d %s", a.code, a.body)
	}

	conn, err := grpc.NewClient(strings.TrimPrefix(f.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken), 3*time.Second)
	defer cancel()
	id, err := strconv.ParseInt(dead.ID, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	proxy.DropResponses()
	_, err = loggingv1.NewDeadLetterServiceClient(conn).RedriveDeadLetter(ctx, &loggingv1.RedriveDeadLetterRequest{Id: id})
	if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Unavailable {
		t.Errorf("redriven without a confirm: %v", err)
	}
	arrived := func() error {
		if b := f.stock(t)["Bench"]; b.OnHand != 6-bench.OnHand {
			return fmt.Errorf("the product that was redriven: %+v", b)
		}
		return nil
	}
	eventually(t, arrived)
	if open := f.deadLetters(t, "OPEN"); len(open) != 1 || open[0].ID != dead.ID {
		t.Errorf("open: %+v", open)
	}
	proxy.Down()
	if a := f.post(t, dead.path()+":redrive"); a.code != http.StatusServiceUnavailable && a.code != http.StatusGatewayTimeout {
		t.Errorf("redriven without a broker: %d %s", a.code, a.body)
	}
	proxy.Up(t)
	f.up(t)
	if a := f.post(t, dead.path()+":redrive"); a.code != http.StatusOK {
		t.Fatalf("redriven again: %d %s", a.code, a.body)
	}
	f.isLogged(t, dead.MessageID, "success", "")
	ch := f.openChannel(t)
	eventually(t, func() error { return emptyQueues(t, ch) })
	f.shop.open(t, 0)
	if letters := f.deadLetters(t, ""); len(letters) != 1 || letters[0].State != "REDRIVEN" {
		t.Errorf("letters: %+v", letters)
	}
	if err := arrived(); err != nil {
		t.Error(err)
	}
}
