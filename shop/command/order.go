package command

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"shop.example/domain/money"
	"shop.example/domain/orderstate"
	checkoutv1 "shop.example/gen/shop/checkout/v1"
	eventsv1 "shop.example/gen/shop/events/v1"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
	"shop.example/shop/cli"
)

// orders has what the subcommands of shop order share.
type orders struct {
	gateway gateway
	asJSON  bool
}

func orderCommand() *cobra.Command {
	o := &orders{gateway: gateway{names: map[string]string{
		"customer_name": "--name", "customer_email": "--email", "order_items": "--item", "Idempotency-Key": "--idempotency-key",
		"order_id": "ORDER_ID", "state": "--state", "page_size": "--limit", "placed_after": "--since",
		"id_suffix": "--id", "product_id": "--product",
	}}}
	cmd := &cobra.Command{
		Use:   "order",
		Short: "Place, show, list, cancel and watch orders",
		Long: `Orders. Anybody may place one; who has the id of an order may show, watch and cancel it. The list is for
operators.`,
		Example: `  shop order place --name Ada --email ada@example.org --item Laptop --item "Mouse Pad=4"
  shop order watch 0192f6a0-0000-7000-8000-000000000001
  shop order list --state rejected`,
	}
	o.gateway.flags(cmd)
	cmd.PersistentFlags().BoolVar(&o.asJSON, "json", false, "print the JSON of the REST API")
	cmd.AddCommand(o.placeCommand(), o.getCommand(), o.listCommand(), o.cancelCommand(), o.watchCommand())
	return cmd
}

// maxWait is how long the shop lets a client wait for the decision at most.
const maxWait = 30 * time.Second

// placement has the flags of shop order place.
type placement struct {
	name, email, key string
	items            []string
	wait             time.Duration
	watch            bool
}

func (o *orders) placeCommand() *cobra.Command {
	p := placement{}
	cmd := &cobra.Command{
		Use:   "place",
		Short: "Place an order and show the decision",
		Long: `Places an order of one product or several. A product is named by its id or its name, with the quantity
after "=", by default 1.

It waits some seconds for the decision; --wait 0 does not, and --watch shows each event. Orders with the
same --idempotency-key are one order: if it is not certain whether an order was taken, its key is printed.

Exit code 0 means that the order was accepted and not rejected so far, 1 that it was rejected, could not be
placed, or, with --watch, was taken and cannot be watched.`,
		Example: `  shop order place --name Ada --email ada@example.org --item Laptop=2 --item "Mouse Pad=4"
  shop order place --name Ada --email ada@example.org --item 5=3 --watch
  shop order place --name Ada --email ada@example.org --item 5 --wait 0 --json | jq -r .id`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.wait < 0 || p.wait > maxWait {
				return cli.WrongUsage("--wait %s: give 0 to %s", p.wait, maxWait)
			}
			return o.gateway.with(func(conn *grpc.ClientConn) error { return o.place(cmd, conn, p) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&p.name, "name", "", "the customer's name")
	flags.StringVar(&p.email, "email", "", "the customer's email address")
	flags.StringArrayVar(&p.items, "item", nil, "what to order, PRODUCT or PRODUCT=QUANTITY; once for each product")
	flags.StringVar(&p.key, "idempotency-key", "", "what makes this order the same one if it is sent again (default a new one)")
	flags.DurationVar(&p.wait, "wait", 5*time.Second, "how long to wait for the outcome, 30s at most")
	flags.BoolVar(&p.watch, "watch", false, "show each event of the order until it is settled")
	for _, needed := range []string{"name", "email", "item"} {
		_ = cmd.MarkFlagRequired(needed) // they are there
	}
	completeFlag(cmd, "name", cobra.NoFileCompletions)
	completeFlag(cmd, "email", cobra.NoFileCompletions)
	completeFlag(cmd, "item", o.gateway.complete(productNames))
	return cmd
}

func (o *orders) place(cmd *cobra.Command, conn *grpc.ClientConn, p placement) error {
	req := &checkoutv1.PlaceOrderRequest{CustomerName: p.name, CustomerEmail: p.email}
	var err error
	if req.OrderItems, err = orderItems(cmd.Context(), inventoryv1.NewInventoryServiceClient(conn), p.items); err != nil {
		return err
	}
	if p.watch {
		p.wait = 0
	}
	// With a key of its own an order whose answer was lost can be sent again.
	key := cmp.Or(p.key, rand.Text())
	wait := strconv.Itoa(int(math.Ceil(p.wait.Seconds())))
	ctx, cancel := context.WithTimeout(cmd.Context(), p.wait+callTimeout)
	defer cancel()
	reply, err := checkoutv1.NewCheckoutServiceClient(conn).PlaceOrder(metadata.AppendToOutgoingContext(ctx, "idempotency-key", key, "prefer", "wait="+wait), req)
	if err != nil && !refused(err) {
		again := fmt.Sprintf("with --idempotency-key %s it is the same order, should this one have been taken", cli.Printable(key))
		if errors.Is(err, context.Canceled) { // which nobody else says a word about
			fmt.Fprintf(cmd.ErrOrStderr(), "shop: interrupted; %s\n", again)
			return err
		}
		return fmt.Errorf("%w; %s", err, again)
	}
	if err != nil {
		return err
	}
	order := reply.GetOrder()
	if p.watch {
		// The events need the log, which may be away while orders are taken.
		fmt.Fprintf(cmd.ErrOrStderr(), "Order %s has been taken.\n", cli.Printable(order.GetId()))
		return o.watch(cmd, conn, order.GetId(), false)
	}
	if err := o.print(cmd.OutOrStdout(), order); err != nil {
		return err
	}
	switch {
	case order.GetState() == orderv1.Order_REJECTED:
		fmt.Fprintf(cmd.ErrOrStderr(), "shop: the order was rejected: %s\n", rejection(order))
		return cli.ExitCode(1)
	case !orderstate.IsDecided(order.GetState()) && p.wait > 0:
		fmt.Fprintf(cmd.ErrOrStderr(), "It has been taken, but not yet decided: shop order watch %s shows what becomes of it.\n", order.GetId())
	}
	return nil
}

// refused reports whether an order that was sent has certainly not been taken.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted:
		return true
	}
	return apierror.ReasonOf(err) == "OVERLOADED"
}

