package messaging

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Calls over the broker look like gRPC in headers: the method and the time left go with the request, the status with
// the reply, metadata with a prefix.
const (
	headerMethod         = "grpc-method"
	headerTimeout        = "grpc-timeout-ms"
	headerStatus         = "grpc-status"
	headerStatusDetails  = "grpc-status-details-bin" // a google.rpc.Status
	headerMetadataPrefix = "grpc-metadata-"
)

// repliesQueue is the name that metrics and log lines use for a client's reply queue, whose real name is chosen by the
// broker.
const repliesQueue = "replies"

// Reply sends the answer to the request that m describes, or failure if that is not nil. An answer that is too large is
// replaced by ResourceExhausted. It returns an error if nobody waits for the answer any more, for the caller to log. It
// does not answer to queues of the topology, whoever names them: the answers would become dead letters there.
func (p *Publisher) Reply(ctx context.Context, m Meta, answer proto.Message, failure error) error {
	return p.reply(ctx, m.ReplyTo, m.CorrelationID, answer, failure)
}

func (p *Publisher) reply(ctx context.Context, replyTo, call string, answer proto.Message, failure error) error {
	if replyTo == "" {
		return errNoReplyTo
	}
	if slices.Contains(p.queues, replyTo) {
		return fmt.Errorf("the request's reply_to is the queue %q, which takes no answers", replyTo)
	}
	if failure != nil {
		return p.replyFailure(ctx, replyTo, call, failure)
	}
	body, err := proto.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	err = p.publishTransient(ctx, "", replyTo, amqp.Publishing{
		Headers:       amqp.Table{headerStatus: int32(codes.OK)},
		DeliveryMode:  amqp.Transient,
		CorrelationId: call,
		Type:          string(answer.ProtoReflect().Descriptor().FullName()),
		Body:          body,
	}, nil)
	if errors.Is(err, ErrTooLarge) {
		// The broker would close the channel, and with it lose the answers to other calls.
		return errors.Join(err, p.replyFailure(ctx, replyTo, call, status.Errorf(codes.ResourceExhausted, "the answer: %v", err)))
	}
	return err
}

const (
	// maxStatus bounds the details of a failure, in bytes: headers have to fit into one frame, of 128 KiB as a rule.
	maxStatus = 32 << 10
	// failureType is the property type of an answer that is a failure, and failureContentType says how its body is written.
	// JSON is read by a person without our contracts, and by no decoder of protobuf: nobody takes it for an empty success.
	failureType        = "google.rpc.Status"
	failureContentType = "application/json"
)

// failureJSON spells the fields of a failure as REST does.
var failureJSON = protojson.MarshalOptions{UseProtoNames: true}

// replyFailure answers with a status: in the headers for our own clients, and in the body for others.
func (p *Publisher) replyFailure(ctx context.Context, replyTo, call string, failure error) error {
	st := status.Convert(failure)
	details, err := proto.Marshal(st.Proto())
	if err == nil && len(details) > maxStatus {
		details, err = proto.Marshal(status.New(st.Code(), truncate(st.Message())).Proto())
	}
	if err != nil {
		return fmt.Errorf("encoding the status: %w", err)
	}
	body, err := failureJSON.Marshal(st.Proto())
	if err != nil || len(body) > maxStatus { // details of a type that is not known here, or long ones
		if body, err = failureJSON.Marshal(status.New(st.Code(), truncate(st.Message())).Proto()); err != nil {
			return fmt.Errorf("encoding the status: %w", err)
		}
	}
	return p.publishTransient(ctx, "", replyTo, amqp.Publishing{
		Headers:       amqp.Table{headerStatus: int32(st.Code()), headerStatusDetails: details}, //nolint:gosec // codes are below 17
		DeliveryMode:  amqp.Transient,
		CorrelationId: call,
		Type:          failureType,
		ContentType:   failureContentType,
		Body:          body,
	}, nil)
}

// rpcAttributes returns the attributes that OpenTelemetry's conventions give an RPC.
func rpcAttributes(name string) []attribute.KeyValue {
	service, method, isMethod := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if !isMethod {
		return []attribute.KeyValue{rabbitMQ, attribute.String("messaging.rabbitmq.destination.routing_key", name)}
	}
	return []attribute.KeyValue{
		attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", method), rabbitMQ,
	}
}
