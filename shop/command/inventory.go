package command

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"shop.example/domain/money"
	inventoryv1 "shop.example/gen/shop/inventory/v1"
	moneyv1 "shop.example/gen/shop/money/v1"
	"shop.example/shop/cli"
)

// inventory has what the subcommands of shop inventory share.
type inventory struct {
	gateway gateway
	asJSON  bool
}

func inventoryCommand() *cobra.Command {
	i := &inventory{gateway: gateway{names: map[string]string{
		"items.product_name": "NAME", "items.quantity": "--quantity", "items.price": "--price", "items.price.currency_code": "--currency",
		"item.product_name": "--name", "item.on_hand": "--quantity", "item.price": "--price", "item.price.currency_code": "--currency",
		"item.id": "PRODUCT", "id": "PRODUCT", "item_id": "PRODUCT", "page_size": "--limit",
	}}}
	cmd := &cobra.Command{
		Use:   "inventory",
		Short: "List, create, change and delete products",
		Long: `Products with their stock and price. Anybody may list them; the rest is for operators. A product is
named by its id or by its name.`,
		Example: "  shop inventory list\n  shop inventory create Webcam --quantity 20 --price 49.90\n  shop inventory set Webcam --quantity 25",
	}
	i.gateway.flags(cmd)
	cmd.PersistentFlags().BoolVar(&i.asJSON, "json", false, "print the JSON of the REST API")
	cmd.AddCommand(i.listCommand(), i.createCommand(), i.setCommand(), i.historyCommand(), i.deleteCommand())
	return cmd
}

// with calls f with a client of the shop.
func (i *inventory) with(f func(inventoryv1.InventoryServiceClient) error) error {
	return i.gateway.with(func(conn *grpc.ClientConn) error { return f(inventoryv1.NewInventoryServiceClient(conn)) })
}

func (i *inventory) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the products in the order of their ids",
		Long: `Lists all products. ON HAND is the stock in the warehouse, RESERVED the part of it that is held for
orders, AVAILABLE the rest, which can be ordered.`,
		Example: "  shop inventory list\n  shop inventory list --json | jq '.items[] | select(.quantity < 5)'",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return i.with(func(c inventoryv1.InventoryServiceClient) error {
				items, err := allItems(cmd.Context(), c)
				if err != nil {
					return err
				}
				if i.asJSON {
					return printMessage(cmd.OutOrStdout(), &inventoryv1.ListItemsResponse{Items: items})
				}
				if len(items) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "No products: shop inventory create adds one.")
				}
				screenOf(cmd.OutOrStdout()).print(itemsTable(items...))
				return nil
			})
		},
	}
}

// allItems reads the catalogue.
func allItems(ctx context.Context, c inventoryv1.InventoryServiceClient) ([]*inventoryv1.Item, error) {
	items, _, err := pages(0, func(size int32, token string) ([]*inventoryv1.Item, string, error) {
		page, err := c.ListItems(ctx, &inventoryv1.ListItemsRequest{PageSize: size, PageToken: token})
		return page.GetItems(), page.GetNextPageToken(), err
	})
	return items, err
}

func itemsTable(items ...*inventoryv1.Item) *table {
	t := &table{header: []string{"ID", "PRODUCT", "AVAILABLE", "ON HAND", "RESERVED", "PRICE", "ETAG"}, flexible: 1, minWidth: 10}
	for _, item := range items {
		left := number(strconv.Itoa(int(item.GetQuantity())))
		if item.GetQuantity() == 0 {
			left.colour = red
		}
		t.add(number(strconv.Itoa(int(item.GetId()))), text(item.GetProductName()), left, number(strconv.Itoa(int(item.GetOnHand()))),
			number(strconv.Itoa(int(item.GetReserved()))), number(amountOf(item.GetPrice())), text(item.GetEtag()))
	}
	return t
}

// amountOf formats an amount for people: "205.00 USD", "-" for none.
func amountOf(m *moneyv1.Money) string {
	if m == nil {
		return "-"
	}
	return money.Format(money.Minor(m), m.GetCurrencyCode())
}

// print writes one product.
func (i *inventory) print(cmd *cobra.Command, item *inventoryv1.Item) error {
	if i.asJSON {
		return printMessage(cmd.OutOrStdout(), item)
	}
	screenOf(cmd.OutOrStdout()).print(itemsTable(item))
	return nil
}

