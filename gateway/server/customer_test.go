package server

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"shop.example/domain/enduser"
	customerv1 "shop.example/gen/shop/customer/v1"
	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/apierror"
)

// keeping is a service that has personal data in pages.
type keeping struct {
	customerv1.UnimplementedPersonalDataServiceServer
	name  string
	pages int
	bytes int // of each record

	mu    sync.Mutex
	asked []string
	err   error
}

func (k *keeping) ask(ctx context.Context, person *customerv1.Person, token string) (next string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, fmt.Sprintf("%s %s %s %q", enduser.Operator(ctx), person.GetEmail(), person.GetOwner(), token))
	page := len(token)
	if page+1 < k.pages {
		next = strings.Repeat("x", page+1)
	}
	return next, k.err
}

func (k *keeping) FindPersonalData(ctx context.Context, req *customerv1.FindPersonalDataRequest) (*customerv1.FindPersonalDataResponse, error) {
	next, err := k.ask(ctx, req.GetPerson(), req.GetPageToken())
	record := &customerv1.PersonalRecord{Record: &customerv1.PersonalRecord_Order{Order: &orderv1.Order{
		Id: fmt.Sprintf("%s %d", k.name, len(req.GetPageToken())), CustomerName: strings.Repeat("n", k.bytes),
	}}}
	return &customerv1.FindPersonalDataResponse{Records: []*customerv1.PersonalRecord{record}, NextPageToken: next}, err
}

func (k *keeping) ErasePersonalData(ctx context.Context, req *customerv1.ErasePersonalDataRequest) (*customerv1.ErasePersonalDataResponse, error) {
	next, err := k.ask(ctx, req.GetPerson(), req.GetPageToken())
	if k.name == "order" {
		return &customerv1.ErasePersonalDataResponse{Orders: 2, NextPageToken: next}, err
	}
	if k.name == "webhooks" {
		return &customerv1.ErasePersonalDataResponse{Webhooks: 1, WebhookEvents: 2, NextPageToken: next}, err
	}
	return &customerv1.ErasePersonalDataResponse{Events: 3, DeadLetters: 1, NextPageToken: next}, err
}

func startCustomers(t *testing.T, logging, order *keeping) (*gateway, customerv1.CustomerServiceClient, context.Context) {
	t.Helper()
	serve := func(k *keeping) string {
		return backend(t, func(s grpc.ServiceRegistrar) { customerv1.RegisterPersonalDataServiceServer(s, k) })
	}
	logging.name, order.name = "logging", "order"
	webhooks := &keeping{name: "webhooks"}
	g := startGateway(t, Config{LoggingAddr: serve(logging), WebhooksAddr: serve(webhooks), OrderAddr: serve(order)})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+operatorToken)
	return g, customerv1.NewCustomerServiceClient(client(t, g.HTTPAddr())), ctx
}

func TestCustomer_IsErasedInTheLogBeforeTheOrders(t *testing.T) {
	t.Parallel()
	logging, order := &keeping{pages: 3}, &keeping{pages: 2}
	g, customers, ctx := startCustomers(t, logging, order)
	got, err := customers.EraseCustomer(ctx, &customerv1.EraseCustomerRequest{CustomerEmail: "ada@example.org", Subject: "ada", Issuer: "https://login.example.org"})
	if err != nil || got.GetOrders() != 4 || got.GetEvents() != 9 || got.GetDeadLetters() != 3 || got.GetWebhooks() != 1 || got.GetWebhookEvents() != 2 || got.GetNextPageToken() != "" {
		t.Errorf("erased %v, %v", got, err)
	}
	const by = "operator token ada@example.org https://login.example.org ada "
	if want := []string{by + `""`, by + `"x"`, by + `"xx"`}; !slices.Equal(logging.asked, want) {
		t.Errorf("the log was asked %q, want %q", logging.asked, want)
	}
	if want := []string{by + `""`, by + `"x"`}; !slices.Equal(order.asked, want) {
		t.Errorf("the order service was asked %q, want %q", order.asked, want)
	}

	rest := send(t, http.MethodPost, "http://"+g.HTTPAddr()+"/v1/customers:erase", `{"customer_email": "ada@example.org"}`, "Authorization: Bearer "+operatorToken)
	if rest.status != http.StatusOK || !strings.Contains(strings.ReplaceAll(rest.body, " ", ""), `"orders":4,"events":9,"dead_letters":3,"next_page_token":""`) {
		t.Errorf("over REST: %d %s", rest.status, rest.body)
	}
	// What is not erased in the log yet is not erased in the orders: there it could come back.
	logging.mu.Lock()
	logging.err = apierror.Unavailable("BROKER_UNAVAILABLE", 1, "away")
	logging.mu.Unlock()
	before := len(order.asked)
	if _, err := customers.EraseCustomer(ctx, &customerv1.EraseCustomerRequest{CustomerEmail: "ada@example.org"}); status.Code(err) != codes.Unavailable || len(order.asked) != before {
		t.Errorf("while the log is away: %v", err)
	}
}

func TestCustomer_IsExportedInPagesThatAreNotTooLarge(t *testing.T) {
	t.Parallel()
	logging, order := &keeping{pages: 3, bytes: 600 << 10}, &keeping{pages: 4}
	_, customers, ctx := startCustomers(t, logging, order)
	var ids []string
	pages := 0
	for req := (&customerv1.ExportCustomerRequest{CustomerEmail: "ada@example.org"}); ; pages++ {
		got, err := customers.ExportCustomer(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range got.GetRecords() {
			ids = append(ids, r.GetOrder().GetId())
		}
		if req.PageToken = got.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if want := []string{"logging 0", "logging 1", "logging 2", "webhooks 0", "order 0", "order 1", "order 2", "order 3"}; !slices.Equal(ids, want) || pages != 1 {
		t.Errorf("exported %q after %d pages, want %q", ids, pages, want)
	}
}

func TestCustomer_HasToBeNamed(t *testing.T) {
	t.Parallel()
	logging, order := &keeping{}, &keeping{}
	g, customers, ctx := startCustomers(t, logging, order)
	for name, req := range map[string]*customerv1.EraseCustomerRequest{
		"nobody":                      {},
		"a subject of no issuer":      {Subject: "ada"},
		"an issuer alone":             {Issuer: "https://login.example.org"},
		"a token of another list":     {CustomerEmail: "ada@example.org", PageToken: "e1234"},
		"a token of no service":       {CustomerEmail: "ada@example.org", PageToken: "3:"},
		"a token of a service before": {CustomerEmail: "ada@example.org", PageToken: "-1:x"},
	} {
		if _, err := customers.EraseCustomer(ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, path := range []string{"/v1/customers:erase", "/v1/customers:export", "/v1/operator-actions"} {
		method, body := http.MethodPost, `{"customer_email": "ada@example.org"}`
		if strings.HasSuffix(path, "actions") {
			method, body = http.MethodGet, ""
		}
		if got := send(t, method, "http://"+g.HTTPAddr()+path, body); got.status != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d %s", path, got.status, got.body)
		}
	}
	if len(logging.asked)+len(order.asked) != 0 {
		t.Errorf("services were asked: %q %q", logging.asked, order.asked)
	}
}
