package main

// These are the parts of AsyncAPI 3.0 that the document uses, in the order in which it has them.

type document struct {
	AsyncAPI           string `yaml:"asyncapi"`
	Info               info
	DefaultContentType string `yaml:"defaultContentType"`
	Servers            map[string]server
	Channels           map[string]channel
	Operations         map[string]operation
	Components         components
}

type info struct {
	Title       string
	Version     string
	Description string
}

type server struct {
	Host        string
	Protocol    string
	Description string
}

type channel struct {
	Address     *string // nil if it is known only when the program runs
	Title       string
	Description string             `yaml:",omitempty"`
	Messages    map[string]ref     `yaml:",omitempty"`
	Bindings    map[string]binding `yaml:",omitempty"`
}

type binding struct {
	Is             string    `yaml:",omitempty"`
	Exchange       *exchange `yaml:",omitempty"`
	DeliveryMode   int       `yaml:"deliveryMode,omitempty"`
	Mandatory      bool      `yaml:",omitempty"`
	Ack            bool      `yaml:",omitempty"`
	MessageType    string    `yaml:"messageType,omitempty"`
	BindingVersion string    `yaml:"bindingVersion"`
}

type exchange struct {
	Name       string
	Type       string
	Durable    bool
	AutoDelete bool `yaml:"autoDelete"`
}

type operation struct {
	Action   string
	Channel  ref
	Title    string
	Summary  string
	Tags     []tag
	Messages []ref
	Bindings map[string]binding
	Reply    *reply `yaml:",omitempty"`
}

type tag struct{ Name string }

type reply struct {
	Address  address
	Channel  ref
	Messages []ref
}

type address struct {
	Location    string
	Description string
}

type components struct {
	Messages      map[string]message
	MessageTraits map[string]trait `yaml:"messageTraits"`
	Schemas       schemas
}

type message struct {
	Name        string
	Title       string
	Summary     string
	ContentType string `yaml:"contentType,omitempty"`
	Traits      []ref
	Payload     ref
	Bindings    map[string]binding
}

type trait struct {
	ContentType   string `yaml:"contentType,omitempty"`
	Headers       *schema
	CorrelationID *correlation `yaml:"correlationId,omitempty"`
}

type correlation struct {
	Location    string
	Description string
}

type ref struct {
	Ref string `yaml:"$ref"`
}