// rejection says why an order was rejected, with the shop's detail, and what to do.
func rejection(order *orderv1.Order) string {
	said, reason := explanation(order.GetReason()), order.GetReason().String()
	if detail := cli.Printable(order.GetRejectionDetail()); detail != "" {
		said = strings.Replace(said, reason, reason+": "+detail, 1)
	}
	return said
}

// explanation says what a reason means.
func explanation(reason eventsv1.OrderRejected_Reason) string {
	switch reason {
	case eventsv1.OrderRejected_OUT_OF_STOCK:
		return "there is not enough of it in stock (OUT_OF_STOCK); shop inventory list shows what is left"
	case eventsv1.OrderRejected_UNKNOWN_PRODUCT:
		return "there is no such product (UNKNOWN_PRODUCT); shop inventory list shows which there are"
	case eventsv1.OrderRejected_PRICE_CHANGED:
		return "its price has changed (PRICE_CHANGED); shop inventory list shows the prices"
	case eventsv1.OrderRejected_IDEMPOTENCY_KEY_REUSED:
		return "its idempotency key has placed another order (IDEMPOTENCY_KEY_REUSED); use a new key for a new order"
	case eventsv1.OrderRejected_AMOUNT_TOO_LARGE:
		return "it is worth more than an amount of money can be (AMOUNT_TOO_LARGE); order less"
	case eventsv1.OrderRejected_MIXED_CURRENCIES:
		return "the catalogue has its products in different currencies (MIXED_CURRENCIES)"
	case eventsv1.OrderRejected_DISCARDED:
		return "it could not be handled, and an operator has discarded it (DISCARDED)"
	default: // of a newer release
		return reason.String()
	}
}

// orderItems parses PRODUCT and PRODUCT=QUANTITY. It reads the catalogue only for names, so that an order by ids needs only
// the gateway and the broker.
func orderItems(ctx context.Context, c inventoryv1.InventoryServiceClient, given []string) ([]*checkoutv1.PlaceOrderRequest_Item, error) {
	items := make([]*checkoutv1.PlaceOrderRequest_Item, len(given))
	var catalogue []*inventoryv1.Item
	for i, arg := range given {
		product, quantity := arg, int32(1)
		if at := strings.LastIndexByte(arg, '='); at >= 0 {
			n, err := strconv.ParseInt(strings.TrimSpace(arg[at+1:]), 10, 32)
			if err != nil || n <= 0 {
				return nil, cli.WrongUsage("--item %s: give a whole number of pieces after =, %s=2 for example", cli.Printable(arg), cli.Printable(arg[:at]))
			}
			product, quantity = arg[:at], int32(n)
		}
		product = strings.TrimSpace(product)
		if product == "" {
			return nil, cli.WrongUsage("--item %q: give the id or the name of a product", cli.Printable(arg))
		}
		id, err := strconv.ParseInt(product, 10, 32)
		if err != nil {
			if catalogue == nil {
				if catalogue, err = allItems(ctx, c); err != nil {
					return nil, err
				}
			}
			found, err := byName(catalogue, product)
			if err != nil {
				return nil, fmt.Errorf("--item: %w", err)
			}
			id = int64(found)
		}
		items[i] = &checkoutv1.PlaceOrderRequest_Item{ProductId: int32(id), Quantity: quantity}
	}
	return items, nil
}

