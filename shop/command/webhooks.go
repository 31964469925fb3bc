package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	webhooksv1 "shop.example/gen/shop/webhooks/v1"
	"shop.example/shop/cli"
)

const (
	// maxWebhookBody is the maximum size of an event for listen, in bytes.
	maxWebhookBody = 1 << 20
	// forwardTimeout bounds the response of the program that listen forwards to. It is less than the shop waits for.
	forwardTimeout = 10 * time.Second
)

// webhooks has what the subcommands of shop webhooks share.
type webhooks struct{ gateway gateway }

func webhooksCommand() *cobra.Command {
	w := &webhooks{}
	w.gateway.names = map[string]string{
		"url": "URL", "webhook.url": "URL", "event_types": "--events", "webhook.event_types": "--events", "webhook.description": "--description", "webhook.id": "ID", "webhook_id": "ID",
	}
	cmd := &cobra.Command{
		Use:   "webhooks",
		Short: "Have events sent to a URL, and see what became of them",
		Long: `Webhooks are URLs that the shop sends events to, signed. docs/webhooks.md says what receivers get. listen makes
one for this machine, for as long as it runs: it shows what comes, and can forward it to a program of yours.`,
		Example: "  shop webhooks listen --forward http://localhost:8080/events\n" +
			"  shop webhooks create https://example.com/shop-events --events shop.order.#\n  shop webhooks deliveries ID --state failed",
	}
	w.gateway.flags(cmd)
	cmd.AddCommand(w.listCommand(), w.createCommand(), w.stateCommand("pause", "Keep a webhook's events until it is enabled", "Pauses a webhook: its events wait, for 30 days at most, until it is enabled.", webhooksv1.Webhook_PAUSED),
		w.stateCommand("enable", "Send a webhook its events again", "Enables a webhook that is paused, or that the shop has disabled. What has waited is sent first.", webhooksv1.Webhook_ENABLED), w.rotateCommand(), w.testCommand(), w.deliveriesCommand(),
		w.redeliverCommand(), w.deleteCommand(), w.listenCommand())
	return cmd
}

// with calls f with a client of the shop.
func (w *webhooks) with(f func(webhooksv1.WebhookServiceClient) error) error {
	return w.gateway.with(func(conn *grpc.ClientConn) error { return f(webhooksv1.NewWebhookServiceClient(conn)) })
}

func (w *webhooks) listCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List webhooks, the newest first",
		Long:    "Lists webhooks with their state: PAUSED ones keep their events, DISABLED ones were given up by the shop.",
		Example: "  shop webhooks list", Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				all, _, err := pages(0, func(size int32, token string) ([]*webhooksv1.Webhook, string, error) {
					page, err := c.ListWebhooks(cmd.Context(), &webhooksv1.ListWebhooksRequest{PageSize: size, PageToken: token})
					return page.GetWebhooks(), page.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				if asJSON {
					return printMessage(cmd.OutOrStdout(), &webhooksv1.ListWebhooksResponse{Webhooks: all})
				}
				t := &table{header: []string{"ID", "STATE", "EVENTS", "DESCRIPTION", "URL"}, flexible: 4, minWidth: minReason, wraps: true}
				for _, h := range all {
					t.add(text(h.GetId()), text(h.GetState().String()), text(strings.Join(h.GetEventTypes(), ",")), text(or(h.GetDescription(), "-")), text(h.GetUrl()))
				}
				screenOf(cmd.OutOrStdout()).print(t)
				if len(all) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "No webhooks.")
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the JSON of GET /v1/webhooks")
	return cmd
}

func (w *webhooks) createCommand() *cobra.Command {
	hook := &webhooksv1.Webhook{}
	var cloudEvents bool
	cmd := &cobra.Command{
		Use: "create URL", Short: "Have events sent to a URL from now on, and print the secret", Args: cli.Args("URL"),
		Long:    "Prints the id of the webhook and the secret that its events are signed with. The secret is not shown again.",
		Example: "  shop webhooks create https://example.com/shop-events --events shop.order.#",
		RunE: func(cmd *cobra.Command, args []string) error {
			hook.Url = args[0]
			if cloudEvents {
				hook.Format = webhooksv1.Webhook_CLOUD_EVENTS
			}
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				created, err := c.CreateWebhook(cmd.Context(), &webhooksv1.CreateWebhookRequest{Webhook: hook})
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s\n", created.GetWebhook().GetId(), created.GetSecret())
				return nil
			})
		},
	}
	eventsFlag(cmd, &hook.EventTypes)
	cmd.Flags().StringVar(&hook.Description, "description", "", "what people call it")
	cmd.Flags().BoolVar(&cloudEvents, "cloudevents", false, "write events as CloudEvents 1.0")
	return cmd
}

func eventsFlag(cmd *cobra.Command, types *[]string) {
	cmd.Flags().StringSliceVar(types, "events", []string{"shop.order.#"}, "routing keys, with * for one word and # for any number")
}

