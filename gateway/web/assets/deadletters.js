// Dead letters: messages that could not be handled, why, and buttons to redrive or discard them.
import {asOperator, hasToken, Refusal} from './api.js';
import {keys} from './contracts.js';
import {picture} from './flow.js';
import {$, disable, h, moment, plural, setText, short} from './dom.js';

const interval = 5000;
const perPage = 50;
const lookAfter = 1500; // ms after a redrive
const maxCounted = 1000; // as many are counted, filtered, and decided at once
const body = $('dead-letters-body');
const note = h('p', {class: 'outcome', role: 'status'});
const list = h('ul', {class: 'letters'});
const more = h('button', {type: 'button', onclick: showMore}, 'Show more');
let timer;
let open = []; // the open dead letters, the newest first
let shown = perPage;
let deciding = false;

export function start() {
  body.append(list, h('p', {class: 'actions'}, more), note);
  $('letters-filter').addEventListener('submit', (event) => event.preventDefault());
  $('letters-text').addEventListener('input', show);
  for (const verb of ['redrive', 'discard']) $(`letters-${verb}`).addEventListener('click', () => decideAll(verb));
  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : refresh()));
  refresh();
}

export function refreshSoon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, 200);
}

const readOpen = (size) => asOperator('GET', `/v1/dead-letters?state=OPEN&page_size=${size}`);

async function refresh() {
  clearTimeout(timer);
  if (document.hidden || !hasToken()) return;
  try {
    let page = await readOpen(perPage);
    if (page.next_page_token) page = await readOpen(maxCounted); // there are seldom so many
    open = page.dead_letters;
    picture.setDeadLetters(open.length, [...new Set(open.map(({source_queue: queue}) => queue))].sort());
    show();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (list.querySelector('[data-id]') === null) list.replaceChildren(h('li', {class: 'empty'}, 'Dead letters are unavailable: the logging service does not answer.'));
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, interval);
}

function matching() {
  const text = $('letters-text').value.trim().toLowerCase();
  return open.filter((letter) => [letter.source_queue, letter.routing_key, letter.reason, letter.order_id].some((value) => value.toLowerCase().includes(text)));
}

// show keeps the rows of the letters that stay: one of them may be open. If what has the focus goes, the focus moves to the next letter,
// and to no button there: a key that is held would decide about a letter that nobody has read.
function show() {
  const focused = $('dead-letters').contains(document.activeElement) ? document.activeElement : null;
  const behind = [...list.children];
  behind.splice(0, behind.indexOf(focused?.closest('.letters > li')) + 1);
  const found = matching();
  const letters = found.slice(0, shown);
  list.querySelector('.empty')?.remove();
  const wanted = new Set(letters.map(({id}) => id));
  for (const row of [...list.children]) if (!wanted.has(row.dataset.id)) row.remove();
  letters.forEach((letter, i) => {
    const row = list.querySelector(`[data-id="${letter.id}"]`) ?? newRow(letter);
    if (list.children[i] !== row) list.insertBefore(row, list.children[i] ?? null);
  });
  if (open.length === 0) list.append(h('li', {class: 'empty'}, 'No open dead letters. Messages that cannot be handled are kept here until an operator redrives or discards them.'));
  else if (found.length === 0) list.append(h('li', {class: 'empty'}, 'No open dead letter has this text.'));
  $('letters-filter').hidden = open.length === 0;
  more.parentElement.hidden = letters.length === found.length;
  const total = `${open.length}${open.length === maxCounted ? ' or more' : ''} open`;
  setText($('letters-count'), found.length === open.length ? total : `${found.length} of ${total}`);
  for (const verb of ['redrive', 'discard']) disable($(`letters-${verb}`), deciding || found.length === 0);
  if (!focused || focused.checkVisibility()) return;
  const next = behind.find((row) => row.isConnected)?.querySelector('summary');
  (next ?? $('dead-letters')).focus({preventScroll: true});
}

function showMore() {
  const first = shown;
  shown += perPage;
  show();
  if (more.parentElement.hidden) list.children[first]?.querySelector('summary').focus();
}

