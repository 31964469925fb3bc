// The picture of the shop: gateway, exchange, queues, services and their databases, and the messages that move between
// them. With prefers-reduced-motion nodes and edges light up instead.
import {bindings, calls, eventExchange, keys, routes, states} from './contracts.js';
import {plural, s} from './dom.js';

// What there is, and what is joined to what, follows from the contracts; where it stands is decided here. A node has a stage,
// from the gateway to the databases, and the lane of its service. On wide screens stages are columns, on narrow ones rows.
const services = Object.keys(bindings);
const databases = {order: 'orders', logging: 'event_log'}; // those with another name than their service
const nodes = {
  gateway: {stage: 0, lane: 1, name: 'gateway', kind: 'REST + gRPC'},
  exchange: {stage: 1, lane: 1, name: eventExchange, kind: 'exchange'},
  ...Object.assign({}, ...services.map((name, lane) => ({
    [`${name}.queue`]: {stage: 2, lane, name, kind: 'queue'},
    [name]: {stage: 3, lane, name, kind: 'service'},
    [`${name}.db`]: {stage: 4, lane, name: databases[name] ?? name, kind: 'database'},
  }))),
  // A call goes through two queues, between the two services: aside is on which side of their line.
  ...Object.assign({}, ...calls.map(({queue, from: [caller], to}) => {
    const lane = (services.indexOf(caller) + services.indexOf(to)) / 2;
    return {
      [`${to}.calls`]: {stage: 3, aside: -1, lane, name: 'rpc queue', title: `${queue}: the calls of ${caller} wait here for ${to}`, kind: 'call queue'},
      [`${caller}.replies`]: {stage: 3, aside: 1, lane, name: 'replies', title: `The reply queue of ${caller}: ${to} answers here`, kind: 'call queue'},
    };
  })),
};

// What is drawn once it has held something, or done something. Retry queues are one node: they are told apart by their names.
const extras = {
  retry: {stage: 2, lane: 3, name: 'retry', kind: 'queue'},
  letters: {stage: 3, lane: 3, name: 'dead letters', kind: 'dead letters'},
  webhooks: {stage: 4, lane: 3, name: 'webhooks', kind: 'service'},
};

// asked is how the gateway asks the order service to cancel: by gRPC, without the broker. It is drawn once somebody has.
const asked = {ends: ['gateway', 'order'], kind: 'asked', via: [[0, -0.75], [3.2, -0.75], [3.2, -0.5]], label: 'gRPC: cancel'};
const askedRoom = 24; // pixels that it needs beside the rest

// An edge works in both directions; via are its corners, from its first end to its second. An arrow is at its second end, and
// with both at its first one, too.
const edges = [
  {ends: ['gateway', 'exchange']},
  ...services.flatMap((name) => [{ends: ['exchange', `${name}.queue`]}, {ends: [`${name}.queue`, name]}, {ends: [name, `${name}.db`]}]),
  ...calls.flatMap(({from: [caller], to}) => [[caller, `${to}.calls`], [`${to}.calls`, to], [to, `${caller}.replies`], [`${caller}.replies`, caller]]
    .map((ends) => ({ends, kind: 'call'}))),
  ...services.filter((name) => Object.values(routes).some(({from}) => from.includes(name))).map((name) => {
    const lane = services.indexOf(name);
    const beside = lane === 0 ? -0.53 : lane + 0.5;
    return {ends: [name, 'exchange'], kind: 'relay', via: [[3, beside], [1, beside]], label: lane === 0 ? 'outbox relay' : ''};
  }),
];

const layouts = {
  wide: {stages: [58, 190, 341, 504, 650], lanes: [58, 138, 218], width: 706, height: 258, node: [104, 44], queue: [148, 60], call: [66, 16], aside: 0.26, swap: false},
  narrow: {stages: [26, 104, 186, 272, 350], lanes: [62, 168, 274], width: 328, height: 378, node: [92, 42], queue: [96, 42], call: [66, 16], aside: 0.5, swap: true},
};
const arrow = 7; // pixels

