// The journey of one order: a waterfall of its hops, from the times that its events carry and the event log keeps. A hop is
// shown when it has happened. What the hops are follows from the contracts: who publishes an event, which queues take it.
import {asOperator, hasToken, Refusal} from './api.js';
import {bindings, calls, eventExchange, keys, routes, states} from './contracts.js';
import {$, disable, duration, h, setText} from './dom.js';
import {asks, replies} from './picture.js';

const list = $('journey');
const text = $('hop-text');
const hint = 'Point at a hop to see where it is and what happens there.';

// matches says whether a binding takes a routing key: * is one word, # any number of words.
export function matches(binding, key) {
  const [first, ...rest] = binding.split('.');
  const words = key.split('.');
  if (binding === '') return key === '';
  if (first === '#') return words.some((_, i) => matches(rest.join('.'), words.slice(i).join('.'))) || rest.length === 0;
  return key !== '' && (first === '*' || first === words[0]) && matches(rest.join('.'), words.slice(1).join('.'));
}

const and = (parts) => (parts.length < 2 ? parts.join('') : `${parts.slice(0, -1).join(', ')} and ${parts.at(-1)}`);
const named = (key) => Object.keys(keys).find((name) => keys[name] === key) ?? key;
const slowness = 3; // times
const time = (text) => Date.parse(text ?? '');

// queuesOf are the queues that take a routing key, each with the binding that does.
function queuesOf(key) {
  return Object.entries(bindings).flatMap(([queue, patterns]) => patterns.filter((pattern) => matches(pattern, key)).slice(0, 1).map((pattern) => ({queue, pattern})));
}

function copies(key) {
  const queues = queuesOf(key);
  const to = queues.length === 1 ? `queue ${queues[0].queue}` : `${queues.length} queues, ${and(queues.map(({queue}) => queue))}`;
  return `The exchange ${eventExchange} copies the message to ${to}, because ${key} matches ${and([...new Set(queues.map(({pattern}) => pattern))])}.`;
}

// madeAt is when the service made the event true, by the event itself: placed_at, confirmed_at and so on.
function madeAt({payload, published_at: published}) {
  const at = Object.keys(payload ?? {}).find((field) => /^[a-z]+_at$/.test(field));
  return at ? time(payload[at]) : time(published);
}

// settling are the events by which inventory ends the hold of an order: the hop's title, and what it does.
const settling = {
  [keys.DecrementQuantity]: ['settle', 'settles the hold: the stock that was held is sold'],
  [keys.OrderCancelled]: ['give back', 'gives the stock back: it can be sold again'],
};

