package telemetry_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/telemetry"
)

// A service's logger knows the service, and what the context says.
func Example() {
	t, err := telemetry.New(context.Background(), telemetry.Config{Service: "order", LogFormat: telemetry.JSON, Output: cut{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer t.Shutdown(context.Background())
	ctx := telemetry.With(context.Background(), telemetry.RoutingKey("shop.order.placed"))
	t.Logger.InfoContext(ctx, "order created", "total", 205)
	// Output:
	// "level":"INFO","msg":"order created","service":"order","total":205,"routing_key":"shop.order.placed"}
}

// What a contract marks as personal never gets into the log.
func ExampleRedacted() {
	log := slog.New(slog.NewJSONHandler(cut{}, nil))
	log.Info("read", "order", telemetry.Redacted(&orderv1.Order{CustomerName: "Ada", CustomerEmail: "ada@example.org", TotalItems: 7}))
	// Output:
	// "level":"INFO","msg":"read","order":{"total_items":7}}
}

// cut prints a line without its time.
type cut struct{}

func (cut) Write(line []byte) (int, error) {
	_, rest, _ := strings.Cut(string(line), `,`)
	_, err := os.Stdout.WriteString(rest)
	return len(line), err
}