// retryOf is the queue whose messages wait in a retry queue; '' if the queue is none.
const retryOf = (name) => /^(.+)\.retry\./.exec(name)?.[1] ?? '';

// asks is the way of a call from a service to another one and its database, and replies the way back.
export const asks = (from, to) => [from, `${to}.calls`, to, `${to}.db`];
export const replies = (from, to) => [`${to}.db`, to, `${from}.replies`, from];

// before is the path that leads to an event, before a service publishes it, if the picture has it: a state of an order is
// stored, stock is asked for when the order is decided, and who cancels asks the gateway.
function before(key, from) {
  const decided = [keys.OrderConfirmed, keys.OrderRejected].includes(key);
  if (!states[key]) return null;
  const called = decided && calls.find((call) => call.from.includes(from));
  if (called) return [...asks(from, called.to), ...replies(from, called.to).slice(1), `${from}.db`];
  return [...(key === keys.OrderCancelled ? asked.ends : [from]), `${from}.db`];
}

// pathsOf returns the paths of an event by its routing key, in stages that begin one after the other; the paths of a stage
// begin together. An event that no service publishes, or more than one, comes from operators: it begins at the gateway.
function pathsOf(key) {
  const {from: publishers, to} = routes[key] ?? {from: [], to: ['logging']};
  const from = publishers.length === 1 ? publishers[0] : 'gateway';
  const relayed = nodes[`${from}.db`] ? [`${from}.db`] : []; // a service's events come from its outbox
  const branches = to.filter((service) => nodes[service]).map((service) => {
    const path = [...relayed, from, 'exchange', `${service}.queue`, service];
    // An order that is placed is stored when it is decided.
    return key === keys.OrderPlaced && service === 'order' ? path : [...path, `${service}.db`];
  });
  const first = before(key, from);
  return first ? [[first], branches] : [branches];
}

const slow = {perUnit: 2.6, min: 170};
const quick = {perUnit: 1.3, min: 90};
const maxTokens = 12; // more would not be noticed
const passInterval = 120; // ms: closer ones look like one
const reducedMotion = matchMedia('(prefers-reduced-motion: reduce)');
const narrow = matchMedia('(max-width: 767px)');

export class Picture {
  #frame;
  #svg;
  #layer;
  #layout;
  #nodes = new Map();
  #edges = new Map(); // by 'from>to'
  #tokens = 0;
  #passed = 0; // when the last one passed by
  #round = 0; // changes when play() is to stop
  #known = {queues: {}, services: {}, letters: {open: 0, sources: []}};
  #appeared = new Set(); // of the extras
  #slowness = 1;

  constructor(frame) {
    this.#frame = frame;
    this.#draw();
    narrow.addEventListener('change', () => this.#draw());
  }

  #place({stage, lane, aside = 0}) { return this.#at(stage + aside * this.#layout.aside, lane); }

  #at(stage, lane) {
    const {stages, lanes, swap} = this.#layout;
    const across = lanes[0] + lane * (lanes[1] - lanes[0]);
    const before = stages[Math.floor(stage)];
    const along = before + (stage % 1) * ((stages[Math.ceil(stage)] ?? before) - before);
    return swap ? [across, along] : [along, across];
  }

  // shown are the nodes of the picture as it is.
  #shown() { return {...nodes, ...Object.fromEntries(Object.entries(extras).filter(([id]) => this.#appeared.has(id)))}; }

