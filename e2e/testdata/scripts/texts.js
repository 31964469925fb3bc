import * as flow from '/page/flow.js';
import {keys} from '/page/contracts.js';
import {answerWith, equal, eventStream, json, text, until} from './check.js';

const id = '01980000-0000-7000-8000-0123456789ab';

// follow shows the order that the shop answers with, and returns its stream.
async function follow(answer, {taken, refused, reason} = {}) {
  let stream;
  const calls = answerWith(({path}, {signal}) => {
    if (path !== `/v1/orders/${id}/events:stream`) return answer(path);
    if (refused) return json({message: 'slow down', details: [{reason}]}, refused);
    stream = eventStream(signal);
    return stream.response;
  });
  flow.follow(id, taken, 12);
  await until(() => calls.some(({path}) => path.endsWith(':stream')));
  return {calls, get stream() { return stream; }};
}

// shown reads an order and returns what the page says about it.
async function shown(order) {
  await follow(() => json({id, ...order}));
  await until(() => text('slip-state') === order.state);
  return [text('slip-state'), text('slip-detail'), text('slip-contents')];
}

export async function aConfirmedOrderHasItsTotal() {
  const total_value = {currency_code: 'USD', units: '105', nanos: 0};
  equal(await shown({state: 'CONFIRMED', total_items: 3, total_value}), ['CONFIRMED', 'Your order is confirmed.', '3 pieces, 105.00 USD']);
  equal(document.getElementById('cancel').getAttribute('aria-disabled'), 'false');
}

export async function aCancelledOrderCannotBeCancelledAgain() {
  equal((await shown({state: 'CANCELLED', total_items: 1})).slice(0, 2), ['CANCELLED', 'The order was cancelled, and its items are back in stock.']);
  equal(document.getElementById('cancel').getAttribute('aria-disabled'), 'true');
}

export async function aRejectedOrderSaysWhyAndThatNothingWasReserved() {
  const order = {state: 'REJECTED', reason: 'OUT_OF_STOCK', rejection_detail: 'Laptop: you asked for 51, only 50 available'};
  equal((await shown(order))[1], 'Not enough stock. Laptop: you asked for 51, only 50 available. Nothing was reserved.');
}

export async function aReasonOfANewerReleaseIsShownByItsName() {
  equal((await shown({state: 'REJECTED', reason: 'ON_STRIKE'}))[1], 'The order is ON_STRIKE. Nothing was reserved.');
}

export async function aStateOfANewerReleaseIsShownByItsName() {
  equal((await shown({state: 'UNHEARD_OF', total_items: 1})).slice(0, 2), ['UNHEARD_OF', 'The order is UNHEARD_OF.']);
}

export async function anOrderIsShownAsDecidedWhenItsEventSaysSo() {
  let state = 'PENDING';
  const at = '2026-01-02T03:04:05';
  const page = await follow(() => json({id, state, total_items: 2}), {taken: {id, state, total_items: 2, created_at: `${at}Z`}});
  equal(text('slip-detail'), 'Accepted and safely queued. Checking stock…');
  state = 'CONFIRMED';
  for (const [n, key, time] of [[2, keys.OrderConfirmed, '.250'], [1, keys.OrderPlaced, '.000']]) { // the log may write them in this order
    page.stream.send(`id: ${n}\ndata: ${JSON.stringify({id: String(n), routing_key: key, published_at: `${at}${time}Z`, attempt: 0, payload: {}})}\n\n`);
  }
  await until(() => text('slip-state') === 'CONFIRMED' && document.querySelectorAll('#timeline [data-key]').length === 2);
  equal([...document.querySelectorAll('#timeline [data-key]')].map((row) => row.dataset.key), [keys.OrderPlaced, keys.OrderConfirmed]);
  equal(document.querySelectorAll('#timeline .since')[2].textContent, '+ 250 ms');
  equal(document.querySelector('#timeline .accepted .since').textContent, '12 ms');
}

export async function anEventThatComesTwiceIsShownOnce() {
  const page = await follow(() => json({id, state: 'PENDING'}));
  const event = {id: '1', routing_key: keys.OrderPlaced, published_at: '2026-01-02T03:04:05Z', attempt: 0, payload: {}};
  for (const n of [1, 2]) page.stream.send(`id: ${n}\ndata: ${JSON.stringify({...event, id: '1'})}\n\n`);
  page.stream.send(`id: 3\ndata: ${JSON.stringify({...event, id: '3', routing_key: keys.OrderRejected})}\n\n`);
  await until(() => document.querySelector(`#timeline [data-key="${keys.OrderRejected}"]`));
  equal(document.querySelectorAll('#timeline [data-key]').length, 2);
}

