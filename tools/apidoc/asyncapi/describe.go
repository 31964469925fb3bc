package main

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"shop.example/tools/apidoc/contract"
)

const (
	contentType    = "application/protobuf"
	bindingVersion = "0.3.0"
	transient      = 1
	persistent     = 2
	// others are those who publish what no service does.
	others = "operator"
)

const about = `What travels over the broker. A body is a protobuf message, whose full name is the property type; the schemas
here are those of its JSON form, and a later release may have more values of x-extensible-enum than these. An event is
published as mandatory and persistent, waits for the broker's confirm, and can come twice: then the property message_id is
the same, and what is done about it is done once.
The property correlation_id is the order's id, app_id the service that said it, timestamp when it did, user_id the
user of the broker who published it, if each service has its own: what comes from another user than the event's
publishers is not handled.
What names a queue in its property reply_to is answered there, if the description says so, with its own correlation_id:
docs/amqp.md says how to call, and what a failure looks like.
Who wants to listen binds a queue of their own to the exchange; every key begins with shop.
`

func describe(contracts *contract.Contracts) (*document, error) {
	d := &document{
		AsyncAPI:           "3.0.0",
		Info:               info{Title: "Shop events", Version: "v1", Description: about},
		DefaultContentType: contentType,
		Servers:            map[string]server{"broker": {Host: "localhost:5672", Protocol: "amqp", Description: "RabbitMQ; AMQP_URL says where."}},
		Channels:           map[string]channel{},
		Operations:         map[string]operation{},
		Components: components{
			Messages: map[string]message{"Failure": failure()},
			Schemas:  schemas{"Failure": failureBody()}, MessageTraits: map[string]trait{"every": everyMessage(), "call": call(), "answer": answered()},
		},
	}
	for _, md := range contracts.Messages() {
		option, travels := contracts.Option(md, "event")
		if !travels {
			continue
		}
		if err := d.addEvent(contracts, md, option.Message()); err != nil {
			return nil, fmt.Errorf("%s: %w", md.FullName(), err)
		}
	}
	for _, md := range contracts.Methods() {
		if option, travels := contracts.Option(md, "rpc"); travels {
			d.addMethod(md, option.Message())
		}
	}
	return d, nil
}

// everyMessage is what all messages carry beside their bodies.
func everyMessage() trait {
	return trait{
		ContentType: contentType,
		Headers: &schema{Type: "object", Properties: properties{
			{"traceparent", &schema{Type: "string", Description: "The trace it belongs to, as W3C Trace Context says."}},
			{"shop-user", &schema{Type: "string", Description: "Of what is tried or sent again: the user of the broker who published it first."}},
			{"shop-attempt", &schema{Type: "integer", Description: "How often it was tried before; absent the first time."}},
		}},
		CorrelationID: &correlation{
			Location:    "$message.header#/correlation_id",
			Description: "A property of AMQP: the order's id, where the message belongs to an order; an answer has its request's.",
		},
	}
}

// call is what a request of a call carries more.
func call() trait {
	return trait{Headers: &schema{Type: "object", Properties: properties{
		{"grpc-method", &schema{Type: "string", Description: "The method's full name, \"/shop.inventory.v1.StockService/CheckStock\" for example. For people: the routing key decides."}},
		{"grpc-timeout-ms", &schema{Type: "integer", Description: "How long the caller waits, in milliseconds. The property expiration says the same to the broker, which discards the request after that."}},
	}}}
}

// answered is what an answer carries more.
func answered() trait {
	return trait{Headers: &schema{Type: "object", Properties: properties{
		{"grpc-status", &schema{Type: "integer", Description: "0, or the code of google.rpc.Code; then the answer is a Failure."}},
		{"grpc-status-details-bin", &schema{Type: "string", Description: "Of a failure: the google.rpc.Status as protobuf, in bytes."}},
	}}}
}

// failure is the answer to what was refused. It is JSON, so that nobody takes it for an empty success.
func failure() message {
	return message{
		Name: "google.rpc.Status", Title: "Failure", ContentType: "application/json",
		Summary:  "The answer to what was not done: why. Its property type is google.rpc.Status, its content_type application/json.",
		Traits:   []ref{{"#/components/messageTraits/answer"}},
		Payload:  ref{"#/components/schemas/Failure"},
		Bindings: amqp(binding{MessageType: "google.rpc.Status"}),
	}
}

func failureBody() *schema {
	return &schema{Type: "object", Description: "A google.rpc.Status.", Required: []string{"code", "message"}, Properties: properties{
		{"code", &schema{Type: "integer", Description: "As google.rpc.Code has them: 3 is INVALID_ARGUMENT."}},
		{"message", &schema{Type: "string", Description: "For a person."}},
		{"details", &schema{Type: "array", Description: "A google.rpc.ErrorInfo with the reason, and what else there is, each with its @type.", Items: &schema{Type: "object"}}},
	}}
}