// print writes one order.
func (o *orders) print(out io.Writer, order *orderv1.Order) error {
	if o.asJSON {
		return printMessage(out, order)
	}
	s := screenOf(out)
	if order.GetCreatedAt() == nil { // it is not decided yet, and nothing more is known of it
		fmt.Fprintf(out, "%s %s\n", cli.Printable(order.GetId()), order.GetState())
		return nil
	}
	about := &table{header: []string{"ORDER", "STATE", "PLACED", "CUSTOMER"}, flexible: 3, minWidth: 12}
	about.add(text(order.GetId()), stateCell(order), text(localTime(order.GetCreatedAt().AsTime())), text(order.GetCustomerName()+" <"+order.GetCustomerEmail()+">"))
	s.print(about)
	fmt.Fprintln(out)
	lines := &table{header: []string{"LINE", "PRODUCT", "QUANTITY", "UNIT PRICE", "PRICE"}, flexible: 1, minWidth: 12}
	for _, item := range order.GetOrderItems() {
		price := "-"
		if p := item.GetUnitPrice(); p != nil {
			price = money.Format(money.Minor(p)*int64(item.GetQuantity()), p.GetCurrencyCode())
		}
		product := item.GetProductName()
		if product == "" { // not known before the order has been decided
			product = "product " + strconv.Itoa(int(item.GetProductId()))
		}
		lines.add(number(strconv.Itoa(int(item.GetLine()))), text(product), number(strconv.Itoa(int(item.GetQuantity()))), number(amountOf(item.GetUnitPrice())), number(price))
	}
	lines.add(text(""), cell{text: "total", colour: bold}, number(strconv.Itoa(int(order.GetTotalItems()))), text(""), cell{amountOf(order.GetTotalValue()), bold, true})
	s.print(lines)
	return nil
}

// stateCell shows the state of an order, and why it was rejected.
func stateCell(order *orderv1.Order) cell {
	c := text(order.GetState().String())
	if order.Reason != nil {
		c.text += " " + order.GetReason().String()
	}
	switch order.GetState() {
	case orderv1.Order_CONFIRMED:
		c.colour = green
	case orderv1.Order_REJECTED:
		c.colour = red
	case orderv1.Order_CANCELLED:
		c.colour = yellow
	case orderv1.Order_PENDING:
		c.colour = dim
	default:
		c.text += " (unknown to this release of shop)"
		c.colour = red
	}
	return c
}

func (o *orders) getCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "get ORDER_ID",
		Short: "Show an order",
		Long: `Shows an order with its lines. Until it has been decided, usually within a second, it is PENDING and has no
lines. With --watch each event is shown until the order is settled, and then the order, as shop order watch
does.`,
		Example: `  shop order get 0192f6a0-0000-7000-8000-000000000001
  shop order get 0192f6a0-0000-7000-8000-000000000001 --watch
  shop order get 0192f6a0-0000-7000-8000-000000000001 --json | jq -r .state`,
		Args:              cli.Args("ORDER_ID"),
		ValidArgsFunction: first(o.gateway.complete(orderIDs)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.gateway.with(func(conn *grpc.ClientConn) error {
				if watch {
					return o.watch(cmd, conn, args[0], false)
				}
				reply, err := orderv1.NewOrderServiceClient(conn).GetOrder(cmd.Context(), &orderv1.GetOrderRequest{OrderId: args[0]})
				if err != nil {
					return err
				}
				return o.print(cmd.OutOrStdout(), reply.GetOrder())
			})
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show each event of the order until it is settled")
	return cmd
}

// orderStates are the states of stored orders.
var orderStates = orderstate.Stored()

