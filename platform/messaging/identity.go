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

// HeaderUser names the broker's user who published a message first, if it was published again: as a retry or a dead
// letter by the service whose queue it was in, or as a redrive by the one that keeps dead letters. It is believed from those alone. It is there,
// and empty, if nobody knows who that was.
const HeaderUser = "shop-user"

// identity tells which of the broker's users are services of the topology. A message says which user has published it, in the
// property user_id, and the broker refuses a message with another user than the connection's
// (https://www.rabbitmq.com/docs/validated-user-id). The zero value tells nothing: the services share one user.
//
// This release sets user_id and accepts messages without it, because replicas of the one before do not set it.
type identity struct {
	user   string // of the connection
	prefix string // what the users of all services have before the service's name, "" or "shop2-" for example
}

// identityOf reads the user of a service from its URL: it is named as the service, after a prefix that ends with "-" if
// several shops use one broker.
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

// KnowsUsers says whether the connection's user is the service's own, so that it is checked who has published what.
func (c *Connection) KnowsUsers() bool { return c.identity.known() }

// UserOf returns the broker's user of another service, "" if it is not checked who publishes what.
func (c *Connection) UserOf(service string) string {
	if !c.identity.known() {
		return ""
	}
	return c.identity.prefix + service
}

// MayPublish says whether a user of the broker may publish event, as far as that is checked. One who is not known may.
func (c *Connection) MayPublish(user string, event contract.Event) bool {
	return !c.identity.known() || user == "" || len(event.PublishedBy) == 0 || slices.Contains(event.PublishedBy, c.identity.service(user))
}

// admit checks that d, which came from queue, was published by one who may publish it, and takes out of its headers what
// that one may not say. After an error d is a dead letter, and the alarm was raised.
func (c *Connection) admit(d *amqp.Delivery, queue string) error {
	if !c.identity.known() {
		d.UserId = ""
		delete(d.Headers, HeaderUser)
		return nil
	}
	repeated := c.mayRepeat(d, queue)
	if !repeated {
		strike(d, queue)
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
		return notTheirs{d.UserId, "to the queue " + queue}
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
		return notTheirs{user, string(event.Name)}
	}
	return nil
}

// notTheirs is the error about a message whose publisher may not publish it.
type notTheirs struct{ user, what string }

func (e notTheirs) Error() string {
	return fmt.Sprintf("the broker's user %q may not publish %s", e.user, e.what)
}

// mayRepeat says whether d was published by a service that may publish the messages of others again: the one that keeps
// dead letters, and the service whose queue they were in.
func (c *Connection) mayRepeat(d *amqp.Delivery, queue string) bool {
	owner := queue // a work queue is named as its service
	if queue == DeadLetterQueue {
		owner = sourceQueue(d)
	}
	service := c.identity.service(d.UserId)
	return service != "" && (service == owner || service == c.topology.DeadLetterService)
}

// strike takes out of the headers what only those may say who publish the messages of others again. Without it, whoever
// may publish one event could publish any: the headers tell where it was published first.
func strike(d *amqp.Delivery, queue string) {
	delete(d.Headers, HeaderUser)
	if d.UserId == "" {
		return // it may be of the release before, whose retries name the place and no user
	}
	delete(d.Headers, HeaderExchange)
	delete(d.Headers, HeaderRoutingKey)
	delete(d.Headers, headerSourceQueue)
	if queue != DeadLetterQueue { // else it is the broker's word
		delete(d.Headers, "x-death")
	}
}

// publisherOf is the user who published d first, "" if that is not known. d was admitted.
func publisherOf(d *amqp.Delivery) string {
	if user, repeated := d.Headers[HeaderUser]; repeated {
		name, _ := user.(string)
		return name
	}
	return d.UserId
}

// sentBy says whether a request or a reply comes from one of the services.
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

// admitCall checks that the request d comes from a service that may call the method.
func (c *Connection) admitCall(d *amqp.Delivery, route contract.Method) error {
	if c.sentBy(d, route.Queue, route.CalledBy...) {
		return nil
	}
	return apierror.New(codes.PermissionDenied, "CALLER_NOT_ALLOWED", "the service that calls may not make this call")
}

// wrongUser raises the alarm about a message from a user who may not send it.
func (c *Connection) wrongUser(d *amqp.Delivery, queue string) {
	c.log.Error("a message comes from a user of the broker who may not send it", "queue", queue, "user", d.UserId,
		"published_by", publisherOf(d), "app_id", d.AppId, "routing_key", d.RoutingKey, "type", d.Type, "message_id", d.MessageId)
	user := c.identity.service(d.UserId)
	if !slices.Contains(services(), user) {
		user = otherUser // the log has the name
	}
	c.metrics.countWrongUser(1, queue, user)
}

// missingUser counts a message that does not say who has sent it.
func (c *Connection) missingUser(queue string) {
	c.warnMissing.Do(func() {
		c.log.Warn("messages without user_id are accepted: the next release makes dead letters of them", "queue", queue)
	})
	c.metrics.missingUser.Add(context.Background(), 1, metric.WithAttributes(label("queue", queue)))
}