// hopsOf returns the hops of an order from its events, and from those changes of stock and deliveries of webhooks that are
// known: {title, text, from, to, path}, in ms, in the order in which they began.
export function hopsOf(events, stock = [], deliveries = []) {
  const placed = events.find((event) => event.routing_key === keys.OrderPlaced);
  const hops = [];
  const hop = (title, from, to, path, text) => Number.isFinite(from) && Number.isFinite(to) && hops.push({title, from, to: Math.max(from, to), path, text});
  for (const event of events) {
    const {routing_key: key, source, published_at: published, created_at: logged, attempt} = event;
    const from = source || routes[key]?.from[0];
    const name = named(key);
    if (event === placed) {
      hop('accepted', madeAt(event), time(published), [from, 'exchange'],
        `The ${from} publishes ${name}, and answers 202 once the broker has it on disk. ${copies(key)}`);
    }
    if (placed && states[key] && routes[keys.OrderPlaced].to.includes(from)) {
      const asked = calls.find((call) => call.from.includes(from));
      const held = stock.find(({payload}) => time(payload.changed_at) >= time(placed.published_at) && time(payload.changed_at) <= madeAt(event));
      const answered = `${asked?.to} answers to the reply queue of the ${from} service`;
      const question = `The message waits in queue ${from}. The ${from} service takes it with others, and asks ${asked?.to} for the stock by one call, over ${asked?.exchange} and queue ${asked?.queue}`;
      const first = events.find((other) => states[other.routing_key]) === event;
      if (first && held) {
        hop('queue, stock check', time(placed.published_at), time(held.payload.changed_at), ['exchange', `${from}.queue`, ...asks(from, asked.to)], `${question}, which holds it.`);
        hop('reply, commit', time(held.payload.changed_at), madeAt(event), [...replies(from, asked.to), `${from}.db`], `${answered[0].toUpperCase()}${answered.slice(1)}, which stores the order and its events in one transaction.`);
      } else if (first) {
        hop('queue, stock check, commit', time(placed.published_at), madeAt(event), ['exchange', `${from}.queue`, ...asks(from, asked.to), ...replies(from, asked.to).slice(1), `${from}.db`],
          `${question}; ${answered}, which stores the order as ${states[key]} with its events, in one transaction.`);
      }
    }
    const relayed = event === placed ? [] : [...(key === keys.OrderCancelled ? ['gateway', from] : []), `${from}.db`, from];
    const cancelled = key === keys.OrderCancelled ? `The gateway has asked the ${from} service by gRPC, which has stored the order as ${states[key]}. ` : '';
    hop(event === placed ? 'log' : `relay, log: ${name}`, event === placed ? time(published) : madeAt(event), time(logged), [...relayed, 'exchange', 'logging.queue', 'logging', 'logging.db'],
      `${cancelled}${event === placed ? '' : `The relay of the ${from} service publishes ${name} from its outbox. ${copies(key)} `}The logging service writes it to the event log${attempt > 0 ? `, at attempt ${attempt + 1}` : ''}.`);
    const moved = settling[key] && stock.find(({payload}) => time(payload.changed_at) > time(published));
    if (moved) {
      const [title, what] = settling[key];
      hop(title, time(published), time(moved.payload.changed_at), ['exchange', 'inventory.queue', 'inventory', 'inventory.db'],
        `Inventory takes its copy from its queue and ${what}.`);
    }
    for (const delivery of deliveries.filter((each) => each.message_id === event.message_id)) {
      hop(`webhook: ${name}`, time(logged), time(delivery.last_attempt_at), ['logging.db', 'webhooks'], `The webhooks service has followed the event log, and sent the event to a receiver, which answered ${delivery.response_status}. Attempts: ${delivery.attempts}.`);
    }
  }
  return hops.sort((a, b) => a.from - b.from);
}

// rowOf is what a row of a waterfall shows of a hop, if the waterfall begins at start and is length ms long.
export function rowOf({title, from, to}, start, length) {
  const bar = h('span', {class: 'hop-bar'});
  bar.style.left = `${(from - start) / length * 100}%`;
  bar.style.width = `${(to - from) / length * 100}%`;
  return [h('span', {class: 'hop-title'}, title), h('span', {class: 'hop-track', 'aria-hidden': true}, bar), h('span', {class: 'hop-took code'}, duration(to - from))];
}

// Journey draws the hops of one order at a time, and joins them to the picture.
export class Journey {
  #picture;
  #hops = [];
  #at = -1; // the hop that was played last; -1 before the first
  #round = 0; // changes when what is played is to stop
  #stock = []; // the last changes of stock
  #deliveries = [];
  #events = [];