func (d *document) addEvent(contracts *contract.Contracts, md protoreflect.MessageDescriptor, option protoreflect.Message) error {
	name := nameOf(md)
	at := d.addChannel(md, text(option, "routing_key"), text(option, "exchange"), contract.Comment(md))
	var answer *reply
	if full := text(option, "answer"); full != "" {
		answered, err := contracts.Message(protoreflect.FullName(full))
		if err != nil {
			return err
		}
		answer = d.addReply(answered)
	}
	publishers := texts(option, "published_by")
	if len(publishers) == 0 {
		publishers = []string{others}
	}
	for _, service := range publishers {
		d.addOperation(service, "send", name, at, answer, persistent)
	}
	for _, service := range texts(option, "handled_by") {
		if service == "logging" { // it keeps what it takes, and answers nobody
			d.addOperation(service, "receive", name, at, nil, 0)
			continue
		}
		d.addOperation(service, "receive", name, at, answer, 0)
	}
	return nil
}

func (d *document) addMethod(md protoreflect.MethodDescriptor, option protoreflect.Message) {
	name := nameOf(md.Input())
	at := d.addChannel(md.Input(), text(option, "routing_key"), text(option, "exchange"), contract.Comment(md))
	d.addTrait(name, "call")
	answer := d.addReply(md.Output())
	for _, service := range texts(option, "called_by") {
		d.addOperation(service, "send", name, at, answer, transient)
	}
	d.addOperation(text(option, "answered_by"), "receive", name, at, answer, 0)
}

// addChannel adds the way of a message through an exchange, whose name ends with its type.
func (d *document) addChannel(md protoreflect.MessageDescriptor, key, through, description string) ref {
	name := nameOf(md)
	_, kind, _ := strings.Cut(through, ".")
	d.Channels[name] = channel{
		Address: &key, Title: name, Description: description, Messages: map[string]ref{name: d.addMessage(md)},
		Bindings: amqp(binding{Is: "routingKey", Exchange: &exchange{Name: through, Type: kind, Durable: true}}),
	}
	return ref{"#/channels/" + name}
}

// addReply adds the way of an answer: to the queue that the request names.
func (d *document) addReply(md protoreflect.MessageDescriptor) *reply {
	name := nameOf(md)
	d.Channels[name] = channel{
		Title: name, Description: "The queue that the request names in its property reply_to.",
		Messages: map[string]ref{name: d.addMessage(md), "Failure": {"#/components/messages/Failure"}},
	}
	d.addTrait(name, "answer")
	at := "#/channels/" + name
	return &reply{
		Address:  address{Location: "$message.header#/reply_to", Description: "A property of AMQP."},
		Channel:  ref{at},
		Messages: []ref{{at + "/messages/" + name}, {at + "/messages/Failure"}},
	}
}

func (d *document) addTrait(name, trait string) {
	m := d.Components.Messages[name]
	m.Traits = append(m.Traits, ref{"#/components/messageTraits/" + trait})
	d.Components.Messages[name] = m
}

func (d *document) addMessage(md protoreflect.MessageDescriptor) ref {
	name := nameOf(md)
	d.Components.Messages[name] = message{
		Name: string(md.FullName()), Title: name, Summary: contract.Comment(md),
		Traits:   []ref{{"#/components/messageTraits/every"}},
		Payload:  d.Components.Schemas.of(md),
		Bindings: amqp(binding{MessageType: string(md.FullName())}),
	}
	return ref{"#/components/messages/" + name}
}

// addOperation says what a service does with a message; deliveryMode is that of one that it sends.
func (d *document) addOperation(service, action, name string, at ref, answer *reply, deliveryMode int) {
	op := operation{
		Action: action, Channel: at, Tags: []tag{{service}}, Messages: []ref{{at.Ref + "/messages/" + name}}, Reply: answer,
	}
	if action == "send" {
		op.Title = service + " sends " + name
		op.Summary = "Published by " + service + "."
		op.Bindings = amqp(binding{DeliveryMode: deliveryMode, Mandatory: true})
	} else {
		op.Title = service + " receives " + name
		op.Summary = "Handled by " + service + ", from a queue that all its replicas share."
		op.Bindings = amqp(binding{Ack: true})
	}
	d.Operations[strings.ReplaceAll(op.Title, " ", "-")] = op
}

func amqp(b binding) map[string]binding {
	b.BindingVersion = bindingVersion
	return map[string]binding{"amqp": b}
}

func text(m protoreflect.Message, field protoreflect.Name) string {
	return m.Get(m.Descriptor().Fields().ByName(field)).String()
}

func texts(m protoreflect.Message, field protoreflect.Name) []string {
	list := m.Get(m.Descriptor().Fields().ByName(field)).List()
	all := make([]string, list.Len())
	for i := range all {
		all[i] = list.Get(i).String()
	}
	return all
}
