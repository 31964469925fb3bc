package service

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"shop.example/platform/contract"
	"shop.example/platform/messaging"
	"shop.example/platform/telemetry"
)

// Broker adds the service's two connections to the broker, which is at url, and the publisher on the first of them. On
// the second one the service consumes, and looks after its queues: a broker that holds publishers back does not hold back
// acknowledgements. name is the service's in the topology, and is told to the broker and in each message. What a frozen replica
// holds goes to others after at most 3 s if that is messages alone, and after 15 s if the service answers calls over the broker.
func (s *Service) Broker(url string, topology messaging.Topology, name string, t *telemetry.Telemetry) (*messaging.Publisher, *messaging.Connection, error) {
	options := messaging.Options{Service: name, Role: "publish", Topology: topology, Logger: t.Logger, Meter: t.Meter, Tracer: t.Tracer}
	publish, err := messaging.Dial(url, options)
	if err != nil {
		return nil, nil, err
	}
	options.Role, options.KeepTopology, options.Heartbeat = "consume", true, consumerHeartbeat(topology, name)
	consume, err := messaging.Dial(url, options)
	if err != nil {
		return nil, nil, err
	}
	if !publish.KnowsUsers() {
		warnSharedUser(t.Logger)
	}
	s.inHand = consume.InHand
	publisher := messaging.NewPublisher(publish)
	s.Go("broker, publishing", publish.Run)
	s.Go("broker, consuming", consume.Run)
	s.Go("publisher", publisher.Run)
	s.Check("broker", publisher.Ready)
	s.Check("topology", consume.Topology)
	return publisher, consume, nil
}

// consumerHeartbeat is that of the connection on which a service consumes. Calls that it answers, and events that it follows,
// would be lost with the connection; messages of its queue are not.
func consumerHeartbeat(topology messaging.Topology, name string) time.Duration {
	s, _ := topology.Service(name)
	answers := slices.ContainsFunc(contract.Methods(), func(m contract.Method) bool { return m.AnsweredBy == name })
	if s.Consumes() && !answers && len(s.Follows) == 0 {
		return messaging.ConsumerHeartbeat
	}
	return messaging.Heartbeat
}

var sharedUserWarned sync.Once

// warnSharedUser logs, once per process, that services share one user of the broker, so that publishers cannot be told
// apart.
func warnSharedUser(log *slog.Logger) {
	sharedUserWarned.Do(func() {
		log.Warn("who publishes a message is not checked: the user in AMQP_URL is not named as the service (see docs/configuration.md)")
	})
}
