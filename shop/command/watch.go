package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"shop.example/domain/orderstate"
	eventsv1 "shop.example/gen/shop/events/v1"
	loggingv1 "shop.example/gen/shop/logging/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/platform/contract"
	"shop.example/shop/cli"
)

func (o *orders) watchCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "watch ORDER_ID",
		Short: "Show each event of an order until it is settled",
		Long: `Shows the events of an order as they are logged, each with the time since the one before, and then the
order. It ends when the order has been decided and all events of the decision are there, or if the log does not
have all of them any more; with --follow it goes on, and shows a cancellation, too.

With --json each event is one line of JSON, and nothing else is printed. Exit code 1 means that the
order was rejected.`,
		Example: `  shop order watch 0192f6a0-0000-7000-8000-000000000001
  shop order watch 0192f6a0-0000-7000-8000-000000000001 --json | jq -r .routing_key`,
		Args:              cli.Args("ORDER_ID"),
		ValidArgsFunction: first(o.gateway.complete(orderIDs)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.gateway.with(func(conn *grpc.ClientConn) error { return o.watch(cmd, conn, args[0], follow) })
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until Ctrl-C")
	return cmd
}

// silentFor is how long an order may have no events before the watch says so, and how long one that is not found may still
// show some.
const silentFor = 3 * time.Second

// minKept is how long the log keeps events at least, whatever its retention is.
const minKept = 24 * time.Hour

// watch shows the events of an order as they are logged, until the order is done or, with forever, without end.
func (o *orders) watch(cmd *cobra.Command, conn *grpc.ClientConn, id string, forever bool) error {
	client := orderv1.NewOrderServiceClient(conn)
	known, missing := find(cmd.Context(), client, id)
	if missing != nil && status.Code(missing) != codes.NotFound {
		return missing
	}
	w := &watcher{out: cmd.OutOrStdout(), asJSON: o.asJSON, logged: map[string]bool{}, state: known.GetState()}
	w.screen = screenOf(w.out)
	f := follower{
		client: loggingv1.NewEventLogServiceClient(conn), gateway: &o.gateway, notes: cmd.ErrOrStderr(),
		request: &loggingv1.StreamEventsRequest{OrderId: id},
	}
	if known != nil && orderstate.StockOf(w.state) == orderstate.Unknown {
		fmt.Fprintf(cmd.ErrOrStderr(), "Order %s is in state %s, which this release of shop does not know; showing its events until Ctrl-C.\n", cli.Printable(id), w.state)
		forever = true
	}
	// Of an order that is older than minKept the log may have deleted events, and none of its decision is still to come.
	old := !forever && orderstate.IsDecided(w.state) && time.Since(known.GetCreatedAt().AsTime()) > minKept
	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	silent := time.AfterFunc(silentFor, func() {
		switch {
		case missing != nil: // and it has no events either, as an order would have that an older release has taken
			cancel(missing)
		case old:
			cancel(errStop)
		case known != nil:
			fmt.Fprintf(cmd.ErrOrStderr(), "The log shows no events of order %s; waiting for some until Ctrl-C.\n", cli.Printable(id))
		default:
			fmt.Fprintf(cmd.ErrOrStderr(), "Nothing is known of order %s yet; waiting for it until Ctrl-C.\n", cli.Printable(id))
		}
	})
	defer silent.Stop()
	err := f.run(ctx, func(event *loggingv1.Event) error {
		silent.Stop()
		if err := w.show(event); err != nil || forever || !w.over() {
			if old {
				silent.Reset(silentFor)
			}
			return err
		}
		return errStop
	})
	switch cause := context.Cause(ctx); {
	case missing != nil && errors.Is(cause, missing):
		return missing
	case errors.Is(err, context.Canceled) && errors.Is(cause, errStop):
		err = w.showRest(cmd, &f)
	}
	if err != nil {
		return err
	}
	latest, err := find(cmd.Context(), client, id)
	if err != nil {
		return err
	}
	if latest == nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "shop: the order service does not answer; this is what is known of order %s\n", cli.Printable(id))
		if latest = known; w.now() != known.GetState() {
			latest = w.order(id)
		}
	}
	if !o.asJSON {
		fmt.Fprintln(w.out)
		if err := o.print(w.out, latest); err != nil {
			return err
		}
	}
	if latest.GetState() == orderv1.Order_REJECTED {
		fmt.Fprintf(cmd.ErrOrStderr(), "shop: the order was rejected: %s\n", rejection(latest))
		return cli.ExitCode(1)
	}
	return nil
}

