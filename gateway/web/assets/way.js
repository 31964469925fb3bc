// The way of one order: its slip, the picture, and the timeline of its events.
import {call, hasToken, Refusal} from './api.js';
import * as barcode from './barcode.js';
import {keys} from './contracts.js';
import {$, amount, clock, copy, duration, grpcurl, h, plural, price, setText, short} from './dom.js';
import {Picture} from './picture.js';
import {open} from './stream.js';

const ownKey = 'shop.orders';
const mostOwn = 12;
const lookAgain = 1500; // an order that waits for a service that is away is looked at in this interval, in ms

export const picture = new Picture($('picture'));

const verdicts = {
  PENDING: 'Accepted: the broker has it on disk. It is being decided.',
  CONFIRMED: 'Confirmed: everything in the order is yours.',
  CANCELLED: 'Cancelled: everything in the order is back in stock.',
  OUT_OF_STOCK: 'Refused: not everything in it is in stock any more. Nothing was taken; order less.',
  UNKNOWN_PRODUCT: 'Refused: a product in it is not in the catalogue any more. Nothing was taken.',
  PRICE_CHANGED: 'Refused: a price has changed since you saw it. Nothing was taken; the list shows the new price.',
  IDEMPOTENCY_KEY_REUSED: 'Rejected: this form has placed another order before. Nothing was reserved; place the order again.',
  AMOUNT_TOO_LARGE: 'Rejected: the order is worth more than the shop can handle. Nothing was reserved; order less.',
  DISCARDED: 'Rejected: the shop could not process the order. Nothing was reserved.',
  MIXED_CURRENCIES: 'Rejected: the prices of the products are in different currencies. Nothing was reserved.',
};
const states = {[keys.OrderConfirmed]: 'CONFIRMED', [keys.OrderRejected]: 'REJECTED', [keys.OrderCancelled]: 'CANCELLED'};

let current = null; // the order that is followed
let changed = () => {};
let connection = () => {};

// start brings the buttons to life. onChange() is called when an order has changed the stock, onConnection(state) with
// the state of the stream.
export function start({onChange, onConnection}) {
  changed = onChange;
  connection = onConnection;
  $('cancel').addEventListener('click', cancel);
  $('replay').addEventListener('click', replay);
  $('copy-link').addEventListener('click', (event) => copy(event.target, `${location.origin}/#order=${current.id}`));
  $('copy-order').addEventListener('click', (event) => copy(event.target,
    grpcurl('shop.logging.v1.EventLogService/ListEvents', {order_id: current.id}, false)));
  showOwn();
}

// follow shows an order from its beginning, and on. taken is the answer to placing it, where it was placed just now.
export function follow(id, taken, tookMs) {
  if (current?.id === id && !taken) return;
  current?.stream.stop();
  clearTimeout(current?.timer);
  picture.stop();
  const order = {id, state: 'PENDING', events: [], shown: Promise.resolve(), timer: 0, stream: null};
  current = order;
  $('timeline').replaceChildren();
  if (taken) {
    remember(taken);
    $('timeline').append(h('li', {class: 'accepted'}, h('span', {class: 'since code'}, duration(tookMs)),
      h('span', {class: 'key code'}, '202 Accepted'), h('span', {class: 'from'}, 'answer of the gateway')));
  }
  setText($('slip-id'), short(id));
  $('slip-id').title = id;
  barcode.draw($('slip-barcode'), short(id));
  setText($('slip-contents'), '–');
  setText($('slip-took'), '–');
  show(taken ?? {state: 'PENDING'});
  for (const button of ['copy-link', 'copy-order']) $(button).disabled = false;
  $('replay').disabled = true;
  if (location.hash !== `#order=${id}`) history.replaceState(null, '', `#order=${id}`);
  order.stream = open(`/v1/orders/${id}/events:stream`, {
    onEvents: (events) => events.forEach((event) => arrived(order, event)),
    onState: (state, status) => {
      if (order !== current) return;
      connection(state);
      if (state === 'refused') setText($('slip-detail'), status === 400 ? 'This is no order’s id.' : 'The shop does not show this order’s events.');
    },
  });
  // What was placed just now is not decided yet, and its events say when it is.
  if (taken) order.timer = setTimeout(look, lookAgain, order);
  else look(order);
}

function arrived(order, event) {
  if (order !== current || order.events.some((known) => known.id === event.id)) return;
  const at = order.events.findIndex((other) => Date.parse(other.published_at) > Date.parse(event.published_at));
  order.events.splice(at < 0 ? order.events.length : at, 0, event);
  drawTimeline(order);
  $('replay').disabled = false;
  order.shown = order.shown.then(() => (order === current ? play(event) : null));
  if (states[event.routing_key]) look(order, event);
  else changed();
}

