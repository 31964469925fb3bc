// The flow of one order: its state, the picture, and the timeline of its events. Calls about it send the token of an operator, if
// there is one: an order may belong to somebody.
import {asOperator, call, hasToken, Refusal} from './api.js';
import * as barcode from './barcode.js';
import {keys, states, ways} from './contracts.js';
import {$, amount, breakable, clock, copy, disable, duration, grpcurl, h, month, plural, price, setText, short} from './dom.js';
import {save} from './export.js';
import {drawLabel} from './label.js';
import {Picture} from './picture.js';
import {Journey} from './journey.js';
import {closePanel} from './panel.js';
import {keep, kept} from './storage.js';
import {open} from './stream.js';

const ownKey = 'shop.orders';
const maxOwn = 12;
const copies = ['copy-link', 'copy-image', 'copy-order']; // buttons that need an order
const deliveredAfter = 2000; // ms after an event: webhooks are sent by then if their receivers answer
const pollInterval = 1500; // ms; an order is read this often until it is decided

export const picture = new Picture($('picture'));
const journey = new Journey(picture);

const messages = {
  PENDING: 'Accepted and safely queued. Checking stock…',
  CONFIRMED: 'Your order is confirmed.',
  CANCELLED: 'The order was cancelled, and its items are back in stock.',
  OUT_OF_STOCK: 'Not enough stock.',
  UNKNOWN_PRODUCT: 'A product is no longer available.',
  PRICE_CHANGED: 'A price has changed since you saw it. The list shows the new price.',
  IDEMPOTENCY_KEY_REUSED: 'This form has already placed another order. Place the order again.',
  AMOUNT_TOO_LARGE: 'The order is worth more than the shop can handle. Order less.',
  DISCARDED: 'The shop could not process the order.',
  MIXED_CURRENCIES: 'The prices of the products are in different currencies.',
};

let current = null; // the order that is followed
let changed = () => {};
let rejected = () => {};
let connection = () => {};

// start registers the buttons. onChange() is called when an order has changed the stock, onRejected() when the order that
// was placed just now is rejected, onConnection(state) with the state of the stream.
export function start({onChange, onRejected, onConnection}) {
  changed = onChange;
  rejected = onRejected;
  connection = onConnection;
  $('cancel').addEventListener('click', cancel);
  $('replay').addEventListener('click', replay);
  $('recorded').addEventListener('click', showRecorded);
  $('tour').addEventListener('click', async () => {
    const tour = await import('./tour.js');
    tour.start(picture);
    inSight();
  });
  $('copy-link').addEventListener('click', copyLink);
  $('copy-image').addEventListener('click', copyImage);
  $('copy-order').addEventListener('click', (event) => copy(event.target,
    grpcurl('shop.logging.v1.EventLogService/ListEvents', {order_id: current.id}, false)));
  showOwn();
}

// share makes a token that shows the order, and no more: its own id would let cancel it.
const share = async (order) => (await asOperator('POST', `/v1/orders/${order.id}:share`, {})).share_token;

