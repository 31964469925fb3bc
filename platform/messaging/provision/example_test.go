package provision_test

import (
	"encoding/json"
	"fmt"

	"shop.example/platform/messaging"
	"shop.example/platform/messaging/provision"
)

// What an administrator imports into the broker: each service's user may do what the contracts say it does.
func ExampleJSON() {
	file, err := provision.JSON(messaging.Topology{
		EventExchange: "shop.topic", DeadLetterExchange: "shop.dlx",
		Services: []messaging.Service{{Name: "gateway"}, {Name: "order", Bindings: []string{"shop.order.placed"}}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var definitions struct {
		Queues []struct{ Name string }
	}
	if err := json.Unmarshal(file, &definitions); err != nil {
		fmt.Println(err)
		return
	}
	for _, queue := range definitions.Queues {
		fmt.Println(queue.Name)
	}
	// Output:
	// order
	// order.retry.1s
	// order.retry.10s
	// order.retry.60s
}