function drawTimeline(order) {
  const list = $('timeline');
  order.events.forEach((event, i) => {
    event.row ??= timelineRow(event);
    const before = order.events[i - 1];
    setText(event.row.querySelector('.since'), before ? `+ ${duration(Date.parse(event.published_at) - Date.parse(before.published_at))}` : clock(event.published_at));
    list.append(event.row); // the order may have changed
  });
  list.parentElement.scrollTop = list.parentElement.scrollHeight;
}

function timelineRow(event) {
  return h('li', {class: event.status === 'error' ? 'failed' : null, 'data-key': event.routing_key},
    h('span', {class: 'since code'}),
    h('details', {},
      h('summary', {}, h('span', {class: 'key code'}, event.routing_key)),
      h('pre', {class: 'payload', tabindex: 0}, JSON.stringify(event.payload, null, 2))),
    h('span', {class: 'from'}, `from ${event.source || 'unknown'}, attempt ${event.attempt + 1}, trace `,
      h('span', {class: 'code', title: event.trace_id}, event.trace_id ? event.trace_id.slice(0, 12) : 'none')),
    event.error_message ? h('span', {class: 'why'}, event.error_message) : null);
}

// look reads how the order stands, and again until it has been decided: also while nobody can say what its events are.
async function look(order, event) {
  clearTimeout(order.timer);
  try {
    const read = await call('GET', `/v1/orders/${order.id}`);
    if (order === current) show(read, event?.payload?.detail);
    changed();
    if (event && states[event.routing_key] !== read.state && order.state !== 'CANCELLED') order.timer = setTimeout(look, 200, order, event);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    // Not there, or the order service is away: it has not been decided.
    if (order === current && order.state === 'PENDING' && error.status !== 400) order.timer = setTimeout(look, lookAgain, order);
  }
}

function show(order, detail) {
  current.state = order.state;
  const stamp = $('slip-state');
  stamp.dataset.state = order.state;
  setText(stamp, order.state);
  setText($('slip-detail'), [verdicts[order.reason ?? order.state] ?? `The order is ${order.reason ?? order.state}.`, detail].filter(Boolean).join(' '));
  $('cancel').disabled = order.state !== 'CONFIRMED';
  if (order.total_items) {
    const total = order.total_value ? `, ${price(amount(order.total_value), order.total_value.currency_code)}` : '';
    setText($('slip-contents'), plural(order.total_items, 'piece') + total);
  }
  const [placed, decided] = [[keys.OrderPlaced], [keys.OrderConfirmed, keys.OrderRejected]].map((any) => current.events.find((e) => any.includes(e.routing_key)));
  if (placed && decided) setText($('slip-took'), duration(Date.parse(decided.published_at) - Date.parse(placed.published_at)));
}

async function cancel() {
  const order = current;
  $('cancel').disabled = true;
  try {
    const cancelled = await call('POST', `/v1/orders/${order.id}:cancel`, {body: {}});
    if (order === current) show(cancelled);
    changed();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    $('cancel').disabled = false;
    setText($('slip-detail'), `Not cancelled: ${error.message}.${error.passing ? ' Try again.' : ''}`);
  }
}

async function play(event) {
  event.row.classList.add('playing');
  await picture.play(event.routing_key);
  event.row.classList.remove('playing');
}

async function replay() {
  const order = current;
  $('replay').disabled = true;
  for (const event of [...order.events]) {
    if (order !== current) return;
    await play(event);
  }
  if (order === current) $('replay').disabled = false;
}

// The orders that were placed here. Whoever has an order's id can read and cancel it, so they stay on this device.
function own() {
  try {
    return JSON.parse(localStorage.getItem(ownKey)) ?? [];
  } catch {
    return [];
  }
}

function remember(order) {
  const rest = own().filter(({id}) => id !== order.id).slice(0, mostOwn - 1);
  localStorage.setItem(ownKey, JSON.stringify([{id: order.id, at: order.created_at, pieces: order.total_items}, ...rest]));
  showOwn();
}

function showOwn() {
  const orders = own();
  if (orders.length === 0) return;
  $('own').replaceChildren(...orders.map(({id, at, pieces}) => h('li', {},
    h('a', {href: `#order=${id}`, class: 'code'}, short(id)), ` ${plural(pieces, 'piece')}, ${clock(at).slice(0, 5)}`)));
}

// seen shows an event of any order on the picture, for operators, while no order of their own is on its way.
export function seen(event) {
  if (hasToken() && event.order_id !== current?.id) picture.passBy(event.routing_key);
}