func (w *webhooks) stateCommand(name, short, long string, state webhooksv1.Webhook_State) *cobra.Command {
	return &cobra.Command{
		Use: name + " ID", Short: short, Long: long, Example: "  shop webhooks " + name + " ID", Args: cli.Args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				req := &webhooksv1.UpdateWebhookRequest{Webhook: &webhooksv1.Webhook{Id: args[0], State: state}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"state"}}}
				_, err := c.UpdateWebhook(cmd.Context(), req)
				return err
			})
		},
	}
}

func (w *webhooks) rotateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rotate ID", Short: "Print a new secret; the one before is good for a day",
		Long:    "Gives a webhook a new secret and prints it. For a day each event is signed with both, so that receivers can change over.",
		Example: "  shop webhooks rotate ID", Args: cli.Args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				rotated, err := c.RotateWebhookSecret(cmd.Context(), &webhooksv1.RotateWebhookSecretRequest{WebhookId: args[0]})
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), rotated.GetSecret())
				}
				return err
			})
		},
	}
}

func (w *webhooks) testCommand() *cobra.Command {
	return &cobra.Command{
		Use: "test ID", Short: "Send a test event and show the answer",
		Long:    "Sends an event of the type shop.webhook.test at once, also while the webhook is paused, and says what the receiver has answered.",
		Example: "  shop webhooks test ID", Args: cli.Args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				a, err := c.TestWebhook(cmd.Context(), &webhooksv1.TestWebhookRequest{WebhookId: args[0]})
				switch {
				case err != nil:
					return err
				case !a.GetDelivered():
					return fmt.Errorf("the test was not delivered: %s", cli.Printable(a.GetErrorMessage()))
				}
				fmt.Fprintf(cmd.OutOrStdout(), "Delivered: the answer is %d, after %d ms.\n", a.GetResponseStatus(), a.GetDurationMs())
				return nil
			})
		},
	}
}

func (w *webhooks) deliveriesCommand() *cobra.Command {
	var (
		state  string
		limit  int
		asJSON bool
	)
	cmd := &cobra.Command{
		Use: "deliveries ID", Short: "List what was sent to a webhook, or waits, the newest first", Args: cli.Args("ID"),
		Long:    "Lists the deliveries of a webhook with their attempts, the status of the last answer, and what went wrong.",
		Example: "  shop webhooks deliveries ID --state failed",
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, known := webhooksv1.WebhookDelivery_State_value[strings.ToUpper(state)]
			if state != "all" && (!known || wanted == 0) {
				return cli.WrongUsage("--state %s: there are pending, delivered, failed and all", state)
			}
			if limit < 0 {
				return cli.WrongUsage("--limit %d: give how many to list, 0 for all", limit)
			}
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				all, next, err := pages(limit, func(size int32, token string) ([]*webhooksv1.WebhookDelivery, string, error) {
					page, err := c.ListWebhookDeliveries(cmd.Context(), &webhooksv1.ListWebhookDeliveriesRequest{
						WebhookId: args[0], PageSize: size, PageToken: token, State: webhooksv1.WebhookDelivery_State(wanted),
					})
					return page.GetDeliveries(), page.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				reply := &webhooksv1.ListWebhookDeliveriesResponse{Deliveries: all, NextPageToken: next}
				return printList(cmd, asJSON, reply, deliveriesTable(all), fmt.Sprintf("No deliveries (--state %s).", state), limit)
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", "all", "which ones: pending, delivered, failed or all")
	completeFlag(cmd, "state", cobra.FixedCompletions([]cobra.Completion{"pending", "delivered", "failed", "all"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().IntVar(&limit, "limit", 100, "list at most so many; 0 lists all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the JSON of GET /v1/webhooks/{webhook_id}/deliveries")
	return cmd
}

func deliveriesTable(all []*webhooksv1.WebhookDelivery) *table {
	t := &table{header: []string{"ID", "STATE", "WHEN", "EVENT", "ORDER", "ATTEMPTS", "STATUS", "PROBLEM"}, flexible: 7, minWidth: minReason, wraps: true}
	for _, d := range all {
		status := "-"
		if d.GetResponseStatus() > 0 {
			status = strconv.Itoa(int(d.GetResponseStatus()))
		}
		t.add(number(strconv.FormatInt(d.GetId(), 10)), text(d.GetState().String()), text(localTime(d.GetCreatedAt().AsTime())), text(d.GetEventType()),
			text(or(d.GetOrderId(), "-")), number(strconv.Itoa(int(d.GetAttempts()))), number(status), text(or(d.GetErrorMessage(), "-")))
	}
	return t
}

func (w *webhooks) redeliverCommand() *cobra.Command {
	return &cobra.Command{
		Use: "redeliver ID DELIVERY", Short: "Deliver an event once more, or now",
		Long:    "Has a delivery sent again, or at once if it waits. It keeps its webhook-id, by which a receiver knows it.",
		Example: "  shop webhooks redeliver ID 12", Args: cli.Args("ID", "DELIVERY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			delivery, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil || delivery < 1 {
				return cli.WrongUsage("%q is no delivery: shop webhooks deliveries lists their numbers", args[1])
			}
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				_, err := c.RedeliverWebhook(cmd.Context(), &webhooksv1.RedeliverWebhookRequest{WebhookId: args[0], DeliveryId: delivery})
				return err
			})
		},
	}
}

func (w *webhooks) deleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Delete a webhook with what waits for it",
		Long:    "Deletes a webhook with its deliveries. What waits for it is not sent any more.",
		Example: "  shop webhooks delete ID", Args: cli.Args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				_, err := c.DeleteWebhook(cmd.Context(), &webhooksv1.DeleteWebhookRequest{WebhookId: args[0]})
				return err
			})
		},
	}
}

