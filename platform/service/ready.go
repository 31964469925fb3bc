package service

import (
	"context"
	"errors"
	"fmt"
	"regexp"
)

// Ready makes all checks, concurrently, within 2 s. It returns nil if the service is ready; otherwise the error lists what
// is not, on one line.
func (s *Service) Ready(ctx context.Context) error {
	var failed []error
	for i, err := range s.ready(ctx) {
		if err != nil && i > 0 {
			err = fmt.Errorf("%s: %w", s.checks[i-1].name, err)
		}
		failed = append(failed, err)
	}
	if errors.Join(failed...) == nil {
		return nil
	}
	return notReady(failed)
}

// notReady is the list of failed checks.
type notReady []error

func (e notReady) Error() string {
	var text string
	for _, err := range e {
		switch {
		case err == nil:
		case text == "":
			text = plain(err)
		default:
			text += "; " + plain(err)
		}
	}
	return text
}

func (e notReady) Unwrap() []error { return e }

var grpcPrefix = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// plain returns an error's text without what gRPC puts before the message of a status: who reads it may know nothing of gRPC.
func plain(err error) string { return grpcPrefix.ReplaceAllString(err.Error(), "") }