  #edgesShown() {
    const lines = this.#appeared.has('asked') ? [...edges, asked] : [...edges];
    if (this.#appeared.has('retry')) {
      const sources = Object.keys(this.#known.queues).filter((name) => this.#known.queues[name].messages > 0).map(retryOf).filter((name) => nodes[`${name}.queue`]);
      for (const name of new Set(sources)) lines.push({ends: [`${name}.queue`, 'retry'], kind: 'relay', via: [[2.5, nodes[name].lane], [2.5, 3]], both: true});
    }
    if (this.#appeared.has('letters')) {
      for (const name of this.#known.letters.sources.filter((source) => nodes[source])) {
        lines.push({ends: [name, 'letters'], via: nodes[name].lane === 2 ? [] : [[3.5, nodes[name].lane], [3.5, 3]]});
      }
    }
    if (this.#appeared.has('webhooks')) lines.push({ends: ['logging.db', 'webhooks']});
    return lines;
  }

  // appear draws one of the extras, or how the gateway asks, from now on.
  appear(id) {
    if (this.#appeared.has(id)) return;
    this.#appeared.add(id);
    this.#draw();
  }

  #draw() {
    this.#layout = narrow.matches ? layouts.narrow : layouts.wide;
    const {swap, lanes} = this.#layout;
    const more = Object.keys(extras).some((id) => this.#appeared.has(id)) ? lanes[1] - lanes[0] : 0;
    const before = this.#appeared.has('asked') ? askedRoom : 0;
    const [width, height] = [this.#layout.width + (swap ? before + more : 0), this.#layout.height + (swap ? 0 : before + more)];
    this.#frame.style.aspectRatio = `${width} / ${height}`;
    this.#svg = s('svg', {viewBox: `${swap ? -before : 0} ${swap ? 0 : -before} ${width} ${height}`, role: 'img',
      'aria-label': `The gateway publishes to the exchange ${eventExchange}; it feeds the queues of the services order, inventory and logging, which each have a database. The order service calls inventory through a queue of calls and a queue of replies, and relays its events to the exchange.`});
    const hatch = s('pattern', {id: 'hatch', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)'},
      s('rect', {width: 2, height: 6, class: 'hatch'}));
    this.#layer = s('g', {});
    this.#nodes.clear();
    this.#edges.clear();
    const tip = s('marker', {id: 'tip', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: arrow, markerHeight: arrow, markerUnits: 'userSpaceOnUse', orient: 'auto-start-reverse'},
      s('path', {d: 'M0 0L8 4L0 8z', class: 'tip'}));
    const lines = this.#edgesShown().flatMap((edge) => this.#edge(edge));
    const boxes = Object.entries(this.#shown()).map(([id, node]) => this.#node(id, node));
    this.#svg.append(s('defs', {}, hatch, tip), ...lines, ...boxes, this.#layer);
    this.#frame.replaceChildren(this.#svg);
    for (const name of Object.keys(this.#known.queues)) this.#showQueue(name);
    for (const name of Object.keys(this.#known.services)) this.#showService(name);
    this.#showExtras();
  }

  #sizeOf(kind) { return this.#layout[{queue: 'queue', 'call queue': 'call'}[kind] ?? 'node']; }

  // border is where a line from a point to a node meets the node.
  #border([fromX, fromY], node) {
    const [x, y] = this.#place(node);
    const [width, height] = this.#sizeOf(node.kind);
    const part = Math.min(width / 2 / Math.abs(x - fromX), height / 2 / Math.abs(y - fromY));
    return [x + (fromX - x) * part, y + (fromY - y) * part];
  }

  #edge({ends: [from, to], kind = 'flow', via = [], label, both = false}) {
    const all = this.#shown();
    const points = [this.#place(all[from]), ...via.map(([stage, lane]) => this.#at(stage, lane)), this.#place(all[to])];
    const drawn = [this.#border(points[1], all[from]), ...points.slice(1, -1), this.#border(points.at(-2), all[to])];
    const line = s('polyline', {points: drawn.map((p) => p.map((n) => n.toFixed(1)).join(',')).join(' '), class: `edge ${kind}`, 'marker-end': 'url(#tip)', ...(both ? {'marker-start': 'url(#tip)'} : {})});
    this.#edges.set(`${from}>${to}`, {line, points});
    this.#edges.set(`${to}>${from}`, {line, points: points.toReversed()});
    if (!label || this.#layout.swap) return [line]; // there is no room for words between narrow columns
    const [, a, b] = points;
    return [line, s('text', {x: (a[0] + b[0]) / 2, y: a[1] - 5, class: 'edge-label'}, label)];
  }

  #node(id, node) {
    const {name, kind, title} = node;
    const [x, y] = this.#place(node);
    const [w, height] = this.#sizeOf(kind);
    const what = {'REST + gRPC': 'gateway', 'dead letters': 'letters'}[kind] ?? kind;
    const shape = {
      exchange: () => s('path', {d: `M${x - w / 2} ${y}l12 ${-height / 2}h${w - 24}l12 ${height / 2}l-12 ${height / 2}h${24 - w}z`}),
      database: () => s('path', {d: `M${x - w / 2} ${y - height / 2 + 5}c0-7 ${w}-7 ${w} 0v${height - 10}c0 7 ${-w} 7 ${-w} 0z`}),
    }[kind]?.() ?? s('rect', {x: x - w / 2, y: y - height / 2, width: w, height, rx: kind.endsWith('queue') ? 0 : 3});
    const group = s('g', {class: `node ${what}`}, shape);
    if (kind === 'call queue') {
      const text = s('text', {x, y: y + 4, class: 'node-kind'}, name);
      group.append(s('title', {}, title), text);
      this.#nodes.set(id, {group, second: text, kind, x, y});
      return group;
    }
    if (kind === 'queue') { // slots, the way queues are drawn everywhere
      for (const slot of [6, 12, 18]) group.append(s('line', {x1: x + w / 2 - slot, x2: x + w / 2 - slot, y1: y - height / 2, y2: y + height / 2, class: 'slot'}));
    }
    const middle = kind === 'queue' ? x - 9 : x;
    // A queue has the keys by which it is bound to the exchange, if there is room for them.
    const bound = kind === 'queue' && !this.#layout.swap ? bindings[name] ?? [] : [];
    const lineHeight = bound.length > 0 ? 11.5 : 14;
    const line = (i, className, text) => s('text', {x: middle, y: y + 4 + (i - (bound.length + 1) / 2) * lineHeight, class: className}, text);
    const second = line(1, 'node-kind', kind);
    group.append(line(0, 'node-name', name), second, ...bound.map((key, i) => line(2 + i, 'node-kind binding', key)));
    this.#nodes.set(id, {group, second, kind, x, y});
    return group;
  }

  // setQueue shows how many messages wait in a queue, and how many its service has in hand. Retry queues are seen once they
  // hold something.
  setQueue(name, messages, inHand) {
    const before = this.#known.queues[name]?.messages ?? 0;
    this.#known.queues[name] = {messages, inHand};
    if (!retryOf(name)) {
      this.#showService(name);
      this.#showQueue(name);
      return;
    }
    if (messages > 0) this.#appeared.add('retry');
    if (before > 0 !== messages > 0) this.#draw();
    this.#showExtras();
  }

  #showQueue(name) {
    const node = this.#nodes.get(`${name}.queue`);
    if (!node) return;
    const {messages} = this.#known.queues[name];
    node.second.textContent = messages > 0 ? `${messages} waiting` : node.kind;
    node.group.classList.toggle('queued', messages > 0);
  }

  // setDeadLetters shows how many dead letters wait for a person, and from which queues; once there were any.
  setDeadLetters(open, sources) {
    const changed = sources.join() !== this.#known.letters.sources.join();
    this.#known.letters = {open, sources};
    if (open > 0) this.#appeared.add('letters');
    if (changed) this.#draw();
    this.#showExtras();
  }

  #showExtras() {
    const retrying = Object.entries(this.#known.queues).reduce((sum, [name, {messages}]) => sum + (retryOf(name) ? messages : 0), 0);
    for (const [id, n, text] of [['retry', retrying, `${retrying} waiting`], ['letters', this.#known.letters.open, `${plural(this.#known.letters.open, 'waits', 'wait')}`]]) {
      const node = this.#nodes.get(id);
      if (!node) continue;
      node.second.textContent = n > 0 ? text : 'empty';
      node.group.classList.toggle('queued', n > 0);
    }
  }

  // setService shows how a service is: ready, waiting for something that it needs, or stopped.
  setService(name, state) {
    this.#known.services[name] = state;
    this.#showService(name);
  }

  #showService(name) {
    const node = this.#nodes.get(name);
    if (!node) return;
    const state = this.#known.services[name] ?? 'ready';
    const inHand = this.#known.queues[name]?.inHand ?? 0;
    // A service that is ready has something in hand for moments only.
    node.second.textContent = state === 'ready' ? node.kind : state === 'waiting' && inHand > 0 ? `waits, ${inHand} in hand` : state;
    node.group.classList.toggle('down', state === 'stopped');
    node.group.classList.toggle('waiting', state === 'waiting');
  }

  // stop ends what play has not shown yet.
  stop() { this.#round++; }

  // play shows an event on its way, and returns when it has arrived.
  async play(key, speed = slow) {
    const round = this.#round;
    if (key === keys.OrderCancelled) this.appear('asked');
    for (const branches of pathsOf(key)) {
      if (round !== this.#round) return;
      await Promise.all(branches.map((path) => this.#move(path, speed)));
    }
  }

  // setSlowness makes what playPath shows so many times slower.
  setSlowness(times) { this.#slowness = times; }

  // playPath shows a message on a path of nodes, and returns when it has arrived.
  playPath(path) { return this.#move(path, {perUnit: slow.perUnit * this.#slowness, min: slow.min * this.#slowness}); }

  // mark marks the nodes of a path, or none.
  mark(path) {
    for (const [id, {group}] of this.#nodes) group.classList.toggle('marked', Boolean(path?.includes(id)));
  }

  // passBy shows one event of many: fast, and not at all if there are too many.
  passBy(key) {
    const now = performance.now();
    if (document.hidden || this.#tokens >= maxTokens || now - this.#passed < passInterval) return;
    this.#passed = now;
    if (key === keys.OrderCancelled) this.appear('asked');
    for (const branches of pathsOf(key)) for (const path of branches) this.#move(path, quick);
  }

  // move moves a token along a path of nodes.
  #move(path, speed) {
    const points = [];
    const stops = []; // when which node or edge is passed, in ms
    let time = 0;
    for (let i = 0; i + 1 < path.length; i++) {
      const edge = this.#edges.get(`${path[i]}>${path[i + 1]}`);
      if (!edge) continue; // of a service that the picture does not have
      stops.push({time, edge, node: this.#nodes.get(path[i])});
      edge.points.forEach((p, n) => {
        if (n > 0) time += Math.max(speed.min / (edge.points.length - 1), Math.hypot(p[0] - edge.points[n - 1][0], p[1] - edge.points[n - 1][1]) * speed.perUnit);
        if (n > 0 || i === 0) points.push({x: p[0], y: p[1], time});
      });
    }
    stops.push({time, node: this.#nodes.get(path.at(-1))});
    for (const {time: when, node, edge} of stops) setTimeout(() => light(node?.group, reducedMotion.matches ? edge?.line : null), when);
    this.#tokens++;
    const token = s('rect', {x: -6, y: -6, width: 12, height: 12, rx: 1.5, class: 'token'});
    if (!reducedMotion.matches && !document.hidden) {
      this.#layer.append(token);
      token.animate(points.map((p) => ({transform: `translate(${p.x}px, ${p.y}px)`, offset: p.time / time})), {duration: time, fill: 'forwards'});
    }
    return new Promise((resolve) => {
      setTimeout(() => {
        token.remove();
        this.#tokens--;
        resolve();
      }, time);
    });
  }
}

// light marks elements for a moment.
function light(...elements) {
  for (const element of elements) {
    if (!element) continue;
    element.classList.add('on');
    clearTimeout(element.off);
    element.off = setTimeout(() => element.classList.remove('on'), 450);
  }
}
