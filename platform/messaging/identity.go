package messaging

import (
	"context"
	"fmt"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/codes"

	"shop.example/platform/apierror"
	"shop.example/platform/contract"
)

// HeaderUser names the broker's user who published a message first, if another service has published it again: the service
// whose queue it was in, as a retry or dead letter, or the service that keeps dead letters, as a redrive. From anybody else
// it is ignored. It is present but empty if the first user is not known.
const HeaderUser = "shop-user"

// identity maps the broker's users to services of the topology. A message carries the user who has published it in the
// property user_id, and the broker refuses a message with another user than that of the connection
// (https://www.rabbitmq.com/docs/validated-user-id). The zero value maps none: all services share one user.
//
// This release sets user_id and accepts messages without it, because replicas of the release before do not set it.
type identity struct {
	user   string // of the connection
	prefix string // what the users of all services have before the service's name, "" or "shop2-" for example
}

// identityOf derives the identity from a service's URL. A service's user is named as the service, after a prefix that ends
// with "-" if several shops share one broker.
func identityOf(uri amqp.URI, service string) identity {
	external := slices.ContainsFunc(uri.AuthMechanism, func(m string) bool { return strings.EqualFold(m, "external") })
	prefix, named := strings.CutSuffix(uri.Username, service)
	if service == "" || !named || prefix != "" && !strings.HasSuffix(prefix, "-") || external { // then a certificate names the user
		return identity{}
	}
	return identity{user: uri.Username, prefix: prefix}
}

func (i identity) known() bool { return i.user != "" }

// service returns the service whose user it is, "" if it is nobody's.
func (i identity) service(user string) string {
	if !strings.HasPrefix(user, i.prefix) {
		return ""
	}
	return user[len(i.prefix):]
}

// KnowsUsers reports whether the connection logs in as a service's own user, so that publishers of messages are checked.
func (c *Connection) KnowsUsers() bool { return c.identity.known() }

// UserOf returns the broker's user of another service, "" if publishers are not checked.
func (c *Connection) UserOf(service string) string {
	if !c.identity.known() {
		return ""
	}
	return c.identity.prefix + service
}

// MayPublish reports whether a user of the broker may publish event, as far as publishers are checked. An unknown user ("")
// may.
func (c *Connection) MayPublish(user string, event contract.Event) bool {
	return !c.identity.known() || user == "" || len(event.PublishedBy) == 0 || slices.Contains(event.PublishedBy, c.identity.service(user))
}

// checkPublisher checks that d, which came from queue, was published by a user who may publish it, and removes from it the
// headers that only services which publish messages again may set. After an error d is a dead letter, and has been logged
// and counted.
func (c *Connection) checkPublisher(d *amqp.Delivery, queue string) error {
	if !c.identity.known() {
		d.UserId = ""
		delete(d.Headers, HeaderUser)
		return nil
	}
	repeated := c.mayRepeat(d, queue)
	if !repeated {
		stripHeaders(d, queue)
	}
	if queue == DeadLetterQueue { // where else should it go?
		switch {
		case d.UserId == "":
			c.missingUser(queue)
		case !repeated && lastDeath(d.Headers) == nil: // the broker's own dead letters are of whoever published the message
			c.wrongUser(d, queue)
		}
		return nil
	}
	if !repeated && d.UserId != "" && d.Exchange == "" { // past the exchange, whose rights say who may publish what
		c.wrongUser(d, queue)
		return wrongPublisher{d.UserId, "to the queue " + queue}
	}
	_, key := firstRoute(d)
	event, ok := contract.ByRoutingKey(key)
	if !ok || len(event.PublishedBy) == 0 {
		return nil
	}
	switch user := publisherOf(d); {
	case user == "":
		c.missingUser(queue)
	case !slices.Contains(event.PublishedBy, c.identity.service(user)):
		c.wrongUser(d, queue)
		return wrongPublisher{user, string(event.Name)}
	}
	return nil
}

// wrongPublisher is the error about a message whose publisher may not publish it.
type wrongPublisher struct{ user, what string }

func (e wrongPublisher) Error() string {
	return fmt.Sprintf("the broker's user %q may not publish %s", e.user, e.what)
}

// mayRepeat reports whether d was published by a service that may publish others' messages again: the one that keeps dead
// letters, or the service whose queue they were in.
func (c *Connection) mayRepeat(d *amqp.Delivery, queue string) bool {
	owner := queue // a work queue is named as its service
	if queue == DeadLetterQueue {
		owner = sourceQueue(d)
	}
	service := c.identity.service(d.UserId)
	return service != "" && (service == owner || service == c.topology.DeadLetterService)
}

// stripHeaders removes the headers that only services which publish messages again may set. Otherwise whoever may publish
// one event could publish any other, because the headers name the route that counts, and say that an event gets no other attempt.
func stripHeaders(d *amqp.Delivery, queue string) {
	delete(d.Headers, HeaderUser)
	if d.UserId == "" {
		return // it may be of the release before, whose retries name the place and no user
	}
	delete(d.Headers, HeaderExchange)
	delete(d.Headers, HeaderRoutingKey)
	delete(d.Headers, headerSourceQueue)
	delete(d.Headers, headerAttempt)
	if queue != DeadLetterQueue { // else it is the broker's word
		delete(d.Headers, "x-death")
	}
}

// publisherOf returns the user who published d first, "" if that is not known. checkPublisher has been called on d.
func publisherOf(d *amqp.Delivery) string {
	if _, repeated := d.Headers[HeaderUser]; repeated {
		return nameHeader(d.Headers, HeaderUser)
	}
	return d.UserId
}

// sentBy reports whether a request or a reply comes from one of the services.
func (c *Connection) sentBy(d *amqp.Delivery, queue string, services ...string) bool {
	switch {
	case !c.identity.known():
	case d.UserId == "":
		c.missingUser(queue)
	case !slices.Contains(services, c.identity.service(d.UserId)):
		c.wrongUser(d, queue)
		return false
	}
	return true
}

// checkCaller checks that the request d comes from a service that may call the method.
func (c *Connection) checkCaller(d *amqp.Delivery, route contract.Method) error {
	if c.sentBy(d, route.Queue, route.CalledBy...) {
		return nil
	}
	return apierror.New(codes.PermissionDenied, "CALLER_NOT_ALLOWED", "the service that calls may not make this call")
}

// wrongUser logs and counts a message from a user who may not send it.
func (c *Connection) wrongUser(d *amqp.Delivery, queue string) {
	c.log.Error("a message comes from a user of the broker who may not send it", "queue", queue, "user", d.UserId,
		"published_by", publisherOf(d), "app_id", d.AppId, "routing_key", d.RoutingKey, "type", d.Type, "message_id", d.MessageId)
	user := c.identity.service(d.UserId)
	if !slices.Contains(services(), user) {
		user = otherUser // the log has the name
	}
	c.metrics.countWrongUser(1, queue, user)
}

// missingUser counts a message that does not say which user has sent it.
func (c *Connection) missingUser(queue string) {
	c.warnMissing.Do(func() {
		c.log.Warn("messages without user_id are accepted: the next release makes dead letters of them", "queue", queue)
	})
	c.metrics.missingUser.Add(context.Background(), 1, metric.WithAttributes(label("queue", queue)))
}
