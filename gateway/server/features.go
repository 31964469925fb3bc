package server

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"shop.example/gateway/ingress"
	"shop.example/gateway/intake"
	"shop.example/gateway/intermediary"
	"shop.example/gateway/rest"
	"shop.example/gateway/web"
)

// parts is what features are built from.
type parts struct {
	services grpc.ServiceRegistrar    // over gRPC
	conn     grpc.ClientConnInterface // to the services, within the process
	rest     *rest.Server
	paths    *ingress.PathLimits
	orders   *intake.Orders
	request  func(ctx context.Context, request, reply proto.Message) error // asks over the broker
	currency string                                                        // of prices without one
	demo     bool                                                          // whether there are demo handlers

	traceURL, dashboardURL string // of the page of a trace, and of the dashboards; "" for none
}

// addFeatures adds the optional features. To remove one, delete its folder, and its line and import here; `make removable`
// does that on a copy of the tree and builds it.
func addFeatures(p parts) error {
	return errors.Join(
		intermediary.Register(p.services, p.rest, p.paths, p.orders, p.request, p.currency),
		web.Register(p.rest, p.conn, p.demo, p.traceURL, p.dashboardURL),
	)
}
