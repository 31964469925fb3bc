package main

import (
	"fmt"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

// quantiles are queries for the median and slower parts of a histogram, by a label or all together.
func quantiles(histogram, by string) (all []query) {
	labels, legend := "le", ""
	if by != "" {
		labels, legend = "le, "+by, " {{"+by+"}}"
	}
	for _, q := range []struct{ quantile, name string }{{"0.5", "p50"}, {"0.99", "p99"}} {
		all = append(all, query{fmt.Sprintf("histogram_quantile(%s, sum by (%s) (rate(%s[$__rate_interval])))", q.quantile, labels, histogram), q.name + legend})
	}
	return all
}

// rate is the increase a second of a counter, by labels.
func rate(counter, by, legend string) []query {
	return []query{{fmt.Sprintf("sum by (%s) (rate(%s[$__rate_interval]))", by, counter), legend}}
}

// jobs are the services as Prometheus knows them. It may watch what is not of the shop.
var jobs = []string{"gateway", "order", "inventory", "logging", "webhooks"}

// notReady counts replicas that fail a check or do not answer, and services without any: their targets may be gone.
func notReady() string {
	up := `up{job=~"` + strings.Join(jobs, "|") + `"}`
	return `(count(max by (instance) (service_ready == bool 0) == 1) or vector(0)) + (count(` + up + ` == 0) or vector(0))` +
		fmt.Sprintf(` + %d - (count(count by (job) (`, len(jobs)) + up + `)) or vector(0))`
}

// shop is for whoever wants to know whether customers are served. alerts are the names of those of the shop.
func shop(alerts []string) *dashboard.DashboardBuilder {
	d := newDashboard("shop", "Shop", "Whether customers are served: orders that are accepted and decided, how fast, and the objectives.")
	values(
		d, "Now",
		panel{title: "Accepted", unit: units.OpsPerSecond, about: "Orders a second for which the gateway has answered 202, over one minute.",
			queries: []query{{`shop:orders_accepted:rate1m`, ""}}},
		panel{title: "Decided", unit: units.OpsPerSecond, about: "Orders a second that were confirmed or rejected. Lower than accepted for long: see Messaging.",
			queries: []query{{`sum(shop:orders_decided:rate1m)`, ""}}},
		panel{title: "Refused", unit: units.PercentUnit, about: "Share of orders that were refused for a reason of ours, over five minutes. The objective allows 0.1 %.",
			queries: []query{{`shop:orders_refused:ratio_rate5m`, ""}}, warn: 0.0001, bad: 0.001},
		panel{title: "Time to accept, p99", unit: units.Seconds, about: "99 % of orders are accepted faster. The objective is 250 ms.",
			queries: []query{{`histogram_quantile(0.99, sum by (le) (rate(gateway_order_duration_seconds_bucket[5m])))`, ""}}, warn: 0.1, bad: 0.25},
		panel{title: "Time to decide, p99", unit: units.Seconds, about: "99 % of orders are decided faster. The objective is 5 s.",
			queries: []query{{`histogram_quantile(0.99, sum by (le) (rate(order_decision_duration_seconds_bucket[5m])))`, ""}}, warn: 1, bad: 5},
		panel{title: "Not ready", unit: units.Short, about: "Replicas that fail a check of readiness, or do not answer, and services without any. Normally 0.",
			queries: []query{{notReady(), ""}}, warn: 1, bad: 2},
		panel{title: "Alerts", unit: units.Short, about: "Alerts of the shop that fire. docs/operations.md says what to do about each.",
			queries: []query{{`count(ALERTS{alertstate="firing",alertname=~"` + strings.Join(alerts, "|") + `"}) or vector(0)`, ""}}, warn: 1, bad: 1},
		panel{title: "Dead letters", unit: units.Short, about: "Messages that could not be handled and that nobody has decided about: shop dlq list.",
			queries: []query{{`max(logging_dead_letters_open)`, ""}}, warn: 1},
	)
	row(
		d, "Orders",
		panel{title: "Orders by outcome", unit: units.OpsPerSecond, about: "Accepted: the broker has it. Refused: a reason of ours. Invalid: the client's mistake. Abandoned: the client did not wait.",
			queries: rate("gateway_orders_total", "outcome", "{{outcome}}")},
		panel{title: "Refused by reason", unit: units.OpsPerSecond, about: "OVERLOADED: more orders than the broker takes. BROKER_UNAVAILABLE and ORDER_QUEUE_UNAVAILABLE: look at the broker.",
			queries: rate(`gateway_orders_total{outcome="refused"}`, "reason", "{{reason}}")},
		panel{title: "Decided by state and reason", unit: units.OpsPerSecond, about: "Many OUT_OF_STOCK: fill up. Many PRICE_CHANGED: clients have old prices.",
			queries: rate("order_decided_total", "state, reason", "{{state}} {{reason}}")},
		panel{title: "Time to accept", unit: units.Seconds, about: "Until the broker has the order on disk.",
			queries: quantiles("gateway_order_duration_seconds_bucket", "")},
		panel{title: "Time to decide", unit: units.Seconds, about: "From the acceptance to the decision, with the time in the queue.",
			queries: quantiles("order_decision_duration_seconds_bucket", "")},
		panel{title: "Orders that wait for the broker", unit: units.Short, about: "At the gateways. At the limit, orders are refused as OVERLOADED.",
			queries: []query{{`sum by (instance) (gateway_orders_in_flight)`, "{{instance}}"}}},
	)
	row(
		d, "Objectives",
		panel{title: "Refused (objective: 0.1 %)", unit: units.PercentUnit, about: "Share of orders that were refused.",
			queries: []query{{`shop:orders_refused:ratio_rate5m`, "5 min"}, {`shop:orders_refused:ratio_rate1h`, "1 h"}, {`shop:orders_refused:ratio_rate6h`, "6 h"}}},
		panel{title: "Accepted after 250 ms (objective: 1 %)", unit: units.PercentUnit, about: "Share of orders that were accepted slowly.",
			queries: []query{{`shop:orders_accepted_slowly:ratio_rate5m`, "5 min"}, {`shop:orders_accepted_slowly:ratio_rate1h`, "1 h"}, {`shop:orders_accepted_slowly:ratio_rate6h`, "6 h"}}},
		panel{title: "Decided after 5 s (objective: 1 %)", unit: units.PercentUnit, about: "Share of orders that were decided slowly.",
			queries: []query{{`shop:orders_decided_slowly:ratio_rate5m`, "5 min"}, {`shop:orders_decided_slowly:ratio_rate1h`, "1 h"}, {`shop:orders_decided_slowly:ratio_rate6h`, "6 h"}}},
	)
	row(
		d, "Stock and data",
		panel{title: "Oldest stock that is held", unit: units.Seconds, about: "Held for an order that is not settled. Normally below a second; old holds are checked after 15 minutes.",
			queries: []query{{`max(inventory_holds_oldest_age_seconds)`, "oldest"}}},
		panel{title: "What the audit found", unit: units.Short, about: "wrong: orders, stock and log contradict each other. late: something takes too long. shop audit shows which.",
			queries: []query{{`sum by (kind) (shop_audit_violations)`, "{{kind}}"}}},
		panel{title: "Since the last audit", unit: units.Seconds, about: "Grows if the audit is stopped or fails.",
			queries: []query{{`time() - max(shop_audit_last_run_timestamp_seconds)`, "last run"}}},
	)
	row(
		d, "Clients",
		panel{title: "REST calls by status", unit: units.RequestsPerSecond, about: "Of all routes.",
			queries: rate(`http_server_request_duration_seconds_count{job="gateway"}`, "http_response_status_code", "{{http_response_status_code}}")},
		panel{title: "Time of REST calls, by route", unit: units.Seconds, about: "p99 of each route.",
			queries: []query{{`histogram_quantile(0.99, sum by (le, http_route) (rate(http_server_request_duration_seconds_bucket{job="gateway"}[$__rate_interval])))`, "{{http_route}}"}}},
		panel{title: "Limits of the gateway", unit: units.PercentUnit, about: "Open connections, calls, streams and memory, as a share of what there may be.",
			queries: []query{{`max by (limit) (gateway_in_use / gateway_in_use_max)`, "{{limit}}"}}},
		panel{title: "Refused calls", unit: units.OpsPerSecond, about: "Limits that were reached, clients that call too often, and tokens that are not valid.",
			queries: []query{
				{`sum by (limit) (rate(gateway_refused_total[$__rate_interval]))`, "limit: {{limit}}"},
				{`sum(rate(gateway_rate_limited_total[$__rate_interval]))`, "too many calls"},
				{`sum by (reason) (rate(gateway_logins_failed_total[$__rate_interval]))`, "{{reason}}"},
			}},
		panel{title: "Webhooks", unit: units.OpsPerSecond, about: "Attempts to deliver an event by outcome.",
			queries: rate("webhooks_attempts_total", "outcome", "{{outcome}}")},
		panel{title: "Webhooks that wait or fail", unit: units.Short, about: "Deliveries that wait for an attempt, and webhooks whose last attempt has failed.",
			queries: []query{{`max(webhooks_pending)`, "waiting deliveries"}, {`max(webhooks_failing)`, "failing webhooks"}}},
	)
	return d
}

// messaging shows in which queue or outbox messages wait or fail.
func messaging() *dashboard.DashboardBuilder {
	d := newDashboard("shop-messaging", "Messaging", "Where messages wait, and where they fail: gateway, broker, consumers, outboxes.")
	row(
		d, "Broker",
		panel{title: "Messages that wait in queues", unit: units.Short, about: "Ready and not delivered. A queue that grows has no consumer, or a slow one.",
			queries: []query{{`sum by (queue) (rabbitmq_queue_messages_ready{job="rabbitmq"})`, "{{queue}}"}}},
		panel{title: "Consumers of queues", unit: units.Short, about: "0 where nobody takes messages. Retry queues have none.",
			queries: []query{{`sum by (queue) (rabbitmq_queue_consumers{job="rabbitmq"})`, "{{queue}}"}}},
		panel{title: "Lost connections and failed dials", unit: units.OpsPerSecond, about: "Normally 0.",
			queries: rate("messaging_reconnects_total", "job, cause", "{{job}}: {{cause}}")},
	)
	row(
		d, "Publish",
		panel{title: "Published by routing key", unit: units.OpsPerSecond, about: "Messages that the broker has confirmed.",
			queries: rate(`messaging_published_total{outcome="confirmed"}`, "routing_key", "{{routing_key}}")},
		panel{title: "Not confirmed", unit: units.OpsPerSecond, about: "Refused or unconfirmed messages are sent again; normally 0.",
			queries: rate(`messaging_published_total{outcome!="confirmed"}`, "job, outcome", "{{job}}: {{outcome}}")},
		panel{title: "Time to confirm", unit: units.Seconds, about: "How long the broker takes to have messages on disk.",
			queries: quantiles("messaging_confirm_duration_seconds_bucket", "job")},
		panel{title: "Oldest message in an outbox", unit: units.Seconds, about: "Normally 0. It grows while the broker is away or blocks publishers.",
			queries: []query{{`max by (job) (outbox_oldest_age_seconds)`, "{{job}}"}}},
		panel{title: "Published from outboxes", unit: units.OpsPerSecond, about: "Events of orders and stock.",
			queries: rate("outbox_published_total", "job", "{{job}}")},
		panel{title: "Parked messages", unit: units.Short, about: "The broker will never accept them as they are: shop outbox list.",
			queries: []query{{`max by (job) (outbox_parked_waiting)`, "{{job}}"}}},
	)
	row(
		d, "Consume",
		panel{title: "Settled by queue", unit: units.OpsPerSecond, about: "Messages that were handled.",
			queries: rate(`messaging_consumed_total{verdict="handled"}`, "queue", "{{queue}}")},
		panel{title: "Retried and dead", unit: units.OpsPerSecond, about: "Retried: a handler has failed. Dead: it has failed for the last time, or the message cannot be read.",
			queries: rate(`messaging_consumed_total{verdict!="handled"}`, "queue, verdict", "{{queue}}: {{verdict}}")},
		panel{title: "Time of a batch", unit: units.Seconds, about: "p50 and p99 by queue.",
			queries: quantiles("messaging_handle_duration_seconds_bucket", "queue")},
		panel{title: "Messages in a batch", unit: units.Short, about: "Mean by queue: 1 when orders come slowly, up to 500 under load.",
			queries: []query{{`sum by (queue) (rate(messaging_batch_size_sum[$__rate_interval])) / sum by (queue) (rate(messaging_batch_size_count[$__rate_interval]))`, "{{queue}}"}}},
		panel{title: "Messages in hand", unit: units.Short, about: "Taken from a queue and not settled yet.",
			queries: []query{{`sum by (queue) (messaging_in_hand)`, "{{queue}}"}}},
		panel{title: "Oldest message in hand", unit: units.Seconds, about: "Normally below a second. It grows while a handler hangs.",
			queries: []query{{`max by (job, queue) (messaging_in_hand_oldest_age_seconds)`, "{{job}}: {{queue}}"}}},
		panel{title: "Calls over the broker", unit: units.Seconds, about: "Time of CheckStock.",
			queries: quantiles("messaging_rpc_duration_seconds_bucket", "method")},
		panel{title: "Messages that came again", unit: units.OpsPerSecond, about: "Without effect. Some after a crash, otherwise none.",
			queries: rate("inbox_repeats_total", "job", "{{job}}")},
		panel{title: "Lost events, and messages of wrong users", unit: units.OpsPerSecond, about: "Normally 0.",
			queries: []query{
				{`sum by (queue, outcome) (rate(logging_reconciler_events_total[$__rate_interval]))`, "lost on the way to {{queue}}: {{outcome}}"},
				{`sum by (queue) (rate(messaging_user_wrong_total[$__rate_interval]))`, "wrong user: {{queue}}"},
			}},
	)
	return d
}

// service is for whoever has been told which service to look at.
func service() *dashboard.DashboardBuilder {
	const of = `{job="$job", instance=~"$instance"}`
	all := cog.ToPtr("$__all")
	d := newDashboard("shop-service", "Service", "One service: readiness, processor, memory, database. Choose it, and perhaps a replica of it.").
		WithVariable(dashboard.NewQueryVariableBuilder("job").Label("Service").Datasource(source()).
			Query(dashboard.StringOrMap{String: cog.ToPtr("label_values(service_build_info, job)")}).Refresh(dashboard.VariableRefreshOnTimeRangeChanged)).
		WithVariable(dashboard.NewQueryVariableBuilder("instance").Label("Replica").Datasource(source()).
			Query(dashboard.StringOrMap{String: cog.ToPtr(`label_values(service_build_info{job="$job"}, instance)`)}).
			Refresh(dashboard.VariableRefreshOnTimeRangeChanged).IncludeAll(true).Multi(true).AllValue(".+").
			Current(dashboard.VariableOption{Text: dashboard.StringOrArrayOfString{String: cog.ToPtr("All")}, Value: dashboard.StringOrArrayOfString{String: all}}))
	row(
		d, "Health",
		panel{title: "Ready", unit: units.Short, about: "1 if a check succeeds, 0 if it fails or hangs.",
			queries: []query{{`min by (check) (service_ready` + of + `)`, "{{check}}"}}},
		panel{title: "Running for", unit: units.Seconds, about: "A restart is a drop to 0.",
			queries: []query{{`time() - process_start_time_seconds` + of, "{{instance}}"}}},
		panel{title: "Version", unit: units.Short, about: "Replicas by what they were built from.",
			queries: []query{{`count by (version, revision, goversion) (service_build_info` + of + `)`, "{{version}} {{revision}} {{goversion}}"}}},
	)
	row(
		d, "Process",
		panel{title: "Processor", unit: units.Short, about: "Cores that are used.",
			queries: []query{{`rate(process_cpu_seconds_total` + of + `[$__rate_interval])`, "{{instance}}"}}},
		panel{title: "Memory", unit: units.BytesIEC, about: "Resident memory of the process, and what lives on Go's heap.",
			queries: []query{{`process_resident_memory_bytes` + of, "{{instance}}"}, {`go_memstats_heap_inuse_bytes` + of, "{{instance}}: heap"}}},
		panel{title: "Goroutines", unit: units.Short, about: "Steady growth is a leak: look at /debug/pprof/goroutine.",
			queries: []query{{`go_goroutines` + of, "{{instance}}"}}},
		panel{title: "Garbage collection", unit: units.Seconds, about: "The longest pause of late.",
			queries: []query{{`max by (instance) (go_gc_duration_seconds` + of + `)`, "{{instance}}"}}},
		panel{title: "Allocated", unit: "Bps", about: "Bytes a second.",
			queries: []query{{`rate(go_memstats_alloc_bytes_total` + of + `[$__rate_interval])`, "{{instance}}"}}},
		panel{title: "Open files", unit: units.Short, about: "Connections, too.",
			queries: []query{{`process_open_fds` + of, "{{instance}}"}}},
	)
	row(
		d, "Database (order, inventory, logging, webhooks)",
		panel{title: "Connections", unit: units.Short, about: "Used and idle, and the most there may be.",
			queries: []query{{`sum by (state) (db_client_connection_open` + of + `)`, "{{state}}"}, {`sum(db_client_connection_max` + of + `)`, "most"}}},
		panel{title: "Waits for a connection", unit: units.OpsPerSecond, about: "All connections were in use.",
			queries: []query{{`sum(rate(db_client_connection_waits_total` + of + `[$__rate_interval]))`, "waits"}}},
		panel{title: "Time waited for connections", unit: units.Seconds, about: "Seconds a second, of all who wait.",
			queries: []query{{`sum(rate(db_client_connection_waited_seconds_total` + of + `[$__rate_interval]))`, "waited"}}},
	)
	row(
		d, "Samples (order, inventory, logging)",
		panel{title: "Age of what was read for metrics", unit: units.Seconds, about: "Read every 5 s. It grows while the database hangs: other metrics are old then.",
			queries: []query{{`max by (sample) (service_sample_age_seconds` + of + `)`, "{{sample}}"}}},
		panel{title: "Messages by queue and verdict", unit: units.OpsPerSecond, about: "What the service consumes.",
			queries: rate(`messaging_consumed_total`+of, "queue, verdict", "{{queue}}: {{verdict}}")},
		panel{title: "Messages by routing key", unit: units.OpsPerSecond, about: "What the service publishes.",
			queries: rate(`messaging_published_total`+of, "routing_key", "{{routing_key}}")},
	)
	return d
}