  constructor(picture) {
    this.#picture = picture;
    $('step').addEventListener('click', () => this.#step());
    $('pause').addEventListener('click', () => this.#pause());
    $('slower').addEventListener('click', ({target}) => {
      const slower = target.getAttribute('aria-pressed') !== 'true';
      target.setAttribute('aria-pressed', slower);
      picture.setSlowness(slower ? slowness : 1);
    });
  }

  // begin forgets the order before.
  begin() {
    this.stop();
    $('explained').hidden = $('first').hidden = true;
    list.hidden = false;
    this.#deliveries = [];
    this.show([]);
    this.#say(null);
  }

  show(events) {
    this.#events = events;
    const traces = new Set(events.map((event) => event.trace_id).filter(Boolean));
    const mine = this.#stock.filter((event) => traces.has(event.trace_id));
    this.#hops = hopsOf(events, mine, this.#deliveries);
    const start = this.#hops[0]?.from ?? 0;
    const length = Math.max(1, ...this.#hops.map(({to}) => to - start));
    const focused = [...list.children].findIndex((row) => row.contains(document.activeElement));
    list.replaceChildren(...this.#hops.map((each, i) => this.#row(each, i, start, length)));
    list.children[focused]?.firstElementChild.focus();
    if (text.textContent === '') this.#say(null);
    disable($('step'), this.#hops.length === 0);
  }

  #row(each, i, start, length) {
    const on = () => { this.#say(each); this.#picture.mark(each.path); };
    const off = () => { this.#say(null); this.#picture.mark(null); };
    return h('li', {}, h('button', {type: 'button', class: 'hop', title: each.text, onclick: () => { this.#playHop(i); this.#pause(); }, onmouseenter: on, onmouseleave: off, onfocus: on, onblur: off},
      ...rowOf(each, start, length)));
  }

  #say(each, slowed = '') { setText(text, each ? `${each.text}${slowed}` : this.#hops.length > 0 ? hint : ''); }

  // see notes an event of no order that may belong to this one: a change of stock, in the same trace.
  see(event) {
    if (event.routing_key !== keys.StockChanged) return;
    this.#stock = [...this.#stock.slice(-99), event];
    if (this.#events.some(({trace_id: trace}) => trace && trace === event.trace_id)) this.show(this.#events);
  }

  // readDeliveries reads what webhooks have been sent of the order. Operators alone may.
  async readDeliveries(id) {
    if (!hasToken()) return;
    try {
      const {webhooks} = await asOperator('GET', '/v1/webhooks?page_size=20');
      const lists = await Promise.all(webhooks.map((hook) => asOperator('GET', `/v1/webhooks/${hook.id}/deliveries?state=DELIVERED&page_size=100`)));
      const found = lists.flatMap(({deliveries}) => deliveries).filter((delivery) => delivery.order_id === id);
      if (found.length === 0 || !this.#events.some((event) => event.order_id === id)) return;
      this.#deliveries = found;
      this.#picture.appear('webhooks');
      this.show(this.#events);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error; // the journey is shown without them
    }
  }

  stop() {
    this.#round++;
    this.#at = -1;
    disable($('pause'));
    this.#nameReplay();
  }

  // nameReplay says whether play begins, or goes on.
  #nameReplay() { setText($('replay'), this.#at >= 0 && this.#at + 1 < this.#hops.length ? 'Resume' : 'Replay'); }

  // play shows the hops one after the other, from the one after the last that was shown if it was paused.
  async play() {
    const from = this.#at + 1 < this.#hops.length ? this.#at + 1 : 0;
    const round = ++this.#round;
    disable($('pause'), false);
    for (let i = from; i < this.#hops.length && round === this.#round; i++) await this.#playHop(i);
    if (round === this.#round) this.stop();
  }

  // pause ends play after the hop that is shown; play goes on behind it.
  #pause() {
    this.#round++;
    disable($('pause'));
    this.#nameReplay();
  }

  #step() {
    const next = (this.#at + 1) % this.#hops.length;
    this.#playHop(next);
    this.#pause();
  }

  async #playHop(i) {
    const each = this.#hops[i];
    this.#at = i;
    for (const [n, row] of [...list.children].entries()) row.classList.toggle('playing', n === i);
    this.#say(each, ` It took ${duration(each.to - each.from)}, and is shown slowed down.`);
    if (each.path) await this.#picture.playPath(each.path);
    if (this.#at === i) list.children[i]?.classList.remove('playing');
  }
}
