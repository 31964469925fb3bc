package service

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"shop.example/platform/mtls"
	"shop.example/platform/telemetry"
)

const (
	// probeInterval is how often checks are made, and samples taken, for the metrics.
	probeInterval = 5 * time.Second
	// probeStale is how old a result may be that still counts: a check that hangs has failed.
	probeStale = 2 * probeInterval
	// probeGrace is how long a stop waits for a probe that hangs. A database statement ends within 15 s by itself.
	probeGrace = time.Second
)

// probe repeats a check in the background and keeps its result for metrics. A scrape must not wait for a check: if the
// database hung, all metrics of the service would be missing when they are needed most.
type probe struct {
	name string
	ask  func(context.Context) error
	ok   atomic.Bool
	at   atomic.Pointer[time.Time] // when it has last succeeded; first when it began
}

func newProbe(name string, ask func(context.Context) error) *probe {
	p := &probe{name: name, ask: ask}
	now := time.Now()
	p.at.Store(&now)
	return p
}

// run repeats the check until ctx ends. It returns nil, even if a check still hangs.
func (p *probe) run(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(probeInterval)
		defer tick.Stop()
		for ctx.Err() == nil {
			p.once(ctx)
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
	<-ctx.Done()
	select {
	case <-ended:
	case <-time.After(probeGrace):
	}
	return nil
}

func (p *probe) once(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := p.ask(ctx)
	if err == nil {
		now := time.Now()
		p.at.Store(&now)
	}
	p.ok.Store(err == nil)
}

func (p *probe) age() time.Duration { return time.Since(*p.at.Load()) }

func (p *probe) ready() bool { return p.ok.Load() && p.age() < probeStale }

// Sample calls take every 5 s, to read values that metrics show and that have to be fetched, from the database for example.
// take stores them, and the metric's callback only reads what is stored. Another metric shows how old they are.
func (s *Service) Sample(name string, take func(context.Context) error) {
	p := newProbe(name, take)
	s.samples = append(s.samples, p)
	s.Go("sample of "+name, p.run)
}

// observe registers the metrics of the service's life cycle.
func (s *Service) observe(t *telemetry.Telemetry) error {
	meter := t.Meter.Meter("shop.example/platform/service")
	ready, err := meter.Int64ObservableGauge("service.ready", metric.WithDescription("1 if a check of readiness succeeds, 0 if it fails or hangs."))
	if err != nil {
		return fmt.Errorf("registering the metrics of readiness: %w", err)
	}
	age, err := meter.Float64ObservableGauge("service.sample.age", metric.WithUnit("s"),
		metric.WithDescription("Time since what other metrics show was last read successfully."))
	if err != nil {
		return fmt.Errorf("registering the metrics of samples: %w", err)
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(ready, one(s.serving() == nil), metric.WithAttributes(attribute.String("check", "service")))
		if s.running.Load() { // then no check is added any more
			for _, p := range s.probes {
				o.ObserveInt64(ready, one(p.ready()), metric.WithAttributes(attribute.String("check", p.name)))
			}
			for _, p := range s.samples {
				o.ObserveFloat64(age, p.age().Seconds(), metric.WithAttributes(attribute.String("sample", p.name)))
			}
		}
		return nil
	}, ready, age)
	if err != nil {
		return fmt.Errorf("registering the metrics of readiness: %w", err)
	}
	return nil
}

// ObserveCertificate registers a metric of when the service's certificate, and the authority that others' are signed by, expire:
// no service can call another one after that. New does it for Config.TLS; a service that only calls does it itself.
func (s *Service) ObserveCertificate(tls mtls.Config, t *telemetry.Telemetry) error {
	if !tls.Enabled() {
		return nil
	}
	expiry, err := tls.Expiry()
	if err != nil {
		return err
	}
	_, err = t.Meter.Meter("shop.example/platform/service").Float64ObservableGauge("service.certificate.expiry.timestamp", metric.WithUnit("s"),
		metric.WithDescription("When the certificate for gRPC between services expires (own), or the last of the authorities that are accepted (ca)."),
		metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
			own, ca := expiry()
			o.Observe(float64(own.Unix()), metric.WithAttributes(attribute.String("certificate", "own")))
			o.Observe(float64(ca.Unix()), metric.WithAttributes(attribute.String("certificate", "ca")))
			return nil
		}))
	if err != nil {
		return fmt.Errorf("registering the metric of certificates: %w", err)
	}
	return nil
}

func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}
