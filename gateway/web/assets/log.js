// The event log, live. Rows are added a few times a second, however many events have come, and only so many are kept.
import {asOperator, Refusal} from './api.js';
import {keys} from './contracts.js';
import {asCSV, asJSONLines, save} from './export.js';
import {$, clock, copy, disable, grpcurl, h, plural, setText, short} from './dom.js';
import {open} from './stream.js';

const maxRows = 300;
const beginning = '0'; // is before the first event: events that arrive before the stream begins must not be missed
const history = 100; // events that are shown from before
const maxCalls = 50; // to find them: a million events, a second or two
const searched = 1000; // orders that are searched for the end of an id
const maxExported = 10_000; // events; shop events list has no limit
const pageSize = 1000;
const rateWindow = 5000; // ms
const drawEvery = 100; // ms: each time the browser has to lay out and paint

const rows = $('log-rows');
let stream = null;
let waiting = []; // events without a row yet, the oldest first
let due = 0;
let drawn = 0; // when rows were added last
let paused = false;
let skipped = 0; // events that arrived while the log was paused, and were dropped
let arrivals = []; // {at, count}
let state = 'connecting';
let filter = {routing_key: '', order_id: ''};
let seen = () => {};
let report = () => {};

export function start({onState, onEvent}) {
  report = onState;
  seen = onEvent;
  $('log-filter').addEventListener('submit', (event) => {
    event.preventDefault();
    applyFilter();
  });
  $('log-pause').addEventListener('click', pause);
  $('log-copy').addEventListener('click', (event) => copy(event.target,
    grpcurl('shop.logging.v1.EventLogService/StreamEvents', filled(filter), !filter.order_id)));
  $('log-csv').addEventListener('click', (event) => download(event.target, 'events.csv', 'text/csv', asCSV));
  $('log-jsonl').addEventListener('click', (event) => download(event.target, 'events.jsonl', 'application/jsonl', asJSONLines));
  rows.addEventListener('toggle', (event) => expand(event.target), true);
  setInterval(describe, 1000);
  restart();
}

const filled = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value));

// applyFilter finds an order by the end of its id too, which is what people read: among the last orders.
async function applyFilter() {
  const wanted = {routing_key: $('log-key').value.trim(), order_id: $('log-order').value.trim()};
  if (/^[0-9a-f-]{4,35}$/i.test(wanted.order_id)) {
    try {
      const {events: placed} = await asOperator('GET', `/v1/events?${new URLSearchParams({page_size: searched, routing_key: keys.OrderPlaced})}`);
      const found = placed.map((event) => event.order_id).filter((id) => id.endsWith(wanted.order_id.toLowerCase()));
      if (found.length !== 1) {
        setState('refused', `${found.length || 'none'} of the last ${searched} orders ${found.length === 1 ? 'ends' : 'end'} with ${wanted.order_id}`);
        return;
      }
      [wanted.order_id] = found;
      $('log-order').value = wanted.order_id;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      setState('refused', error.message);
      return;
    }
  }
  filter = wanted;
  restart();
}

// download saves the events that the filter lets through, as far back as there are so many.
async function download(button, name, type, format) {
  disable(button);
  try {
    const events = [];
    for (let token = ''; events.length < maxExported;) {
      const page = await asOperator('GET', `/v1/events?${new URLSearchParams({page_size: pageSize, page_token: token, ...filled(filter)})}`);
      events.push(...page.events);
      token = page.next_page_token;
      if (!token) break;
    }
    save(name, type, format(events));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    window.alert(`Nothing was saved: ${error.message}.`);
  }
  disable(button, false);
}

async function restart() {
  stream?.stop();
  stream = null;
  waiting = [];
  rows.replaceChildren();
  const mine = filter;
  let after;
  try {
    after = await past() ?? beginning;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 400) {
      const what = error.violations.map(({field, description}) => `${field} ${description}`).join('; ') || error.message;
      report('refused');
      setState('refused', what);
      return;
    }
    // The log is down: the stream waits for it.
  }
  if (mine !== filter) return;
  stream = open(`/v1/events:stream?${new URLSearchParams(filled(filter))}`, {
    operator: true,
    after,
    onEvents: arrived,
    onState(is, refusal) {
      report(is);
      setState(is, refusal?.status === 429 ? refusal.message : '');
    },
    // After the tab was hidden, show the newest events, and not all since then.
    onWake: async (last) => {
      try {
        return await past() ?? last;
      } catch {
        return last;
      }
    },
  });
}