// Each event put all rows into the list again.
export async function aRowOfTheTimelineKeepsTheFocusWhenAnEventComes() {
  const page = await follow(() => json({id, state: 'PENDING'}));
  const send = (n, key) => page.stream.send(`id: ${n}\ndata: ${JSON.stringify({id: String(n), routing_key: key, published_at: `2026-01-02T03:04:0${n}Z`, attempt: 0, payload: {}})}\n\n`);
  const rows = () => [...document.querySelectorAll('#timeline [data-key]')].map((row) => row.dataset.key);
  send(2, keys.OrderConfirmed);
  await until(() => rows().length === 1);
  const row = document.querySelector('#timeline summary');
  row.focus();
  send(3, keys.DecrementQuantity);
  send(1, keys.OrderPlaced);
  await until(() => rows().length === 3);
  equal([document.activeElement === row, rows()], [true, [keys.OrderPlaced, keys.OrderConfirmed, keys.DecrementQuantity]]);
}

export async function aStreamThatIsRefusedSaysWhy() {
  const unread = () => json({code: 5, message: 'order not found'}, 400);
  await follow(unread, {refused: 400});
  await until(() => text('slip-detail') === 'There is no order with this id. Check the link.');
}

// That an order could not be cancelled, or had no link, was said of the one that was followed meanwhile, and its button did something.
export async function whatFailsIsSaidOfTheOrderThatItFailedFor() {
  flow.start({onChange() {}, onRejected() {}, onConnection() {}});
  const other = id.slice(0, -1) + 'c';
  let fail;
  const bodies = [];
  const down = new Promise((resolve) => { fail = resolve; }).then(() => {
    const answer = json({message: 'the order service is unavailable'}, 503), read = answer.json();
    bodies.push(read);
    answer.json = () => read;
    return answer;
  });
  const calls = answerWith(({path, method}, {signal}) => {
    if (path.endsWith(':stream')) return eventStream(signal).response;
    return method === 'POST' ? down : json({id: path.slice(-36), state: path.endsWith(other) ? 'CANCELLED' : 'CONFIRMED', total_items: 1});
  });
  flow.follow(id);
  await until(() => text('slip-state') === 'CONFIRMED');
  for (const button of ['cancel', 'copy-link', 'copy-image']) document.getElementById(button).click();
  await until(() => calls.filter(({method}) => method === 'POST').length === 3);
  flow.follow(other);
  await until(() => text('slip-state') === 'CANCELLED');
  fail();
  await down.then(() => Promise.all(bodies));
  await new Promise((resolve) => setTimeout(resolve)); // what waits for the answers has gone on
  equal([text('slip-detail'), document.getElementById('cancel').getAttribute('aria-disabled')], ['The order was cancelled, and its items are back in stock.', 'true']);
  flow.follow(id);
  await until(() => text('slip-state') === 'CONFIRMED');
  document.getElementById('cancel').click();
  await until(() => text('slip-detail') === 'It is not known whether the order was cancelled: the order service is unavailable. Try again.');
  equal(document.getElementById('cancel').getAttribute('aria-disabled'), 'false');
}

// Whoever had too many tabs open was told that the event log did not answer.
export async function aStreamForWhichThereIsNoRoomSaysWhy() {
  for (const [reason, why] of [['TOO_MANY_STREAMS', 'too many streams are open. Close some tabs'], ['TOO_MANY_FAILED_LOGINS', 'slow down. What happens']]) {
    await follow(() => json({id, state: 'CONFIRMED', total_items: 1}), {refused: 429, reason});
    await until(() => text('timeline-note').startsWith(`The events are not available: ${why}`));
  }
}

export async function ordersOfThisBrowserAreListedLastFirst() {
  localStorage.setItem('shop.orders', 'broken');
  answerWith(() => new Promise(() => {}));
  for (const n of [1, 2, 1]) {
    const order = {id: id.slice(0, -1) + n, state: 'PENDING', total_items: n, created_at: '2026-01-02T03:04:05Z'};
    flow.follow(order.id, order, 1);
  }
  equal([...document.querySelectorAll('#own a')].map((a) => a.textContent), ['456789a1', '456789a2']);
  localStorage.clear();
}
