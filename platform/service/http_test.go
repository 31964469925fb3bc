package service_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"shop.example/platform/service"
)

func TestServeHTTP_RequestsInFlightEndWell(t *testing.T) {
	t.Parallel()
	called, answer := make(chan struct{}), make(chan struct{})
	var addr string
	s := run(t, service.Config{}, func(s *service.Service) {
		lis, err := s.Listen("HTTP_ADDR", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr = lis.Addr().String()
		s.ServeHTTP("http", lis, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(called)
			<-answer
			_, _ = io.WriteString(w, "done")
		})})
	})
	reply := make(chan string, 1)
	go func() {
		_, body, err := get(context.Background(), "http://"+addr)
		if err != nil {
			body = err.Error()
		}
		reply <- body
	}()
	<-called
	s.stop()
	<-s.Stopping()
	close(answer)
	if got := <-reply; got != "done" {
		t.Errorf("got %q", got)
	}
	if err := s.ended(); err != nil {
		t.Error(err)
	}
}

// Browsers open connections ahead of need; a stop that waited for a request on each would take five seconds.
func TestServeHTTP_ConnectionsThatAskNothingDoNotDelayTheStop(t *testing.T) {
	t.Parallel()
	s := run(t, service.Config{}, nil)
	unused, err := net.Dial("tcp", s.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unused.Close() }()
	s.get(t, "/livez") // accepted after the unused one, so that one is known to the server
	begin := time.Now()
	s.stop()
	if err := s.ended(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the stop took %s", took)
	}
}