// past shows the newest events and returns the id of the last, if there is one.
async function past() {
  const mine = filter;
  const events = [];
  // A search for what is rare reads a part of the log a call, in which there may be none.
  for (let token = '', calls = 0; calls < maxCalls && events.length < history; calls++) {
    const page = await asOperator('GET', `/v1/events?${new URLSearchParams({page_size: history - events.length, page_token: token, ...filled(filter)})}`);
    if (mine !== filter) return undefined;
    events.push(...page.events);
    token = page.next_page_token;
    if (!token) break;
  }
  if (events.length === 0) return undefined;
  // Those of one order come the oldest first.
  events.sort((a, b) => Number(a.id) - Number(b.id));
  const known = Number(waiting.at(-1)?.id ?? rows.querySelector('details:last-of-type')?.dataset.id ?? 0);
  waiting.push(...events.filter((event) => Number(event.id) > known));
  draw();
  return events.at(-1).id;
}

function arrived(events) {
  arrivals.push({at: performance.now(), count: events.length});
  waiting.push(...events);
  if (waiting.length > maxRows) {
    if (paused) skipped += waiting.length - maxRows;
    waiting = waiting.slice(-maxRows);
  }
  for (const event of events) seen(event);
  if (!paused) draw();
}

function draw() {
  due ||= setTimeout(requestAnimationFrame, drawn + drawEvery - performance.now(), (now) => {
    due = 0;
    drawn = now;
    if (paused || waiting.length === 0) return;
    const follows = rows.scrollHeight - rows.scrollTop - rows.clientHeight < 40;
    const fresh = waiting.map(row);
    waiting = [];
    const surplus = rows.childElementCount + fresh.length - maxRows;
    for (let i = 0; i < surplus && rows.firstElementChild; i++) rows.firstElementChild.remove();
    rows.append(...fresh);
    if (follows) rows.scrollTop = rows.scrollHeight;
  });
}

const events = new WeakMap(); // by row

function row(event) {
  const element = h('details', {'data-id': event.id, class: event.status === 'error' ? 'failed' : null},
    h('summary', {},
      h('span', {}, clock(event.published_at)), h('span', {class: 'key'}, event.routing_key), h('span', {}, event.source || 'unknown'),
      h('span', {}, short(event.order_id) || '–'), h('span', {}, [event.status, event.error_message].filter(Boolean).join(': '))));
  events.set(element, event);
  return element;
}

// expand shows an event whole, when its row is opened.
function expand(element) {
  const event = events.get(element);
  if (!event || !element.open) return;
  requestAnimationFrame(() => element.scrollIntoView({block: 'nearest'}));
  if (element.childElementCount > 1) return;
  element.append(h('div', {class: 'expanded'},
    event.error_message ? h('p', {class: 'reason'}, event.error_message) : null,
    h('p', {class: 'actions'},
      h('button', {type: 'button', onclick: (click) => copy(click.target, asGrpcurl(event))}, 'Copy as grpcurl'),
      h('button', {type: 'button', onclick: (click) => copy(click.target, JSON.stringify(event, null, 2))}, 'Copy JSON'),
      event.order_id ? h('a', {href: `#order=${event.order_id}`}, 'Order flow') : null),
    h('pre', {class: 'payload', tabindex: 0}, JSON.stringify(event, null, 2))));
}

// asGrpcurl is the call that reads an event again: with its order, or among those of its moment.
function asGrpcurl(event) {
  if (event.order_id) return grpcurl('shop.logging.v1.EventLogService/ListEvents', {order_id: event.order_id}, false);
  const end = new Date(Date.parse(event.published_at) + 1).toISOString();
  return grpcurl('shop.logging.v1.EventLogService/ListEvents',
    {routing_key: event.routing_key, published_after: event.published_at, published_before: end}, true);
}

function pause() {
  paused = !paused;
  $('log-pause').setAttribute('aria-pressed', paused);
  $('log-pause').textContent = paused ? 'Resume' : 'Pause';
  if (!paused && skipped > 0) {
    rows.append(h('p', {class: 'gap'}, `${plural(skipped, 'event')} not shown`));
    skipped = 0;
  }
  draw();
  describe();
}

let why = '';

function setState(is, reason = '') {
  state = is;
  why = reason;
  describe();
}

function describe() {
  const now = performance.now();
  arrivals = arrivals.filter(({at}) => now - at < rateWindow);
  const rate = arrivals.reduce((sum, {count}) => sum + count, 0) / (rateWindow / 1000);
  const words = {connecting: 'connecting', live: `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} events/s`, cut: 'reconnecting', idle: 'paused while hidden', refused: 'Unavailable'};
  setText($('log-state'), [paused ? `paused, ${waiting.length + skipped} new` : words[state], why].filter(Boolean).join(': '));
}
