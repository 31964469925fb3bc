// Package intermediary serves the API of the demo that this shop grew out of: the routes under /intermediary, with exactly
// the demo's bodies. Nothing else in the gateway depends on it.
package intermediary

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/money"
	"shop.example/gateway/ingress"
	"shop.example/gateway/intake"
	"shop.example/gateway/rest"
	"shop.example/gateway/upstream"
	eventsv1 "shop.example/gen/shop/events/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	"shop.example/platform/apierror"
)

// maxLists is how many lists of the whole catalogue are asked for at a time: an answer of 1 MiB takes some 20 MB.
const maxLists = 2

// listRate bounds ListInventory for each client, whatever RATE_LIMIT says: each call is kept in the log of events.
var listRate = ingress.RateLimit{PerSecond: 1, Burst: 10}

// Request publishes a request and waits for the answer, which it writes to reply; see messaging.RPCClient.Request.
type Request func(ctx context.Context, request, reply proto.Message) error

// Register adds the demo's API: the gRPC service, its REST routes, and a rate limit for its calls. currency is the ISO 4217
// code of the prices, which are plain numbers.
func Register(
	services grpc.ServiceRegistrar, server *rest.Server, limits *ingress.PathLimits, orders *intake.Orders, request Request, currency string,
) error {
	intermediaryv1.RegisterIntermediaryServiceServer(services, service{
		orders: orders, request: request, lists: semaphore.NewWeighted(maxLists), currency: currency,
	})
	server.AnswerInText((*intermediaryv1.CreateOrderResponse)(nil), func(answer proto.Message) (text, location string) {
		created := answer.ProtoReflect().Interface().(*intermediaryv1.CreateOrderResponse)
		return created.GetMessage(), rest.OrderPath(created.GetOrderId())
	})
	return errors.Join(
		limits.Add("list-inventory", listRate, "/intermediary/inventory", intermediaryv1.IntermediaryService_ListInventory_FullMethodName),
		rest.Add(server, &intermediaryv1.IntermediaryService_ServiceDesc, intermediaryv1.NewIntermediaryServiceClient, intermediaryv1.RegisterIntermediaryServiceHandlerClient),
	)
}

// service implements IntermediaryService, the demo's interface.
type service struct {
	intermediaryv1.UnimplementedIntermediaryServiceServer
	orders   *intake.Orders
	request  Request
	lists    *semaphore.Weighted // bounds how often the whole catalogue is asked for at a time
	currency string              // of the prices
}

// CreateOrder publishes an order whose prices are numbers and must be the catalogue's.
func (s service) CreateOrder(ctx context.Context, req *intermediaryv1.CreateOrderRequest) (*intermediaryv1.CreateOrderResponse, error) {
	lines, err := s.requestedLines(req.GetOrderItems())
	if err != nil {
		return nil, err
	}
	// The demo takes any text for an address; with spaces around it nobody would find it.
	order, err := s.orders.Place(ctx, &eventsv1.OrderPlaced{
		CustomerName: req.GetCustomerName(), CustomerEmail: strings.TrimSpace(req.GetCustomerEmail()), Lines: lines,
	}, func(string) {})
	if err != nil {
		return nil, err
	}
	return &intermediaryv1.CreateOrderResponse{Message: "Order successfully published.", OrderId: order.GetId()}, nil
}

func (s service) requestedLines(items []*intermediaryv1.CreateOrderRequest_Item) ([]*eventsv1.RequestedLine, error) {
	lines := make([]*eventsv1.RequestedLine, len(items))
	var wrong []apierror.Violation
	for i, item := range items {
		price, err := money.FromFloat(item.GetPrice(), s.currency)
		if err != nil {
			wrong = append(wrong, apierror.Violation{
				Field: fmt.Sprintf("order_items[%d].price", i), Description: err.Error(),
			})
		}
		lines[i] = &eventsv1.RequestedLine{ProductName: item.GetProductName(), Quantity: item.GetQuantity(), ExpectedUnitPrice: price}
		if item.GetProductName() == "" {
			lines[i].ProductId = item.GetId()
		}
	}
	if len(wrong) > 0 {
		return nil, apierror.InvalidArgument(wrong...)
	}
	return lines, nil
}

// ListInventory asks inventory over the broker, as the demo did, so the request is in the event log.
func (s service) ListInventory(ctx context.Context, _ *intermediaryv1.ListInventoryRequest) (*intermediaryv1.ListInventoryResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, upstream.CallTimeout)
	defer cancel()
	if err := s.lists.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.lists.Release(1)
	var listed eventsv1.InventoryListed
	if err := s.request(ctx, &eventsv1.ListInventory{}, &listed); err != nil {
		return nil, upstream.Error("inventory", err)
	}
	items := make([]*intermediaryv1.ListInventoryResponse_Item, len(listed.GetItems()))
	for i, item := range listed.GetItems() {
		items[i] = &intermediaryv1.ListInventoryResponse_Item{
			Id:          item.GetId(),
			ProductName: item.GetProductName(),
			Quantity:    int64(item.GetQuantity()),
			Price:       money.Decimal(item.GetPrice()),
			CreatedAt:   item.GetCreatedAt(),
			UpdatedAt:   item.GetUpdatedAt(),
		}
	}
	return &intermediaryv1.ListInventoryResponse{Items: items}, nil
}
