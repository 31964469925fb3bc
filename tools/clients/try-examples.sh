#!/bin/sh
# try-examples.sh ORDER EVENTS WEBHOOK runs the examples of a language beside each other: the order that the first one places has to
# come to the other two, which end after so many events. Before, these say which variable is not set.
set -eu
! AMQP_URL='' timeout 120 $2 >unset.txt 2>&1 && grep -q "set AMQP_URL" unset.txt || { cat unset.txt; exit 1; }
! SHOP_OPERATOR_TOKEN='' timeout 120 $3 >unset.txt 2>&1 && grep -q "set SHOP_OPERATOR_TOKEN" unset.txt || { cat unset.txt; exit 1; }
timeout 120 $2 2 >events.txt 2>&1 &
events=$!
timeout 120 $3 3 >webhook.txt 2>&1 &
webhook=$!
for output in events.txt webhook.txt; do
    for _ in $(seq 60); do
        grep -q listening $output && break
        sleep 1
    done
done
$1 >order.txt 2>&1 || { cat order.txt; exit 1; }
wait $events || { cat events.txt; exit 1; }
wait $webhook || { cat webhook.txt; exit 1; }
order=$(grep -oE '[0-9a-f-]{36}' order.txt | head -1)
for output in order.txt events.txt webhook.txt; do
    for event in shop.order.placed shop.order.confirmed; do
        grep "$event" $output | grep -q "$order" || { echo "$event of $order is not in $output:"; cat $output; exit 1; }
    done
done
