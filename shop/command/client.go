package command

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"shop.example/platform/apierror"
	"shop.example/shop/cli"
	"shop.example/shop/workspace"
)

const (
	// callTimeout bounds one call to the gateway.
	callTimeout = 15 * time.Second
	// maxPause is the longest pause between two attempts to reconnect to a shop.
	maxPause = 2 * time.Second
	// maxReply is the maximum size of a response, in bytes: a dead letter contains its body, for which RabbitMQ allows 16
	// MiB.
	maxReply = 17 << 20
	bearer   = "Bearer "
)

// gateway is the address of a running shop and the token to send to it.
type gateway struct {
	addr  string
	token string
	// names are the command line's names of fields in requests.
	names map[string]string
}

// flags gives a command and its subcommands the flags that select the shop.
func (g *gateway) flags(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&g.addr, "server", cmp.Or(os.Getenv("SHOP_SERVER"), "localhost:3000"), "the shop to talk to, host:port or https://host; SHOP_SERVER sets the default")
	cmd.PersistentFlags().StringVar(&g.token, "token", "", "operator token (default SHOP_OPERATOR_TOKEN, else that of make up on this machine)")
}

// with calls f with a connection to the shop.
func (g *gateway) with(f func(*grpc.ClientConn) error) error {
	conn, err := g.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(conn)
}

// dial returns a connection. Unary calls have a time limit, within which they wait if the shop asks for that, and fail with an error of
// one line for people; errors of streams need describeError. It connects with the first call.
func (g *gateway) dial() (*grpc.ClientConn, error) {
	target, secure, err := g.locate()
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if secure {
		transport = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(operator(g.token)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		// A line that has gone dead is noticed, and a shop that is back is soon found.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxPause},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			if _, set := ctx.Deadline(); !set {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, callTimeout)
				defer cancel()
			}
			return g.describeError(retryLimited(ctx, func() error { return invoke(ctx, method, req, reply, conn, o...) }))
		}))
}

// retryLimited makes a call, and repeats it if the shop refuses it because it gets too many: after the pause that the shop asks
// for, as long as that ends before ctx does. A command that makes a call for each of many things meets the limit of calls a
// second.
func retryLimited(ctx context.Context, call func() error) error {
	for {
		err := call()
		if status.Code(err) != codes.ResourceExhausted {
			return err
		}
		pause := retryDelay(err)
		if deadline, set := ctx.Deadline(); pause <= 0 || set && time.Until(deadline) < pause {
			return err
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(pause):
		}
	}
}

// retryDelay returns how long the shop asks to wait before the call that failed with err is made again; 0 if it does not.
func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			return retry.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// locate finds out where the shop is, whether it speaks TLS, and the token that it gets.
func (g *gateway) locate() (target string, secure bool, err error) {
	target, secure = strings.CutPrefix(g.addr, "https://")
	target = strings.TrimSuffix(strings.TrimPrefix(target, "http://"), "/")
	if _, _, err := net.SplitHostPort(target); err != nil && secure {
		target = net.JoinHostPort(target, "443")
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return "", false, cli.WrongUsage("%q is no address of a shop: give --server host:port, localhost:3000 for example", cli.Printable(g.addr))
	}
	g.token, err = operatorToken(g.token, host)
	return target, secure, err
}

// operatorToken finds the token: the one that was given, else that of the environment, else the one that make up keeps,
// which is shown to nobody but a shop on this machine. "" if there is none.
func operatorToken(given, host string) (string, error) {
	if token := strings.TrimSpace(cmp.Or(given, os.Getenv("SHOP_OPERATOR_TOKEN"))); token != "" {
		return token, nil
	}
	if ip := net.ParseIP(host); host != "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", nil
	}
	here, err := workspace.Up()
	if err != nil {
		return "", err
	}
	return here.OperatorToken()
}

// giveToken says where the token comes from. The file is not found from outside the project's folder.
const giveToken = "give the operator token with --token or SHOP_OPERATOR_TOKEN (make up prints it and keeps it in .shop/up/operator-token in the project's folder, where shop finds it)"

// operator is an operator token as credentials of a call; "" sends none.
type operator string

func (o operator) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if o == "" {
		return nil, nil
	}
	return map[string]string{"authorization": bearer + string(o)}, nil
}

// RequireTransportSecurity returns false, because a shop on this machine has no TLS.
func (operator) RequireTransportSecurity() bool { return false }

// callError is a failed call in words for people. errors.As finds the gRPC status.
type callError struct {
	message string
	cause   error
}

func (e *callError) Error() string { return e.message }
func (e *callError) Unwrap() error { return e.cause }

