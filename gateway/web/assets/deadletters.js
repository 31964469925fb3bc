// Dead letters: messages that could not be handled, why, and buttons to redrive or discard them.
import {asOperator, Refusal} from './api.js';
import {$, clock, h, setText} from './dom.js';

const interval = 5000;
const body = $('dead-letters-body');
const note = h('p', {class: 'outcome', role: 'status'});
const list = h('ul', {class: 'letters'});
let timer;

export function start() {
  body.append(list, note);
  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : refresh()));
  refresh();
}

export function refreshSoon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, 200);
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    show((await asOperator('GET', '/v1/dead-letters?state=OPEN&page_size=50')).dead_letters);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (list.childElementCount === 0) list.replaceChildren(h('li', {class: 'empty'}, 'Dead letters are unavailable: the logging service does not answer.'));
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, interval);
}

// show keeps the rows of the letters that stay: one of them may be open.
function show(letters) {
  list.querySelector('.empty')?.remove();
  const wanted = new Set(letters.map(({id}) => id));
  for (const row of [...list.children]) if (!wanted.has(row.dataset.id)) row.remove();
  letters.forEach((letter, i) => {
    const row = list.querySelector(`[data-id="${letter.id}"]`) ?? newRow(letter);
    if (list.children[i] !== row) list.insertBefore(row, list.children[i] ?? null);
  });
  if (letters.length === 0) list.append(h('li', {class: 'empty'}, 'No open dead letters. Messages that cannot be handled are kept here until an operator redrives or discards them.'));
}

function newRow(letter) {
  const payload = h('pre', {class: 'payload', tabindex: 0, 'aria-label': 'Payload'});
  const details = h('details', {ontoggle: () => details.open && payload.textContent === '' && read(letter, payload)},
    h('summary', {}, 'Payload'), payload);
  return h('li', {'data-id': letter.id},
    h('p', {class: 'letter-what'}, h('span', {class: 'code'}, letter.routing_key), ` of queue ${letter.source_queue}, ${clock(letter.created_at)}, attempts: ${letter.attempts}`),
    h('p', {class: 'reason'}, letter.reason),
    details,
    h('p', {class: 'actions'},
      h('button', {type: 'button', onclick: () => decide(letter, 'redrive')}, 'Redrive'),
      h('button', {type: 'button', onclick: () => decide(letter, 'discard')}, 'Discard')));
}

async function read(letter, payload) {
  try {
    const whole = await asOperator('GET', `/v1/dead-letters/${letter.id}`);
    payload.textContent = whole.payload ? JSON.stringify(whole.payload, null, 2) : printable(atob(whole.body));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    payload.textContent = error.message;
  }
}

// printable is a body in ASCII, with other bytes escaped.
const printable = (bytes) => [...bytes].map((c) => (c >= ' ' && c <= '~' ? c : `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`)).join('');

async function decide(letter, verb) {
  try {
    await asOperator('POST', `/v1/dead-letters/${letter.id}:${verb}`, {});
    const sent = `Dead letter ${letter.id} was sent to queue ${letter.source_queue} again. If it still cannot be handled, it comes back here.`;
    setText(note, verb === 'redrive' ? sent : `Dead letter ${letter.id} was discarded.`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    setText(note, `Failed: ${error.message}.`);
  }
  refresh();
}