function newRow(letter) {
  const payload = h('pre', {class: 'payload', tabindex: 0, 'aria-label': 'Payload', hidden: true});
  const problem = h('p', {class: 'reason', role: 'status'});
  const details = h('details', {ontoggle: () => details.open && payload.hidden && read(letter, payload, problem)},
    h('summary', {}, 'Payload'), problem, payload);
  return h('li', {'data-id': letter.id},
    h('p', {class: 'letter-what'}, `No. ${letter.id}, `, h('span', {class: 'code'}, letter.routing_key),
      ` of queue ${letter.source_queue}, ${moment(letter.created_at)}, attempts: ${letter.attempts}`, ...ofOrder(letter)),
    h('p', {class: 'reason'}, letter.reason),
    details,
    h('p', {class: 'actions'},
      h('button', {type: 'button', onclick: () => decide(letter, 'redrive')}, 'Redrive'),
      h('button', {type: 'button', onclick: () => decide(letter, 'discard')}, 'Discard')));
}

const ofOrder = ({order_id: id}) => (id ? [', order ', h('a', {href: `#order=${id}`, class: 'code', title: id}, short(id))] : []);

// read reads a letter's payload. If it cannot be read it is tried again when the letter is opened again.
async function read(letter, payload, problem) {
  try {
    const whole = await asOperator('GET', `/v1/dead-letters/${letter.id}`);
    payload.textContent = whole.payload ? JSON.stringify(whole.payload, null, 2) : printable(atob(whole.body));
    payload.hidden = false;
    setText(problem, '');
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    setText(problem, `The payload cannot be read: ${error.message}. Close it and open it to try again.`);
  }
}

// printable is a body in ASCII, with other bytes escaped.
const printable = (bytes) => [...bytes].map((c) => (c >= ' ' && c <= '~' ? c : `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`)).join('');

// rejects says whether an order becomes REJECTED with a letter that is discarded: the order service would have decided it. What
// somebody sent who may not place orders is none.
const rejects = ({source_queue: queue, routing_key: key, order_id: id, reason}) =>
  queue === 'order' && key === keys.OrderPlaced && id && !reason.startsWith("the broker's user ");

// costs says what it costs to discard letters.
function costs(letters) {
  const orders = new Set(letters.filter(rejects).map(({order_id: id}) => id)).size;
  return orders === 0 ? '' : ` ${plural(orders, 'order becomes', 'orders become')} REJECTED, if not decided yet.`;
}

async function decide(letter, verb) {
  if (verb === 'discard' && rejects(letter) && !window.confirm(`Discard dead letter ${letter.id}?${costs([letter])}`)) return;
  try {
    await asOperator('POST', `/v1/dead-letters/${letter.id}:${verb}`, {});
    if (verb === 'redrive') await showRedriven(letter);
    else setText(note, `Dead letter ${letter.id} was discarded.`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    setText(note, `Failed: ${error.message}.`);
  }
  refresh();
}

// showRedriven says what became of a letter that was redriven: the same message may be a dead letter again, at once or
// after its attempts.
async function showRedriven(letter) {
  const sent = `Dead letter ${letter.id} was sent to queue ${letter.source_queue} again`;
  const order = ofOrder(letter);
  note.replaceChildren(sent, ...order, '. If it still cannot be handled, it comes back here.');
  if (!letter.message_id) return;
  await new Promise((resolve) => { setTimeout(resolve, lookAfter); });
  try {
    const {dead_letters: again} = await asOperator('GET', `/v1/dead-letters?${new URLSearchParams({state: 'OPEN', message_id: letter.message_id})}`);
    if (again.length > 0) note.replaceChildren(sent, ...order, `. It came back as dead letter ${again[0].id}.`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error; // the list says it in time
  }
}

// decideAll asks once more, and decides about the letters that are found one after the other.
async function decideAll(verb) {
  const letters = matching();
  const what = verb === 'redrive' ? ['Redrive', 'redriven'] : ['Discard', 'discarded'];
  if (!window.confirm(`${what[0]} ${plural(letters.length, 'dead letter')}?${verb === 'discard' ? costs(letters) : ''}`)) return;
  deciding = true;
  const failed = [];
  for (const [i, letter] of letters.entries()) {
    setText(note, `${i} of ${letters.length} ${what[1]} …`);
    try {
      await asOperator('POST', `/v1/dead-letters/${letter.id}:${verb}`, {});
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      failed.push(`No. ${letter.id}: ${error.message}`);
    }
  }
  deciding = false;
  setText(note, `${letters.length - failed.length} of ${plural(letters.length, 'dead letter')} ${what[1]}. ${failed.slice(0, 3).join('; ')}`);
  refresh();
}