// describeError turns the error of a call into one line that says what is wrong and what to do. For nil it returns nil.
func (g *gateway) describeError(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	message := cli.Printable(s.Message())
	switch reason := apierror.ReasonOf(s.Err()); {
	case s.Code() == codes.InvalidArgument:
		message = g.violations(s, message)
	case reason == "OPERATOR_TOKEN_REQUIRED":
		message = "this is for operators: " + giveToken
	case reason == "OPERATOR_TOKEN_INVALID":
		message = fmt.Sprintf("the shop at %s does not know this operator token: make up prints the right one; check --token and SHOP_OPERATOR_TOKEN, and if neither is set .shop/up/operator-token in the project's folder", g.addr)
	case reason == "" && s.Code() == codes.Unavailable && strings.Contains(s.Message(), "first record does not look like a TLS handshake"):
		message = fmt.Sprintf("the shop at %s does not speak TLS: write %s", g.addr, strings.Replace(g.addr, "https://", "http://", 1))
	case reason == "" && s.Code() == codes.Unavailable && strings.Contains(s.Message(), "server preface"):
		message = fmt.Sprintf("what answers at %s is no shop, or speaks TLS: then write https://%s", g.addr, strings.TrimPrefix(g.addr, "http://"))
	case reason == "" && s.Code() == codes.Unavailable:
		message = fmt.Sprintf("no shop answers at %s: start one with make up, or name it with --server", g.addr)
	case reason == "" && s.Code() == codes.DeadlineExceeded:
		message = fmt.Sprintf("the shop at %s has not answered in time; try again", g.addr)
	case reason == "" && s.Code() == codes.Canceled:
		return context.Canceled
	}
	return &callError{message, err}
}

// violations describes the wrong fields by their names on the command line; it returns otherwise if the shop names no
// field.
func (g *gateway) violations(s *status.Status, otherwise string) string {
	var all []string
	for _, detail := range s.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				all = append(all, g.called(v.GetField())+": "+cli.Printable(v.GetDescription()))
			}
		}
	}
	if len(all) == 0 {
		return otherwise
	}
	return strings.Join(all, "; ")
}

// called returns the name of a field on the command line: its own, else that of the field that contains it, else the
// field's path.
func (g *gateway) called(field string) string {
	for path := indexes.ReplaceAllString(field, ""); path != ""; path = path[:max(strings.LastIndexByte(path, '.'), 0)] {
		if name, ok := g.names[path]; ok {
			return name
		}
	}
	return cli.Printable(field)
}

var indexes = regexp.MustCompile(`\[[^]]*\]`)

// messageJSON returns m as in a REST response, on one line.
func messageJSON(m proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("writing JSON: %w", err)
	}
	var line bytes.Buffer // protojson's blanks are not the same in every build
	if err := json.Compact(&line, text); err != nil {
		return nil, fmt.Errorf("writing JSON: %w", err)
	}
	return line.Bytes(), nil
}

// printMessage writes m as in a REST response, indented.
func printMessage(out io.Writer, m proto.Message) error {
	line, err := messageJSON(m)
	if err != nil {
		return err
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, line, "", "  "); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	fmt.Fprintln(out, pretty.String())
	return nil
}

// printLine writes m as in a REST response, on one line.
func printLine(out io.Writer, m proto.Message) error {
	line, err := messageJSON(m)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, string(line))
	return nil
}

// pageSize is how much of a list is read at once.
const pageSize = 200

// pages reads a list page by page: up to limit entries, or all if limit is 0. next is the token of the page behind them, "" if
// there is none.
func pages[T any](limit int, read func(size int32, token string) (page []T, next string, err error)) (all []T, next string, err error) {
	for token := ""; ; {
		size := pageSize
		if limit > 0 {
			size = min(size, limit-len(all))
		}
		page, next, err := read(int32(size), token) //nolint:gosec // at most pageSize
		if err != nil {
			return nil, "", err
		}
		all = append(all, page...)
		if next == "" || limit > 0 && len(all) == limit {
			return all, next, nil
		}
		token = next
	}
}

// printList writes a list as the JSON of its reply or as a table. Standard error gets what programs must not read as entries: none, if
// the table is empty, and, if limit has cut the list off, that it has.
func printList(cmd *cobra.Command, asJSON bool, reply interface {
	proto.Message
	GetNextPageToken() string
}, t *table, none string, limit int) error {
	if asJSON {
		if err := printMessage(cmd.OutOrStdout(), reply); err != nil {
			return err
		}
	} else if screenOf(cmd.OutOrStdout()).print(t); len(t.rows) == 0 && none != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), none)
	}
	if reply.GetNextPageToken() != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "There are more than %d: --limit 0 lists all.\n", limit)
	}
	return nil
}