func (w *webhooks) listenCommand() *cobra.Command {
	var (
		types         []string
		addr, forward string
	)
	cmd := &cobra.Command{
		Use: "listen", Short: "Show events as they arrive at this machine, and forward them", Args: cli.Args(),
		Long: `Makes a webhook for this machine, and deletes it in the end (Ctrl-C). Each event is verified and printed, and with --forward sent
on with its headers to a program of yours, whose answer the shop gets. The shop has to be able to reach the address, and to be
allowed to: make up is, for addresses of its own machine.`,
		Example: "  shop webhooks listen\n  shop webhooks listen --forward http://localhost:8080/events",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if u, err := url.Parse(forward); forward != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "") {
				return cli.WrongUsage("--forward %s: give a URL, http://localhost:8080/events for example", cli.Printable(forward))
			}
			lis, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("cannot listen on %s: %w", addr, err)
			}
			defer lis.Close()
			return w.with(func(c webhooksv1.WebhookServiceClient) error {
				created, err := c.CreateWebhook(cmd.Context(), &webhooksv1.CreateWebhookRequest{Webhook: &webhooksv1.Webhook{
					Url: "http://" + lis.Addr().String() + "/", EventTypes: types, Description: "shop webhooks listen",
				}})
				if err != nil {
					return err
				}
				defer func() {
					ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), callTimeout)
					defer cancel()
					if _, err := c.DeleteWebhook(ctx, &webhooksv1.DeleteWebhookRequest{WebhookId: created.GetWebhook().GetId()}); err != nil {
						fmt.Fprintf(cmd.ErrOrStderr(), "The webhook is still there, delete it: shop webhooks delete %s (%v)\n", created.GetWebhook().GetId(), err)
					}
				}()
				l, err := newListener(created.GetSecret(), forward, cmd.OutOrStdout())
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Listening on %s for %s. Ctrl-C ends it.\n", lis.Addr(), strings.Join(types, ", "))
				return serveUntil(cmd.Context(), lis, l)
			})
		},
	}
	eventsFlag(cmd, &types)
	cmd.Flags().StringVar(&addr, "addr", "127.0.0.1:0", "where to listen, host:port")
	cmd.Flags().StringVar(&forward, "forward", "", "the URL of a program that gets each event, too")
	return cmd
}

// serveUntil serves HTTP until ctx ends.
func serveUntil(ctx context.Context, lis net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// listener is a receiver of events that prints and forwards them.
type listener struct {
	verify  *standardwebhooks.Webhook
	forward string // "" for nowhere
	client  *http.Client
	mu      sync.Mutex
	out     io.Writer
}

func newListener(secret, forward string, out io.Writer) (*listener, error) {
	library, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return nil, err
	}
	// The shop follows no redirects either.
	client := &http.Client{Timeout: forwardTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &listener{verify: library, forward: forward, client: client, out: out}, nil
}

// print writes a line; requests come side by side.
func (l *listener) print(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.out, cli.Printable(line))
}

func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhookBody))
	if err == nil {
		err = l.verify.Verify(body, r.Header)
	}
	if err != nil {
		l.print("refused: " + err.Error())
		http.Error(w, "not verified", http.StatusUnauthorized)
		return
	}
	status, answer := http.StatusNoContent, []byte(nil)
	note := ""
	if l.forward != "" {
		if status, answer, err = l.pass(r, body); err != nil {
			status, note = http.StatusBadGateway, "  not forwarded: "+err.Error()
		} else {
			note = fmt.Sprintf("  forwarded: %d", status)
		}
	}
	var event struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	_ = json.Unmarshal(body, &event) // what is no event is printed as nothing
	l.print(fmt.Sprintf("%s  %s  %s%s", time.Now().Format(time.TimeOnly), event.Type, event.Data, note))
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}

// pass forwards an event, with the headers of its signature, and returns the response.
func (l *listener) pass(r *http.Request, body []byte) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, l.forward, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	for _, name := range []string{"Content-Type", standardwebhooks.HeaderWebhookID, standardwebhooks.HeaderWebhookTimestamp, standardwebhooks.HeaderWebhookSignature} {
		req.Header.Set(name, r.Header.Get(name))
	}
	reply, err := l.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = reply.Body.Close() }()
	answer, err = io.ReadAll(io.LimitReader(reply.Body, maxWebhookBody))
	return reply.StatusCode, answer, err
}
