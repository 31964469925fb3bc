package service

import (
	"shop.example/platform/messaging"
	"shop.example/platform/telemetry"
)

// Broker adds the service's two connections to the broker, which is at url, and the publisher on the first of them. On
// the second one the service consumes: a broker that holds publishers back does not hold back acknowledgements. name is
// the service's, and is told to the broker and in each message.
func (s *Service) Broker(url, name string, t *telemetry.Telemetry) (*messaging.Publisher, *messaging.Connection, error) {
	options := messaging.Options{Service: name, Role: "publish", Logger: t.Logger, Meter: t.Meter, Tracer: t.Tracer}
	publish, err := messaging.Dial(url, options)
	if err != nil {
		return nil, nil, err
	}
	options.Role = "consume"
	consume, err := messaging.Dial(url, options)
	if err != nil {
		return nil, nil, err
	}
	publisher := messaging.NewPublisher(publish)
	s.Go("broker, publishing", publish.Run)
	s.Go("broker, consuming", consume.Run)
	s.Go("publisher", publisher.Run)
	s.Check("broker", publish.Ready)
	return publisher, consume, nil
}