async function copyLink({target}) {
  const order = current;
  try {
    await copy(target, `${location.origin}/shared/${await share(order)}`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (order === current) setText($('slip-detail'), `There is no link: ${error.message}.`);
  }
}

// copyImage copies the order as a shipping label. Without a clipboard for images, the image is saved.
async function copyImage({target}) {
  const order = current;
  const label = target.dataset.label ??= target.textContent;
  try {
    const image = await drawLabel(await call('GET', `/v1/shared-orders/${await share(order)}`));
    try {
      await navigator.clipboard.write([new ClipboardItem({'image/png': image})]);
      target.textContent = 'Copied';
    } catch {
      save('order.png', 'image/png', image);
      target.textContent = 'Saved';
    }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (order === current) setText($('slip-detail'), `There is no image: ${error.message}.`);
  }
  setTimeout(() => { target.textContent = label; }, 1500);
}

// showRecorded shows an order that was recorded, for as long as there is none to show, and plays it.
async function showRecorded() {
  const {order, events, stock} = await call('GET', '/page/recorded.json', {cache: 'default'});
  if (current && !current.recorded) return;
  const recorded = {id: order.id, state: 'RECORDED', recorded: true, events, stream: {stop() {}}};
  current = recorded;
  closePanel();
  $('timeline').replaceChildren();
  journey.begin();
  setText($('slip-id'), short(order.id));
  barcode.draw($('slip-barcode'), short(order.id));
  show({...order, state: 'RECORDED'});
  setText($('slip-detail'), `This order was recorded, in ${month(order.created_at)}: nothing of it happens now. Place an order to see your own.`);
  for (const button of copies) disable($(button));
  drawTimeline(recorded);
  for (const event of stock) journey.see(event);
  journey.show(events);
  inSight();
  await replay();
}

// inSight scrolls the picture into sight, and with it what the panel says first.
export function inSight() {
  $('flow').scrollTop = 0; // beside the products it scrolls by itself
  const said = $('panel').hidden ? null : $('panel').querySelector('.result, .tour-stop');
  const {top} = $('picture').getBoundingClientRect();
  const {bottom} = (said ?? $('picture')).getBoundingClientRect();
  if (top >= 0 && bottom <= innerHeight) return;
  (said ? $('flow') : $('picture')).scrollIntoView({block: said ? 'start' : 'center', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'});
}

// follow shows an order from its beginning, live. taken is the response if it was placed just now.
export function follow(id, taken, tookMs) {
  if (current?.id === id && !taken) return;
  current?.stream.stop();
  clearTimeout(current?.timer);
  picture.stop();
  const order = {id, state: 'PENDING', exists: Boolean(taken), placedHere: Boolean(taken), events: [], shown: Promise.resolve(), timer: 0, stream: null};
  current = order;
  closePanel();
  $('timeline').replaceChildren();
  journey.begin();
  if (taken) {
    remember(taken);
    $('timeline').append(h('li', {class: 'accepted'}, h('span', {class: 'since code'}, duration(tookMs)),
      h('span', {class: 'key code'}, '202 Accepted'), h('span', {class: 'from'}, 'HTTP response')));
  }
  setText($('slip-id'), short(id));
  $('slip-id').title = id;
  barcode.draw($('slip-barcode'), short(id));
  setText($('slip-contents'), '–');
  setText($('slip-took'), '–');
  setText($('timeline-note'), '');
  if (taken) show(taken);
  else showLooking();
  for (const button of copies) disable($(button), !taken);
  disable($('replay'));
  if (location.hash !== `#order=${id}`) history.replaceState(null, '', `#order=${id}`);
  listen(order);
  // An order that was placed just now is not decided yet, and its events say when it is.
  if (taken) order.timer = setTimeout(look, pollInterval, order);
  else look(order);
}

// listen follows the events of an order: without a token if the one that there is turns out to be invalid.
function listen(order) {
  const operator = hasToken();
  order.stream = open(`/v1/orders/${order.id}/events:stream`, {
    operator,
    onEvents: (events) => events.forEach((event) => arrived(order, event)),
    onState: (state, refusal) => {
      if (order !== current) return;
      if (state === 'refused' && refusal.status === 401 && operator && !hasToken()) {
        listen(order);
        return;
      }
      connection(state);
      noteLog(order, state, refusal);
      if (state === 'refused' && refusal.status !== 400) setText($('slip-detail'), 'You may not see this order’s events.');
    },
  });
}

function arrived(order, event) {
  if (order !== current || order.events.some((known) => known.id === event.id)) return;
  const at = order.events.findIndex((other) => Date.parse(other.published_at) > Date.parse(event.published_at));
  order.exists = true;
  order.events.splice(at < 0 ? order.events.length : at, 0, event);
  drawTimeline(order);
  journey.show(order.events);
  clearTimeout(order.deliveries);
  order.deliveries = setTimeout(() => order === current && journey.readDeliveries(order.id), deliveredAfter);
  disable($('replay'), false);
  order.shown = order.shown.then(() => (order === current ? play(event) : null));
  if (states[event.routing_key]) look(order, event);
  else changed();
}

function drawTimeline(order) {
  const list = $('timeline');
  const first = list.querySelectorAll('.accepted').length; // the answer to the order stands before its events
  order.events.forEach((event, i) => {
    event.row ??= timelineRow(event);
    const before = order.events[i - 1];
    setText(event.row.querySelector('.since'), before ? `+ ${duration(Date.parse(event.published_at) - Date.parse(before.published_at))}` : clock(event.published_at));
    const place = list.children[first + i] ?? null;
    if (place !== event.row) list.insertBefore(event.row, place); // a row that is moved loses the focus
  });
  list.parentElement.scrollTop = list.parentElement.scrollHeight;
}

// traceOf names the trace of an event, and leads to its page if there is one (TRACE_URL).
function traceOf(event) {
  const text = event.trace_id ? event.trace_id.slice(0, 12) : 'none', at = document.body.dataset.traces;
  return at && event.trace_id
    ? h('a', {class: 'code', href: at.replaceAll('{trace_id}', event.trace_id), title: event.trace_id, target: '_blank', rel: 'noreferrer'}, text)
    : h('span', {class: 'code', title: event.trace_id}, text);
}

function timelineRow(event) {
  return h('li', {class: event.status === 'error' ? 'failed' : null, 'data-key': event.routing_key},
    h('span', {class: 'since code'}),
    h('details', {},
      h('summary', {}, h('span', {class: 'key code'}, ...breakable(event.routing_key))),
      h('pre', {class: 'payload', tabindex: 0}, JSON.stringify(event.payload, null, 2))),
    h('span', {class: 'from'}, `from ${event.source || 'unknown'}, attempt ${event.attempt + 1}, trace `,
      traceOf(event)),
    event.error_message ? h('span', {class: 'reason'}, event.error_message) : null);
}

// look reads the order until it is decided: also while its events are unavailable.
async function look(order, event) {
  clearTimeout(order.timer);
  try {
    const read = await asOperator('GET', `/v1/orders/${order.id}`);
    if (order !== current) return;
    if (read.state === 'PENDING') {
      if (!order.exists || order.missed) show(read);
      order.exists = true;
      order.missed = false;
      if (order.state === 'PENDING') order.timer = setTimeout(look, pollInterval, order);
      return;
    }
    order.exists = true;
    if (order.placedHere && read.state === 'REJECTED' && order.state === 'PENDING') rejected();
    show(read, event?.payload?.detail);
    changed();
    // What is read may be older than the event.
    if (event && ways[read.state]?.includes(states[event.routing_key]) === false) order.timer = setTimeout(look, 200, order, event);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (order !== current || order.state !== 'PENDING') return;
    // An order that was seen may come from a release whose ids are not known to be the shop's until they are decided.
    if (error.status === 400 || error.status === 404 && !order.exists) {
      showMissing(order);
      return;
    }
    order.missed = error.status === 404;
    if (order.missed) setText($('slip-detail'), 'The order cannot be read any more. It was accepted, and is decided all the same.');
    order.timer = setTimeout(look, pollInterval, order);
  }
}

// noteLog says why there are no events, if the event log cannot be read.
function noteLog(order, state, refusal) {
  if (state === 'live') setText($('timeline-note'), '');
  const why = refusal?.reason === 'TOO_MANY_STREAMS' ? 'too many streams are open. Close some tabs; what happens is shown here when there is room.'
    : refusal?.status === 429 ? `${refusal.message}. What happens is shown here when the shop takes calls from here again.`
    : 'the event log does not answer. Nothing is lost: what happens waits in the log’s queue, and is shown here when the log is back.';
  if (state === 'cut') setText($('timeline-note'), `${order.events.length ? 'More events' : 'The events'} are not available: ${why}`);
  $('timeline-note').hidden = $('timeline-note').textContent === '';
}

function showLooking() {
  delete $('slip-state').dataset.state;
  setText($('slip-state'), '–');
  setText($('slip-detail'), 'Looking for the order…');
  disable($('cancel'));
}

function showMissing(order) {
  order.stream.stop();
  connection('live');
  $('slip-state').dataset.state = 'UNKNOWN';
  setText($('slip-state'), 'NOT FOUND');
  setText($('slip-detail'), 'There is no order with this id. Check the link.');
  for (const button of copies) disable($(button));
}

function show(order, detail = order.rejection_detail) {
  current.state = order.state;
  for (const button of copies) disable($(button), false);
  const stamp = $('slip-state');
  stamp.dataset.state = order.state;
  setText(stamp, order.state);
  const message = messages[order.reason ?? order.state] ?? `The order is ${order.reason ?? order.state}.`;
  setText($('slip-detail'), [message, detail && `${detail}.`, order.state === 'REJECTED' && 'Nothing was reserved.'].filter(Boolean).join(' '));
  disable($('cancel'), order.state !== 'CONFIRMED');
  if (order.total_items) {
    const total = order.total_value ? `, ${price(amount(order.total_value), order.total_value.currency_code)}` : '';
    setText($('slip-contents'), plural(order.total_items, 'piece') + total);
  }
  const [placed, decided] = [[keys.OrderPlaced], [keys.OrderConfirmed, keys.OrderRejected]].map((any) => current.events.find((e) => any.includes(e.routing_key)));
  if (placed && decided) setText($('slip-took'), duration(Date.parse(decided.published_at) - Date.parse(placed.published_at)));
}

async function cancel() {
  const order = current;
  disable($('cancel'));
  try {
    const cancelled = await asOperator('POST', `/v1/orders/${order.id}:cancel`, {});
    if (order === current) show(cancelled);
    changed();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (order !== current || order.state !== 'CONFIRMED') return; // another is shown, or what has become of it
    disable($('cancel'), false);
    setText($('slip-detail'), error.status === 429 ? `Not cancelled: ${error.message}. Try again.` : error.transient ? `It is not known whether the order was cancelled: ${error.message}. Try again.` : `Not cancelled: ${error.message}.`);
  }
}

async function play(event) {
  event.row.classList.add('playing');
  await picture.play(event.routing_key);
  event.row.classList.remove('playing');
}

async function replay() {
  const order = current;
  disable($('replay'));
  await journey.play();
  if (order === current) disable($('replay'), false);
}

// The orders that were placed in this browser. Anyone with an order's id can read and cancel it, so they stay on this device.
function own() {
  try {
    return JSON.parse(kept('localStorage', ownKey)) ?? [];
  } catch {
    return [];
  }
}

function remember(order) {
  const rest = own().filter(({id}) => id !== order.id).slice(0, maxOwn - 1);
  keep('localStorage', ownKey, JSON.stringify([{id: order.id, at: order.created_at, pieces: order.total_items}, ...rest]));
  showOwn();
}

function showOwn() {
  const orders = own();
  if (orders.length === 0) return;
  $('own').replaceChildren(...orders.map(({id, at, pieces}) => h('li', {},
    h('a', {href: `#order=${id}`, class: 'code'}, short(id)), ` ${plural(pieces, 'piece')}, ${clock(at).slice(0, 5)}`)));
}

// seen animates an event of any other order, for operators.
export function seen(event) {
  journey.see(event);
  if (hasToken() && event.order_id !== current?.id) picture.passBy(event.routing_key);
}
