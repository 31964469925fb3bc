package webhook

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	// maxAnswer is how much of a response's body is read and kept, and maxHeader the maximum size of its header, in bytes.
	maxAnswer = 4 << 10
	maxHeader = 16 << 10
	// maxRetryAfter bounds the pause that a receiver can ask for.
	maxRetryAfter = 24 * time.Hour
	secretPrefix  = "whsec_"
	secretSize    = 32 // bytes
	// secretOverlap is how long the previous secret stays valid after a rotation.
	secretOverlap = 24 * time.Hour
	// maxOlder is how many secrets before the previous one stay valid: each adds a signature to each request.
	maxOlder = 8
	// source is the attribute source of CloudEvents.
	source = "/shop"
)

func newSecret() []byte {
	secret := make([]byte, secretSize)
	_, _ = rand.Read(secret) // never fails
	return secret
}

// secretText returns a secret in the form that receivers are given.
func secretText(secret []byte) string {
	return secretPrefix + base64.StdEncoding.EncodeToString(secret)
}

// event is an event as it is sent.
type event struct {
	ID          int64     `db:"event_id"`
	MessageID   string    `db:"message_id"`
	RoutingKey  string    `db:"routing_key"`
	OrderID     string    `db:"order_id"` // "" if it belongs to none
	Payload     string    `db:"payload"`  // JSON
	PublishedAt time.Time `db:"published_at"`
	CreatedAt   time.Time `db:"created_at"` // when the service stored it; zero if nobody asks
}

// body returns the event in the given format, and its media type.
func (e event) body(format string) (body []byte, contentType string, err error) {
	if format == formatCloudEvents {
		body, err = json.Marshal(struct {
			SpecVersion string          `json:"specversion"`
			ID          string          `json:"id"`
			Source      string          `json:"source"`
			Type        string          `json:"type"`
			Subject     string          `json:"subject,omitempty"`
			Time        string          `json:"time"`
			ContentType string          `json:"datacontenttype"`
			Data        json.RawMessage `json:"data"`
		}{"1.0", e.MessageID, source, e.RoutingKey, e.OrderID, e.time(), "application/json", json.RawMessage(e.Payload)})
		return body, "application/cloudevents+json; charset=utf-8", err
	}
	body, err = json.Marshal(struct {
		Type      string          `json:"type"`
		Timestamp string          `json:"timestamp"`
		Data      json.RawMessage `json:"data"`
	}{e.RoutingKey, e.time(), json.RawMessage(e.Payload)})
	return body, "application/json", err
}

func (e event) time() string { return e.PublishedAt.UTC().Format(time.RFC3339Nano) }

// signature returns the header webhook-signature: a signature for each valid secret, separated by spaces.
func (w *webhook) signature(id string, at time.Time, body []byte) (string, error) {
	secrets := [][]byte{w.Secret}
	if w.PreviousSecret != nil && at.Before(w.PreviousUntil.Time) {
		secrets = append(secrets, w.PreviousSecret)
	}
	secrets = append(secrets, w.OlderSecrets...)
	var signatures []string
	for _, secret := range secrets {
		signer, err := standardwebhooks.NewWebhookRaw(secret)
		if err != nil {
			return "", err
		}
		signature, err := signer.Sign(id, at, body)
		if err != nil {
			return "", err
		}
		signatures = append(signatures, signature)
	}
	return strings.Join(signatures, " "), nil
}

// answer is the outcome of an attempt.
type answer struct {
	status     int    // 0 if there was none
	body       string // its beginning
	problem    string // "" if the event was delivered
	retryAfter time.Duration
	took       time.Duration
	// unreachable says that the receiver responds to nothing at present, so it makes no sense to send another event.
	unreachable bool
}

func (a answer) delivered() bool { return a.problem == "" }

// gone reports whether the receiver wants no more events.
func (a answer) gone() bool { return a.status == http.StatusGone }

// sender sends the requests. It is safe for concurrent use.
type sender struct {
	network network
	timeout time.Duration
	clients map[string]*http.Client // by the scheme of the URL
}