func (i *inventory) createCommand() *cobra.Command {
	var (
		quantity        int32
		price, currency string
	)
	cmd := &cobra.Command{
		Use:               "create NAME",
		Short:             "Add a product",
		Long:              "Adds a product with its stock. Its name must be new.",
		Example:           "  shop inventory create Webcam --quantity 20 --price 49.90",
		Args:              cli.Args("NAME"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			amount, err := parsePrice(price, currency)
			if err != nil {
				return err
			}
			return i.with(func(c inventoryv1.InventoryServiceClient) error {
				reply, err := c.CreateItems(cmd.Context(), &inventoryv1.CreateItemsRequest{Items: []*inventoryv1.CreateItemsRequest_NewItem{
					{ProductName: args[0], Quantity: quantity, Price: amount},
				}})
				if err != nil {
					return err
				}
				if i.asJSON {
					return printMessage(cmd.OutOrStdout(), reply)
				}
				return i.print(cmd, reply.GetItems()[0])
			})
		},
	}
	cmd.Flags().Int32Var(&quantity, "quantity", 0, "the pieces in stock")
	priceFlags(cmd, &price, &currency)
	_ = cmd.MarkFlagRequired("quantity") // both are there
	_ = cmd.MarkFlagRequired("price")
	return cmd
}

func priceFlags(cmd *cobra.Command, price, currency *string) {
	cmd.Flags().StringVar(price, "price", "", "the price of a piece, 12.50 for example")
	cmd.Flags().StringVar(currency, "currency", cmp.Or(os.Getenv("SHOP_CURRENCY"), "USD"), "the price's currency, by ISO 4217")
}

// parsePrice reads an amount like 12.50.
func parsePrice(s, currency string) (*moneyv1.Money, error) {
	units, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return nil, cli.WrongUsage("--price %s: give an amount like 12.50", cli.Printable(s))
	}
	amount, err := money.FromFloat(units, currency)
	if err != nil {
		return nil, cli.WrongUsage("--price %s: %w", cli.Printable(s), err)
	}
	return amount, nil
}