func (o *orders) listCommand() *cobra.Command {
	var (
		state, product string
		limit          int
		since          time.Duration
		req            orderv1.ListOrdersRequest
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List orders, the newest first (for operators)",
		Long: `Lists the orders that have been decided, the newest first. It is for operators.

--id, --email and --product are looked for order by order, from the newest on: with --since not to the end of
the list. The last eight characters of an id are what pages show.`,
		Example: `  shop order list --since 24h --email ada@example.org
  shop order list --product "Mouse Pad" --id 8f7ebae1
  shop order list --state rejected --limit 0 --json | jq -r '.orders[].reason' | sort | uniq -c`,
		Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := parseOrderState(state)
			if err != nil {
				return err
			}
			if limit < 0 {
				return cli.WrongUsage("--limit %d: give how many to list, 0 for all", limit)
			}
			if since < 0 {
				return cli.WrongUsage("--since %s: give how far to look back, 24h for example", since)
			}
			if strings.Trim(req.GetIdSuffix(), "0123456789abcdefABCDEF-") != "" {
				return cli.WrongUsage("--id %s: give the end of an order's id, digits, letters from a to f and dashes, 8f7ebae1 for example", cli.Printable(req.GetIdSuffix()))
			}
			req.State = wanted
			if since > 0 {
				req.PlacedAfter = timestamppb.New(time.Now().Add(-since))
			}
			return o.gateway.with(func(conn *grpc.ClientConn) error {
				if product != "" {
					if req.ProductId, err = productID(cmd.Context(), inventoryv1.NewInventoryServiceClient(conn), product); err != nil {
						return err
					}
				}
				client := orderv1.NewOrderServiceClient(conn)
				list, next, err := pages(limit, func(size int32, token string) ([]*orderv1.Order, string, error) {
					req.PageSize, req.PageToken = size, token
					page, err := client.ListOrders(cmd.Context(), &req)
					return page.GetOrders(), page.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				reply := &orderv1.ListOrdersResponse{Orders: list, NextPageToken: next}
				return printList(cmd, o.asJSON, reply, ordersTable(list), "No such orders.", limit)
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", "all", "which ones: "+strings.Join(orderStateNames(), ", ")+" or all")
	cmd.Flags().IntVar(&limit, "limit", 50, "list at most so many; 0 lists all")
	cmd.Flags().DurationVar(&since, "since", 0, "only orders of so long ago, 24h for example")
	cmd.Flags().StringVar(&req.IdSuffix, "id", "", "only orders whose id ends like this")
	cmd.Flags().StringVar(&req.CustomerEmail, "email", "", "only orders of this email address")
	cmd.Flags().StringVar(&product, "product", "", "only orders of this product, by its id or its name")
	completeFlag(cmd, "product", o.gateway.complete(productNames))
	states := append([]cobra.Completion{"all"}, orderStateNames()...)
	completeFlag(cmd, "state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func parseOrderState(s string) (orderv1.Order_State, error) {
	if strings.EqualFold(s, "all") {
		return orderv1.Order_STATE_UNSPECIFIED, nil
	}
	for _, state := range orderStates {
		if strings.EqualFold(s, state.String()) {
			return state, nil
		}
	}
	return 0, cli.WrongUsage("--state %s: there are %s and all", cli.Printable(s), strings.Join(orderStateNames(), ", "))
}

// orderStateNames returns the states as --state takes them.
func orderStateNames() (names []string) {
	for _, state := range orderStates {
		names = append(names, strings.ToLower(state.String()))
	}
	return names
}

func ordersTable(list []*orderv1.Order) *table {
	t := &table{header: []string{"ORDER", "STATE", "PIECES", "TOTAL", "PLACED", "CUSTOMER"}, flexible: 5, minWidth: 8, wraps: true}
	for _, order := range list {
		t.add(text(order.GetId()), stateCell(order), number(strconv.Itoa(int(order.GetTotalItems()))), number(amountOf(order.GetTotalValue())),
			text(localTime(order.GetCreatedAt().AsTime())), text(order.GetCustomerName()))
	}
	return t
}

func (o *orders) cancelCommand() *cobra.Command {
	return o.changeCommand(&cobra.Command{
		Use:     "cancel ORDER_ID",
		Short:   "Cancel a confirmed order",
		Long:    "Cancels a confirmed order; its pieces go back into stock. An order that is cancelled already stays so.",
		Example: "  shop order cancel 0192f6a0-0000-7000-8000-000000000001",
	}, func(ctx context.Context, client orderv1.OrderServiceClient, id string) (changed, error) {
		return client.CancelOrder(ctx, &orderv1.CancelOrderRequest{OrderId: id})
	})
}

// changed is the response of a call that changes an order.
type changed interface{ GetOrder() *orderv1.Order }

// changeCommand completes cmd: it makes a call with the given order id, and prints the order.
func (o *orders) changeCommand(cmd *cobra.Command, call func(ctx context.Context, client orderv1.OrderServiceClient, id string) (changed, error)) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = cli.Args("ORDER_ID"), first(o.gateway.complete(orderIDs))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return o.gateway.with(func(conn *grpc.ClientConn) error {
			reply, err := call(cmd.Context(), orderv1.NewOrderServiceClient(conn), args[0])
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), reply.GetOrder())
		})
	}
	return cmd
}