func newSender(d Delivery) (*sender, error) {
	n, err := newNetwork(d.AllowedNetworks)
	if err != nil {
		return nil, err
	}
	s := &sender{network: n, timeout: d.Timeout, clients: map[string]*http.Client{}}
	for scheme, encrypted := range map[string]bool{"http": false, "https": true} {
		s.clients[scheme] = &http.Client{
			Transport: n.transport(encrypted, d.Concurrency),
			// A redirect could lead anywhere, and the body would follow.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return s, nil
}

// checkURL returns what is wrong with the URL of a webhook, "" if nothing is. The address it resolves to is checked with
// each request.
func (s *sender) checkURL(text string) string {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return "must be a URL such as https://example.com/shop-events"
	case u.User != nil:
		return "must have no user and password: verify the signature instead"
	case u.Fragment != "":
		return "must have no fragment"
	case u.Scheme == "https" || u.Scheme == "http" && len(s.network.allowed) > 0:
		return ""
	}
	return "must begin with https://"
}

// send makes one attempt, within the timeout and before ctx ends.
func (s *sender) send(ctx context.Context, w *webhook, e event) (a answer) {
	begin := time.Now()
	defer func() { a.took = time.Since(begin) }()
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("no answer within %s", s.timeout))
	defer cancel()
	req, err := newRequest(ctx, w, e, begin)
	if err != nil {
		return answer{problem: "the request cannot be made: " + problemOf(err)}
	}
	client := s.clients[req.URL.Scheme]
	if client == nil {
		return answer{problem: "the URL must begin with https://"}
	}
	reply, err := client.Do(req) //nolint:gosec // the address is checked when it is dialled
	if err != nil {
		return answer{problem: problemOf(causeOf(ctx, err)), unreachable: true}
	}
	defer func() { _ = reply.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(reply.Body, maxAnswer))
	a = answer{status: reply.StatusCode, body: text(body), retryAfter: retryAfter(reply.Header.Get("Retry-After"), begin)}
	switch {
	case reply.StatusCode >= 200 && reply.StatusCode < 300:
		// The status is the answer; whatever came of the body after it.
	case err != nil:
		a.problem, a.unreachable = problemOf(causeOf(ctx, err)), true
	case reply.StatusCode >= 300 && reply.StatusCode < 400:
		a.problem = fmt.Sprintf("the answer is a redirect (%d), which is not followed: change the URL", reply.StatusCode)
	default:
		a.problem = "the answer is " + strconv.Itoa(reply.StatusCode)
		switch reply.StatusCode {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			a.unreachable = true
		}
	}
	return a
}

func newRequest(ctx context.Context, w *webhook, e event, at time.Time) (*http.Request, error) {
	body, contentType, err := e.body(w.Format)
	if err != nil {
		return nil, err
	}
	signature, err := w.signature(e.MessageID, at, body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", "shop-webhooks/1")
	req.Header.Set(standardwebhooks.HeaderWebhookID, e.MessageID)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	// It may be sent twice: a receiver that has just closed an idle connection gets it over a new one, at once. The header is
	// for net/http alone, which sends none without a value.
	req.Header["Idempotency-Key"] = []string{}
	return req, nil
}

// causeOf returns why ctx has ended, if that is the cause of err.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// problemOf returns the text of an error without the URL, which may contain a secret, and without addresses.
func problemOf(err error) string {
	if errors.Is(err, errPrivateAddress) {
		return errPrivateAddress.Error()
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "the name in the URL cannot be resolved"
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if e, ok := errors.AsType[*net.OpError](err); ok { // it names both ends of the connection
		err = e.Err
	}
	return text([]byte(err.Error()))
}

// text returns b as a text column accepts it.
func text(b []byte) string {
	s := string(b[:min(len(b), maxAnswer)])
	if utf8.ValidString(s) && !strings.Contains(s, "\x00") {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// retryAfter parses the header Retry-After: seconds, or a date.
func retryAfter(header string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseInt(header, 10, 32); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}
