package measure

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	checkoutv1 "shop.example/gen/shop/checkout/v1"
)

// grpcClient has a connection of its own, as restClient has.
type grpcClient struct {
	conn     *grpc.ClientConn
	checkout checkoutv1.CheckoutServiceClient
	requests []*checkoutv1.PlaceOrderRequest
}

func dialGRPC(addr string, orders [][]int64) (*grpcClient, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	c := &grpcClient{conn: conn, checkout: checkoutv1.NewCheckoutServiceClient(conn)}
	for _, products := range orders {
		req := &checkoutv1.PlaceOrderRequest{CustomerName: customerName, CustomerEmail: customerEmail}
		for _, id := range products {
			req.OrderItems = append(req.OrderItems, &checkoutv1.PlaceOrderRequest_Item{ProductId: int32(id), Quantity: 1}) //nolint:gosec // ids are integers in the database
		}
		c.requests = append(c.requests, req)
	}
	conn.Connect()
	return c, nil
}

func (c *grpcClient) place(ctx context.Context, i int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := c.checkout.PlaceOrder(ctx, c.requests[i%len(c.requests)])
	return []byte(resp.GetOrder().GetId()), err
}

func (c *grpcClient) close() { _ = c.conn.Close() }
