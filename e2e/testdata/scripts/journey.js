import {bindings, keys, routes} from '/page/contracts.js';
import {hopsOf, matches} from '/page/journey.js';
import {equal} from '/tests/check.js';

const at = (ms) => new Date(Date.UTC(2026, 0, 2, 3, 4, 5, ms)).toISOString();
const [source] = routes[keys.OrderPlaced].from;
const placed = {routing_key: keys.OrderPlaced, source, message_id: 'p', attempt: 0, payload: {placed_at: at(0)}, published_at: at(2), created_at: at(30)};
const confirmed = {routing_key: keys.OrderConfirmed, source: 'order', message_id: 'c', attempt: 0, payload: {confirmed_at: at(60)}, published_at: at(60), created_at: at(90)};
const settling = {routing_key: keys.DecrementQuantity, source: 'order', message_id: 'd', attempt: 0, payload: {}, published_at: at(60), created_at: at(91)};
const stock = (ms) => ({payload: {changed_at: at(ms)}});
const shown = (hops) => hops.map(({title, from, to}) => [title, to - from]);

export async function bindingsMatchAsTheBrokerDoes() {
  for (const [binding, key, want] of [['a.b', 'a.b', true], ['a.b', 'a.b.c', false], ['a.*', 'a.b', true], ['a.*', 'a', false],
    ['a.#', 'a', true], ['a.#', 'a.b.c', true], ['a.#', 'b', false], ['#', 'a.b', true], ['#.c', 'a.b.c', true], ['*.b', 'a.b', true]]) {
    equal([binding, key, matches(binding, key)], [binding, key, want]);
  }
}

export async function everyEventReachesTheQueuesOfThoseThatHandleIt() {
  for (const [key, {to}] of Object.entries(routes)) {
    for (const service of to) equal([key, service, bindings[service].some((pattern) => matches(pattern, key))], [key, service, true]);
  }
}

export async function aHopIsShownOnceItHasHappened() {
  equal(hopsOf([]), []);
  const {created_at: _, ...unlogged} = placed;
  equal(shown(hopsOf([unlogged])), [['accepted', 2]]);
  equal(shown(hopsOf([placed])), [['accepted', 2], ['log', 28]]);
}

export async function theTimesAreThoseOfTheEvents() {
  equal(Object.fromEntries(shown(hopsOf([placed, confirmed]))), {accepted: 2, log: 28, 'queue, stock check, commit': 58, 'relay, log: OrderConfirmed': 30});
  const hops = Object.fromEntries(shown(hopsOf([placed, confirmed, settling], [stock(40), stock(85)])));
  equal(hops, {accepted: 2, log: 28, 'queue, stock check': 38, 'reply, commit': 20, 'relay, log: OrderConfirmed': 30, 'relay, log: DecrementQuantity': 31, settle: 25});
}

export async function aDeliveryOfAWebhookIsTheLastHop() {
  const hops = hopsOf([placed, confirmed], [], [{message_id: 'c', last_attempt_at: at(140), attempts: 1, response_status: 204}]);
  equal(shown(hops).at(-1), ['webhook: OrderConfirmed', 50]);
}

export async function theSentenceSaysWhyAQueueGetsACopy() {
  const [{text}] = hopsOf([placed]);
  const pattern = bindings.logging[0];
  equal([text.includes('to 2 queues, order and logging'), text.includes(`because ${keys.OrderPlaced} matches ${bindings.order[0]} and ${pattern}`)], [true, true]);
}
