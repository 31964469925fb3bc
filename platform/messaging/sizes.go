package messaging

import (
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// What goes over the broker is bounded in bytes as well as in number (docs/adr/0014): RabbitMQ 4 refuses a message of more
// than 16 MiB by closing the channel, and with it fails whatever else the channel carries, and a service has no more than
// the memory that it was given.
const (
	// MaxEvent is how large an event may be. The largest that the contracts allow, 1,000 new products with names of 200
	// characters of four bytes each, has 840 kB. What is larger is refused by NewOutgoing, and a dead letter unread if it
	// comes from somebody else: reading it can take a hundred times its size.
	MaxEvent = 1 << 20
	// MaxCall is how large the request and the reply of a call may be, each.
	MaxCall = 4 << 20
	// maxBatch bounds the messages that a handler is given at once, or what they cause, see HandleWeighed; a message that
	// is larger comes alone. Twice as much takes twice the memory and is no faster.
	maxBatch = 2 << 20
	// maxHeld bounds what a consumer has been given and has not acknowledged, reckoned from the largest message of late.
	maxHeld = 16 << 20
	// slotBytes is what a publisher counts as one message of its window.
	slotBytes = 16 << 10
)

// refusedSize returns the largest body that the broker takes, if cause is its refusal of a larger one: "message size
// 20971520 is larger than configured max size 16777216".
func refusedSize(cause *amqp.Error) (limit int64, ok bool) {
	if cause == nil || cause.Code != amqp.PreconditionFailed || !strings.Contains(cause.Reason, "is larger than") {
		return 0, false
	}
	fields := strings.Fields(cause.Reason)
	limit, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
	return limit, err == nil
}
