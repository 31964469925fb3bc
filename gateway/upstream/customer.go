package upstream

import (
	"context"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"shop.example/domain/enduser"
	"shop.example/gateway/access"
	customerv1 "shop.example/gen/shop/customer/v1"
	"shop.example/platform/apierror"
)

const (
	// searchTime is how long one call goes on reading pages of the services, and maxRecords the size of a response, in
	// bytes, from which on no further page is added.
	searchTime = 3 * time.Second
	maxRecords = 1 << 20
)

// customers implements CustomerService: it asks the services that keep personal data one after the other, page by page.
type customers struct {
	customerv1.UnimplementedCustomerServiceServer
	keepers []keeper
	issuer  string // of the tokens that customers have; "" if there is none
}

// keeper is a service that stores personal data.
type keeper struct {
	name string
	data customerv1.PersonalDataServiceClient
}

// NewCustomers returns a CustomerService that asks upstreams in this order. issuer is the issuer of customers' tokens; ""
// for none.
func NewCustomers(issuer string, upstreams ...*Service) customerv1.CustomerServiceServer {
	c := &customers{issuer: issuer}
	for _, u := range upstreams {
		c.keepers = append(c.keepers, keeper{u.Name, customerv1.NewPersonalDataServiceClient(u.Conn)})
	}
	return c
}

// ExportCustomer implements customerv1.CustomerServiceServer.
func (c *customers) ExportCustomer(ctx context.Context, req *customerv1.ExportCustomerRequest) (*customerv1.ExportCustomerResponse, error) {
	person, err := c.person(req.GetCustomerEmail(), req.GetIssuer(), req.GetSubject())
	if err != nil {
		return nil, err
	}
	resp := &customerv1.ExportCustomerResponse{}
	size := 0
	resp.NextPageToken, err = c.eachKeeper(ctx, req.GetPageToken(), func(ctx context.Context, k keeper, token string) (next string, more bool, err error) {
		found, err := k.data.FindPersonalData(ctx, &customerv1.FindPersonalDataRequest{Person: person, PageToken: token})
		if err != nil {
			return "", false, err
		}
		resp.Records = append(resp.Records, found.GetRecords()...)
		size += proto.Size(found)
		return found.GetNextPageToken(), size < maxRecords, nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// EraseCustomer implements customerv1.CustomerServiceServer.
func (c *customers) EraseCustomer(ctx context.Context, req *customerv1.EraseCustomerRequest) (*customerv1.EraseCustomerResponse, error) {
	person, err := c.person(req.GetCustomerEmail(), req.GetIssuer(), req.GetSubject())
	if err != nil {
		return nil, err
	}
	resp := &customerv1.EraseCustomerResponse{}
	resp.NextPageToken, err = c.eachKeeper(ctx, req.GetPageToken(), func(ctx context.Context, k keeper, token string) (next string, more bool, err error) {
		done, err := k.data.ErasePersonalData(ctx, &customerv1.ErasePersonalDataRequest{Person: person, PageToken: token})
		if err != nil {
			return "", false, err
		}
		resp.Orders += done.GetOrders()
		resp.Events += done.GetEvents()
		resp.DeadLetters += done.GetDeadLetters()
		resp.Webhooks += done.GetWebhooks()
		resp.WebhookEvents += done.GetWebhookEvents()
		return done.GetNextPageToken(), true, nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// person is the customer whose data are requested.
func (c *customers) person(email, issuer, subject string) (*customerv1.Person, error) {
	// person returns the customer that a request names, or an error that says what is wrong with the request.
	person := &customerv1.Person{Email: email}
	if subject == "" {
		return person, nil
	}
	if issuer == "" {
		issuer = c.issuer
	}
	if issuer == "" {
		return nil, apierror.InvalidArgument(apierror.Violation{Field: "issuer", Description: "must be given with a subject: this gateway knows no issuer of tokens"})
	}
	person.Owner = enduser.Owner(issuer, subject)
	return person, nil
}

// eachKeeper calls f for each page of each service in turn, beginning at token. It stops early if f wants no more or
// searchTime is over, and returns the token of the next page; "" after the last one.
func (c *customers) eachKeeper(ctx context.Context, token string, f func(ctx context.Context, k keeper, token string) (next string, more bool, err error)) (string, error) {
	at, rest, err := c.parseToken(token)
	if err != nil {
		return "", err
	}
	ctx = access.OnBehalfOf(ctx)
	for begin, more := time.Now(), true; at < len(c.keepers); {
		if !more || time.Since(begin) > searchTime {
			return strconv.Itoa(at) + ":" + rest, nil
		}
		if rest, more, err = c.callKeeper(ctx, c.keepers[at], rest, f); err != nil {
			return "", err
		}
		if rest == "" {
			at++
		}
	}
	return "", nil
}

func (c *customers) callKeeper(ctx context.Context, k keeper, token string, f func(context.Context, keeper, string) (string, bool, error)) (next string, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if next, more, err = f(ctx, k, token); err != nil {
		return "", false, Error(k.name, err)
	}
	return next, more, nil
}

// parseToken returns the index of the service that is next, and the token of its page.
func (c *customers) parseToken(token string) (at int, rest string, err error) {
	if token == "" {
		return 0, "", nil
	}
	number, rest, ok := strings.Cut(token, ":")
	if at, err = strconv.Atoi(number); err != nil || !ok || at < 0 || at >= len(c.keepers) {
		return 0, "", apierror.InvalidArgument(apierror.Violation{
			Field: "page_token", Description: "is not a next_page_token for this person; leave it out to start at the first page",
		})
	}
	return at, rest, nil
}
