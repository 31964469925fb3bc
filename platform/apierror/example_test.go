package apierror_test

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"

	"shop.example/platform/apierror"
)

// What a handler returns, and what its client gets.
func Example() {
	errDown := errors.New("connection refused")
	for _, err := range []error{
		apierror.New(codes.NotFound, "ORDER_NOT_FOUND", "there is no such order"),
		fmt.Errorf("reading the order: %w", errDown),
		errors.New("a bug, with a password in its text"),
	} {
		s := apierror.Status(err, errDown)
		fmt.Println(s.Code(), s.Message())
	}
	// Output:
	// NotFound there is no such order
	// Unavailable something that is needed is not available; try again
	// Internal internal error
}

func ExampleInvalidArgument() {
	err := apierror.InvalidArgument(
		apierror.Violation{Field: "order_items[0].quantity", Description: "must be at least 1"},
		apierror.Violation{Field: "customer_name", Description: "enter a name"})
	fmt.Println(err)
	// Output:
	// INVALID_ARGUMENT: order_items[0].quantity: must be at least 1 (and 1 more)
}
