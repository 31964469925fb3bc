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
	// MaxEvent is the maximum size of an encoded event, in bytes. The largest event that the contracts allow, 1,000 new
	// products with names of 200 four-byte characters each, has 840 kB. NewOutgoing refuses larger ones; if somebody else
	// publishes one it becomes a dead letter without being decoded, because decoding can take a hundred times its size.
	MaxEvent = 1 << 20
	// MaxCall is the maximum size of the request and of the reply of a call, each, in bytes.
	MaxCall = 4 << 20
	// maxBatch bounds the messages that a handler gets at once, in bytes (of their bodies, or as HandleWeighed weighs
	// them). A larger message comes alone. Twice as much takes twice the memory and is no faster.
	maxBatch = 2 << 20
	// maxHeld bounds what a consumer has received and not acknowledged, in bytes, estimated from the largest message of
	// late.
	maxHeld = 16 << 20
	// slotBytes is the size up to which a message counts as one in a publisher's window.
	slotBytes = 16 << 10
)

// refusedSize returns the maximum size that the broker accepts, if cause is its refusal of a larger message: "message size
// 20971520 is larger than configured max size 16777216".
func refusedSize(cause *amqp.Error) (limit int64, ok bool) {
	if cause == nil || cause.Code != amqp.PreconditionFailed || !strings.Contains(cause.Reason, "is larger than") {
		return 0, false
	}
	fields := strings.Fields(cause.Reason)
	limit, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
	return limit, err == nil
}
