package edge

import (
	"context"
	"fmt"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"shop.example/domain/money"
	eventsv1 "shop.example/gen/shop/events/v1"
	intermediaryv1 "shop.example/gen/shop/intermediary/v1"
	"shop.example/platform/apierror"
)

// intermediary implements IntermediaryService, the demo's interface.
type intermediary struct {
	intermediaryv1.UnimplementedIntermediaryServiceServer
	orders   *orders
	request  func(ctx context.Context, request, reply proto.Message) error // asks over the broker
	lists    *semaphore.Weighted                                           // bounds what is asked for the whole catalogue at a time
	currency string                                                        // of the prices
}

// maxLists is how many lists of the whole catalogue are asked for at a time: an answer of 1 MiB takes some 20 MB.
const maxLists = 2

// CreateOrder publishes an order whose prices are numbers and must be the catalogue's.
func (s intermediary) CreateOrder(ctx context.Context, req *intermediaryv1.CreateOrderRequest) (*intermediaryv1.CreateOrderResponse, error) {
	lines, err := s.requestedLines(req.GetOrderItems())
	if err != nil {
		return nil, err
	}
	order, err := s.orders.place(ctx, req.GetCustomerName(), req.GetCustomerEmail(), lines, func(string) {})
	if err != nil {
		return nil, err
	}
	return &intermediaryv1.CreateOrderResponse{Message: "Order successfully published.", OrderId: order.GetId()}, nil
}

func (s intermediary) requestedLines(items []*intermediaryv1.CreateOrderRequest_Item) ([]*eventsv1.RequestedLine, error) {
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
func (s intermediary) ListInventory(ctx context.Context, _ *intermediaryv1.ListInventoryRequest) (*intermediaryv1.ListInventoryResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.lists.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.lists.Release(1)
	var listed eventsv1.InventoryListed
	if err := s.request(ctx, &eventsv1.ListInventory{}, &listed); err != nil {
		return nil, backendError("inventory", err)
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
