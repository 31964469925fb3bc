package command

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"shop.example/shop/cli"
)

// A receiver behind a redirect got its events as GET requests without a body while it was tried, and none from the shop.
func TestListen_FollowsNoRedirectAsTheShopDoesNot(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1); r.URL.Path == "/" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}
	}))
	t.Cleanup(receiver.Close)
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	out := &strings.Builder{}
	l, err := newListener(secret, receiver.URL+"/", out)
	if err != nil {
		t.Fatal(err)
	}
	const body = `{"type":"shop.order.placed","data":{}}`
	now := time.Now()
	signature, err := l.verify.Sign("msg", now, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
	request.Header.Set(standardwebhooks.HeaderWebhookID, "msg")
	request.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	request.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	answer := httptest.NewRecorder()
	l.ServeHTTP(answer, request)
	if answer.Code != http.StatusFound || requests.Load() != 1 || !strings.Contains(out.String(), "forwarded: 302") {
		t.Errorf("answered %d after %d requests: %s", answer.Code, requests.Load(), out)
	}
}

// shop webhooks pause named a field of the request, webhook.id, which its command line does not have.
func TestWebhooks_AWrongIDIsNamedAsOnTheCommandLine(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"pause abc", "enable abc", "rotate abc", "test abc", "deliveries abc", "redeliver abc 12", "delete abc"} {
		said := (&fakeShop{}).run(t.Context(), t, append([]string{"webhooks"}, strings.Fields(command)...)...)
		if said.err == nil || !strings.HasPrefix(said.err.Error(), "ID: ") {
			t.Errorf("webhooks %s: %v", command, said)
		}
	}
}

// Forwarding to localhost:8080/events made a webhook, and each event was answered with 502.
func TestListen_ForwardsToAURLOrDoesNotBegin(t *testing.T) {
	t.Parallel()
	for _, forward := range []string{"localhost:8080/events", "//localhost:8080", "http://", "http://:8080", "ftp://localhost", "8080"} {
		root := Root()
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		root.SetArgs([]string{"webhooks", "listen", "--server", "127.0.0.1:1", "--forward", forward})
		err := root.ExecuteContext(t.Context())
		want := "--forward " + forward + ": give a URL, http://localhost:8080/events for example"
		if err == nil || err.Error() != want || cli.ExitStatus(err) != 2 {
			t.Errorf("exit code %d, %v, want %s", cli.ExitStatus(err), err, want)
		}
	}
}
