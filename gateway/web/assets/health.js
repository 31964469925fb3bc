// Health: services, queues, outboxes, and the rate of orders over the last minute.
import {asOperator, hasToken, Refusal} from './api.js';
import {$, duration, h, s, setText} from './dom.js';
import {picture} from './flow.js';

const interval = 1000;
const samples = 60;
const width = 300;
const height = 64;

const rates = [];
let timer;
let letters; // how many dead letters the log has not stored yet

const services = h('tbody');
const queues = h('tbody');
const outboxes = h('tbody');
const line = s('polyline', {class: 'chart-line'});
const area = s('polygon', {class: 'chart-area'});
const chart = s('svg', {viewBox: `0 0 ${width} ${height}`, class: 'chart', role: 'img', preserveAspectRatio: 'none', 'aria-label': 'Orders a second over the last minute'});
const rate = h('strong', {class: 'rate'}, '–');
const scale = h('span', {class: 'scale code'});
let onDeadLetters = () => {};
let onState = () => {};

export function start(options) {
  ({onDeadLetters, onState} = options);
  chart.append(area, line);
  $('health-body').append(h('div', {class: 'health'},
    h('div', {class: 'health-rate'}, h('h3', {}, 'Orders decided'), h('p', {}, rate, ' a second'), h('div', {class: 'chart-frame'}, chart, scale)),
    table('Services', ['service', 'state'], services),
    table('Queues', ['queue', 'waiting', 'in hand', 'consumers'], queues),
    table('Outboxes', ['service', 'pending', 'oldest'], outboxes)));
  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : refresh()));
  refresh();
}

export function refreshSoon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, 100);
}

const table = (caption, head, rows) => h('div', {}, h('table', {}, h('caption', {}, caption),
  h('thead', {}, h('tr', {}, ...head.map((text) => h('th', {scope: 'col'}, text)))), rows));

async function refresh() {
  clearTimeout(timer);
  if (document.hidden || !hasToken()) return;
  try {
    show(await asOperator('GET', '/v1/status'));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (hasToken()) fill(services, [['gateway', error.message]]);
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, interval);
}

function show(status) {
  fill(services, status.services.map((service) => [service.name, {
    ready: 'ready', stopped: `down: ${service.detail}`, waiting: `waits: ${service.detail || 'no response'}`,
  }[stateOf(service)]]), (row, i) => {
    row.className = stateOf(status.services[i]);
  });
  for (const service of status.services) picture.setService(service.name, stateOf(service));
  onState(status.services.every(({ready}) => ready) ? 'live' : 'down');
  fill(queues, status.queues.map(({name, messages, in_hand: inHand, consumers}) => [name, messages, inHand, consumers]));
  for (const {name, messages, in_hand: inHand} of status.queues) picture.setQueue(name, messages, inHand);
  fill(outboxes, status.outboxes.map(({service, pending, oldest_age_ms: age}) => [service, pending, pending ? duration(age) : '–']));
  const dead = status.queues.find(({name}) => name === 'dead-letter')?.messages;
  if (dead !== letters) onDeadLetters();
  letters = dead;
  plot(status.orders_per_second);
}

// stateOf tells a service that does not answer from one that runs, and waits for what it needs.
function stateOf({ready, detail}) {
  if (ready) return 'ready';
  return /^(not reachable|no answer)/.test(detail) ? 'stopped' : 'waiting';
}

// fill puts the cells of rows into a table's body, and changes only what has changed.
function fill(body, rows, mark = () => {}) {
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((cells, i) => {
    const row = body.rows[i] ?? body.appendChild(h('tr', {}, h('th', {scope: 'row'}), ...cells.slice(1).map(() => h('td'))));
    cells.forEach((text, n) => setText(row.cells[n], text));
    mark(row, i);
  });
}

function plot(now) {
  setText(rate, now === undefined ? '–' : now.toFixed(now < 10 ? 1 : 0));
  rates.push(now ?? 0);
  if (rates.length > samples) rates.shift();
  const highest = Math.max(1, ...rates);
  setText(scale, highest.toFixed(highest < 10 ? 1 : 0));
  const points = rates.map((value, i) => `${((i + samples - rates.length) * width / (samples - 1)).toFixed(1)},${(height - 2 - value / highest * (height - 6)).toFixed(1)}`);
  line.setAttribute('points', points.join(' '));
  area.setAttribute('points', [`${points[0].split(',')[0]},${height}`, ...points, `${width},${height}`].join(' '));
}