func (i *inventory) setCommand() *cobra.Command {
	var (
		name, price, currency, etag string
		quantity                    int32
	)
	cmd := &cobra.Command{
		Use:   "set PRODUCT",
		Short: "Change a product's name, stock or price",
		Long: `Changes name, stock or price, whichever flags are given. --quantity is the stock in the warehouse, including
the pieces that are held for orders, and cannot be less than those.

A product changes with every order for it. With --etag the change is refused if the product has changed since
that etag was read, so that no other change is overwritten.`,
		Example: `  shop inventory set Webcam --price 39.90
  shop inventory set 7 --name "Webcam HD" --quantity 25 --etag 3`,
		Args:              cli.Args("PRODUCT"),
		ValidArgsFunction: first(i.gateway.complete(productNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &inventoryv1.UpdateItemRequest{Item: &inventoryv1.Item{Etag: etag}, UpdateMask: &fieldmaskpb.FieldMask{}}
			set := func(flag, field string) bool {
				if !cmd.Flags().Changed(flag) {
					return false
				}
				req.UpdateMask.Paths = append(req.UpdateMask.Paths, field)
				return true
			}
			if set("name", "product_name") {
				req.Item.ProductName = name
			}
			if set("quantity", "on_hand") {
				req.Item.OnHand = quantity
			}
			if set("price", "price") {
				var err error
				if req.Item.Price, err = parsePrice(price, currency); err != nil {
					return err
				}
			}
			return i.with(func(c inventoryv1.InventoryServiceClient) (err error) {
				if req.Item.Id, err = productID(cmd.Context(), c, args[0]); err != nil {
					return err
				}
				reply, err := c.UpdateItem(cmd.Context(), req)
				if err != nil {
					return err
				}
				return i.print(cmd, reply.GetItem())
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the new name")
	cmd.Flags().Int32Var(&quantity, "quantity", 0, "the pieces in the warehouse")
	priceFlags(cmd, &price, &currency)
	cmd.Flags().StringVar(&etag, "etag", "", "the product's etag as it was read")
	cmd.MarkFlagsOneRequired("name", "quantity", "price")
	return cmd
}

func (i *inventory) historyCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "history PRODUCT",
		Short: "List what has changed the stock of a product, the newest first (for operators)",
		Long: `Lists each change of the pieces in the warehouse, the newest first: the first stock, what operators have set,
what orders have taken, and what cancelled orders have given back. A product that has been deleted is named by its id.`,
		Example:           "  shop inventory history Webcam\n  shop inventory history 7 --limit 0 --json | jq -r '.movements[] | select(.reason == \"SOLD\") | .order_id'",
		Args:              cli.Args("PRODUCT"),
		ValidArgsFunction: first(i.gateway.complete(productNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return cli.WrongUsage("--limit %d: give how many to list, 0 for all", limit)
			}
			return i.with(func(c inventoryv1.InventoryServiceClient) error {
				id, err := productID(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				list, next, err := pages(limit, func(size int32, token string) ([]*inventoryv1.StockMovement, string, error) {
					page, err := c.ListStockMovements(cmd.Context(), &inventoryv1.ListStockMovementsRequest{ItemId: id, PageSize: size, PageToken: token})
					return page.GetMovements(), page.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				reply := &inventoryv1.ListStockMovementsResponse{Movements: list, NextPageToken: next}
				return printList(cmd, i.asJSON, reply, movementsTable(list), "", limit)
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 50, "list at most so many; 0 lists all")
	return cmd
}

func movementsTable(list []*inventoryv1.StockMovement) *table {
	t := &table{header: []string{"WHEN", "PIECES", "WHY", "ORDER"}, flexible: 3, minWidth: 8}
	for _, m := range list {
		t.add(text(localTime(m.GetMovedAt().AsTime())), number(fmt.Sprintf("%+d", m.GetQuantity())), text(strings.ToLower(m.GetReason().String())),
			text(or(m.GetOrderId(), "-")))
	}
	return t
}

func (i *inventory) deleteCommand() *cobra.Command {
	var (
		yes  bool
		etag string
	)
	cmd := &cobra.Command{
		Use:               "delete PRODUCT",
		Short:             "Delete a product",
		Long:              "Deletes a product from the catalogue, for good. It is refused while pieces are held for orders, and with\n--etag if the product has changed since that etag was read. Orders keep its name.",
		Example:           "  shop inventory delete Webcam\n  shop inventory delete 7 --yes --etag 3",
		Args:              cli.Args("PRODUCT"),
		ValidArgsFunction: first(i.gateway.complete(productNames)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return i.with(func(c inventoryv1.InventoryServiceClient) error {
				id, err := productID(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				if !yes && cli.CanAsk(cmd) { // else the script says which one it means
					if err := cli.Confirm(cmd, fmt.Sprintf("Delete product %s?", cli.Printable(args[0]))); err != nil {
						return err
					}
				}
				reply, err := c.DeleteItem(cmd.Context(), &inventoryv1.DeleteItemRequest{Id: id, Etag: etag})
				if err != nil {
					return err
				}
				if i.asJSON {
					return printMessage(cmd.OutOrStdout(), reply)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%d deleted\n", id)
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVar(&etag, "etag", "", "the product's etag as it was read")
	return cmd
}

// productID returns the id of a product that is given by id or by name. It reads the catalogue only for a name.
func productID(ctx context.Context, c inventoryv1.InventoryServiceClient, product string) (int32, error) {
	if id, err := strconv.ParseInt(product, 10, 32); err == nil {
		return int32(id), nil
	}
	items, err := allItems(ctx, c)
	if err != nil {
		return 0, err
	}
	return byName(items, product)
}

// maxNames is how many products an error lists.
const maxNames = 12

// byName finds a product by name: the one with exactly this name, else the only one that differs in upper and lower case
// alone.
func byName(items []*inventoryv1.Item, name string) (int32, error) {
	var near []*inventoryv1.Item
	for _, item := range items {
		if item.GetProductName() == name {
			return item.GetId(), nil
		}
		if strings.EqualFold(item.GetProductName(), name) {
			near = append(near, item)
		}
	}
	if len(near) == 1 {
		return near[0].GetId(), nil
	}
	if len(items) == 0 {
		return 0, fmt.Errorf("there is no product %q, and no other: shop inventory create adds one", cli.Printable(name))
	}
	var names []string
	for _, item := range items[:min(len(items), maxNames)] {
		names = append(names, cli.Printable(item.GetProductName()))
	}
	list := strings.Join(names, ", ")
	if more := len(items) - len(names); more > 0 {
		list += fmt.Sprintf(" and %d more: shop inventory list shows them", more)
	}
	return 0, cli.WrongUsage("there is no product %q; there are %s", cli.Printable(name), list)
}