// showRest shows the events of an old order that the stream has not sent in time, and says so if the log does not have all.
func (w *watcher) showRest(cmd *cobra.Command, f *follower) error {
	id := f.request.GetOrderId()
	events, _, err := listEvents(cmd.Context(), f.client, &loggingv1.ListEventsRequest{OrderId: id}, 0)
	if err != nil {
		return err
	}
	for _, event := range events {
		if event.GetId() <= f.request.GetAfterId() {
			continue
		}
		if err := w.show(event); err != nil {
			return err
		}
	}
	if !w.over() {
		fmt.Fprintf(cmd.ErrOrStderr(), "The log does not have all events of order %s any more.\n", cli.Printable(id))
	}
	return nil
}

// find reads an order. It returns nil while the order service is unavailable: the log may have its events all the same.
func find(ctx context.Context, c orderv1.OrderServiceClient, id string) (*orderv1.Order, error) {
	reply, err := c.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id})
	if status.Code(err) == codes.Unavailable && apierror.ReasonOf(err) != "" {
		return nil, nil
	}
	return reply.GetOrder(), err
}

// watcher writes the events of one order, and knows which are still to come.
type watcher struct {
	out    io.Writer
	screen screen
	asJSON bool
	state  orderv1.Order_State // when the watch began
	logged map[string]bool     // by routing key
	// rejected is the payload of the event that says why the order was rejected, nil if there is none.
	rejected *structpb.Struct
	last     time.Time
}

// show writes one event.
func (w *watcher) show(event *loggingv1.Event) error {
	w.logged[event.GetRoutingKey()] = true
	if rejected, ok := contract.EventOf(&eventsv1.OrderRejected{}); ok && event.GetRoutingKey() == rejected.RoutingKey {
		w.rejected = event.GetPayload()
	}
	if w.asJSON {
		return printLine(w.out, event)
	}
	at, since := event.GetPublishedAt().AsTime(), ""
	if !w.last.IsZero() {
		since = sinceLast(at.Sub(w.last))
	}
	w.last = at
	w.screen.stream(
		[]cell{{text: at.Local().Format(clockLayout), colour: dim}, number(since), {text: event.GetRoutingKey(), colour: keyColour(event)}, text("by " + event.GetSource()), problem(event)},
		[]int{len(clockLayout), len("+123 ms"), keyWidth(), sourceWidth + len("by "), 0})
	return nil
}

// sinceLast formats the time between two events: "+14 ms", "+14.1 s", "+2m10s".
func sinceLast(d time.Duration) string {
	switch size := d.Abs(); {
	case size < time.Second:
		return fmt.Sprintf("%+d ms", d.Milliseconds())
	case size < time.Minute:
		return fmt.Sprintf("%+.1f s", d.Seconds())
	case d < 0:
		return d.Round(time.Second).String()
	}
	return "+" + d.Round(time.Second).String()
}

// problem shows what went wrong according to an event.
func problem(event *loggingv1.Event) cell {
	if event.GetStatus() == loggingv1.Event_error {
		return payloadCell(event)
	}
	fields := event.GetPayload().GetFields()
	return text(strings.TrimSpace(fields["reason"].GetStringValue() + " " + fields["detail"].GetStringValue()))
}

// over reports whether the order is done for now, and all its events are logged.
func (w *watcher) over() bool {
	now := w.now()
	return orderstate.IsDecided(now) && w.has(orderstate.EventsOf(now)...)
}

// now returns the state of the order as far as its events are logged. They may be logged in another order than they
// happened in: the order is in the most advanced state whose event is there.
func (w *watcher) now() orderv1.Order_State {
	now := w.state
	for _, s := range orderstate.Stored() {
		if w.has(orderstate.EventOf(s)) && len(orderstate.EventsOf(s)) > len(orderstate.EventsOf(now)) {
			now = s
		}
	}
	return now
}

// order returns what the events say of the order.
func (w *watcher) order(id string) *orderv1.Order {
	order := &orderv1.Order{Id: id, State: w.now()}
	if order.GetState() == orderv1.Order_REJECTED {
		fields := w.rejected.GetFields()
		reason := eventsv1.OrderRejected_Reason(eventsv1.OrderRejected_Reason_value[fields["reason"].GetStringValue()])
		order.Reason, order.RejectionDetail = &reason, proto.String(fields["detail"].GetStringValue())
	}
	return order
}

// has reports whether all of these have been logged.
func (w *watcher) has(events ...proto.Message) bool {
	for _, m := range events {
		if event, ok := contract.EventOf(m); !ok || !w.logged[event.RoutingKey] {
			return false
		}
	}
	return true
}
