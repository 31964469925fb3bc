// The products with their stock, the basket, and placing the order.
import {call, Refusal} from './api.js';
import {$, amount, h, plural, price, setText} from './dom.js';

const form = $('order');
const list = $('products');
// The stock is looked at every two seconds, less often where nothing changes.
const shortest = 2000;
const longest = 6000;
const moment = 600; // the shop gives the same answer to everyone for half a second

const items = new Map(); // by id, as the catalogue has them
let idempotencyKey = crypto.randomUUID(); // of the order that is being filled in; a new one once it has been taken
let timer;
let pause = shortest;
let again = false;
let last = '';
let placing = false;
let placed = () => {};
let reached = () => {};

// start brings the form to life. onPlaced(order, ms) is called with each order that was taken, onReached(whether) with
// each look at the stock.
export function start({onPlaced, onReached}) {
  placed = onPlaced;
  reached = onReached;
  form.addEventListener('submit', submit);
  form.addEventListener('input', () => { idempotencyKey = crypto.randomUUID(); basket(); });
  list.addEventListener('click', (event) => {
    const step = Number(event.target.closest('[data-step]')?.dataset.step);
    if (step) add(event.target.closest('.product'), step);
  });
  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : refresh()));
  refresh();
}

// refresh looks at the stock now, and then from time to time.
export async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const answer = await call('GET', '/catalogue', {cache: 'no-cache'}); // the same answer is not sent again
    const text = JSON.stringify(answer.items);
    pause = text === last ? Math.min(pause * 1.5, longest) : shortest;
    last = text;
    show(answer.items);
    $('catalogue-notice').hidden = true;
    reached(true);
  } catch (error) {
    reached(error instanceof Refusal && error.status > 0);
    $('catalogue-notice').hidden = items.size > 0;
    list.classList.add('stale'); // the figures are old
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, again ? moment : pause);
  again = false;
}

// refreshSoon looks at the stock in a moment, and once more when what the first look got is sure to be newer than the
// call; many calls are one.
export function refreshSoon() {
  pause = shortest;
  again = true;
  clearTimeout(timer);
  timer = setTimeout(refresh, 150);
}

function show(products) {
  list.classList.remove('stale');
  const known = new Set();
  for (const item of products) {
    known.add(String(item.id));
    const row = list.querySelector(`[data-id="${item.id}"]`) ?? list.appendChild(newRow(item));
    showItem(row, item, items.get(item.id));
    items.set(item.id, item);
  }
  for (const row of [...list.children]) {
    if (!known.has(row.dataset.id)) {
      items.delete(Number(row.dataset.id));
      row.remove();
    }
  }
  basket();
}

function newRow(item) {
  const row = $('product-row').content.firstElementChild.cloneNode(true);
  row.dataset.id = item.id;
  const [less, more] = row.querySelectorAll('[data-step]');
  less.setAttribute('aria-label', `One less: ${item.product_name}`);
  more.setAttribute('aria-label', `One more: ${item.product_name}`);
  const name = row.querySelector('.product-name');
  const error = row.querySelector('.field-error');
  const quantity = row.querySelector('[type=number]');
  name.id = `product-${item.id}`;
  error.id = `quantity-${item.id}-error`;
  quantity.name = `quantity.${item.id}`;
  quantity.value = '';
  quantity.setAttribute('aria-labelledby', name.id);
  quantity.setAttribute('aria-describedby', error.id);
  row.querySelector('[type=hidden]').name = `price.${item.id}`;
  return row;
}

function showItem(row, item, before) {
  setText(row.querySelector('.product-name'), item.product_name);
  setText(row.querySelector('.product-price'), price(amount(item.price), item.price.currency_code));
  for (const field of ['quantity', 'on_hand', 'reserved']) {
    const cell = row.querySelector(`[data-stock=${field}]`);
    setText(cell, item[field]);
    const changed = before && before[field] !== item[field];
    if (changed) cell.classList.add('changed');
    else cell.classList.remove('changed');
  }
  row.classList.toggle('gone', item.quantity === 0);
}

const quantityOf = (row) => row.querySelector('[type=number]');

function add(row, step) {
  const input = quantityOf(row);
  const next = Math.max(0, (Number(input.value) || 0) + step);
  input.value = next || '';
  input.dispatchEvent(new Event('input', {bubbles: true}));
}

// lines are what has been chosen.
function lines() {
  return [...list.children].flatMap((row) => {
    const input = quantityOf(row);
    const item = items.get(Number(row.dataset.id));
    const entered = input.value.trim();
    return item && (entered !== '' && entered !== '0' || input.validity.badInput) ? [{row, item, quantity: Number(entered)}] : [];
  });
}

function basket() {
  const chosen = lines();
  $('basket-lines').replaceChildren(...chosen.map(({row, item, quantity}) => h('li', {},
    h('span', {}, `${quantity} × ${item.product_name}`),
    h('span', {class: 'code'}, price(amount(item.price) * quantity, item.price.currency_code)),
    h('button', {type: 'button', class: 'quiet', 'aria-label': `Remove ${item.product_name}`, onclick: () => remove(row)}, 'Remove'))));
  const currency = chosen[0]?.item.price.currency_code;
  const pieces = chosen.reduce((sum, line) => sum + line.quantity, 0);
  const total = chosen.reduce((sum, line) => sum + amount(line.item.price) * line.quantity, 0);
  setText($('basket-total'), chosen.length ? `${plural(pieces, 'piece')}, ${price(total, currency)}` : 'empty');
}

function remove(row) {
  const input = quantityOf(row);
  input.value = '';
  input.dispatchEvent(new Event('input', {bubbles: true}));
  input.focus();
}

async function submit(event) {
  event.preventDefault();
  if (placing) return;
  const chosen = lines();
  clearErrors();
  const order = {
    customer_name: $('customer_name').value.trim(),
    customer_email: $('customer_email').value.trim(),
    order_items: chosen.map(({item, quantity}) => ({product_id: item.id, quantity, expected_unit_price: item.price})),
  };
  const misread = chosen.find(({quantity}) => !Number.isInteger(quantity));
  if (misread) {
    blame(quantityOf(misread.row), 'must be a whole number');
    focusFirstError();
    return;
  }
  busy(true);
  const start = performance.now();
  try {
    const taken = await call('POST', '/v1/orders', {body: order, headers: {'Idempotency-Key': idempotencyKey}});
    idempotencyKey = crypto.randomUUID();
    say('');
    for (const {row} of chosen) quantityOf(row).value = '';
    basket();
    placed(taken, performance.now() - start);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    explain(error, chosen);
  } finally {
    busy(false);
  }
}

function busy(is) {
  placing = is;
  $('place').toggleAttribute('aria-busy', is);
}

const say = (text) => setText($('outcome'), text);

// explain says what a refusal means, beside the fields that it is about.
function explain(refusal, chosen) {
  if (refusal.reason === 'IDEMPOTENCY_KEY_REUSED') idempotencyKey = crypto.randomUUID();
  for (const {field, description} of refusal.violations) {
    const line = /^order_items\[(\d+)\]/.exec(field);
    if (field === 'customer_name' || field === 'customer_email') blame($(field), description);
    else if (line && chosen[line[1]]) blame(quantityOf(chosen[line[1]].row), description);
    else if (field === 'order_items' && chosen.length === 0) say('The basket is empty: say of at least one product how many you want.');
    else say(`${field} ${description}`);
  }
  if (refusal.violations.length === 0) {
    const again = refusal.passing
      ? ` Place it again${refusal.retryAfter ? ` in ${plural(refusal.retryAfter, 'second')}` : ''}: however often you do, it is taken once.` : '';
    say(`The order was not placed: ${refusal.message}.${again}`);
  }
  focusFirstError();
}

function blame(input, description) {
  input.setAttribute('aria-invalid', 'true');
  $(input.getAttribute('aria-describedby')).textContent = description;
}

function clearErrors() {
  for (const input of form.querySelectorAll('[aria-invalid]')) {
    input.removeAttribute('aria-invalid');
    $(input.getAttribute('aria-describedby')).textContent = '';
  }
  say('');
}

function focusFirstError() {
  form.querySelector('[aria-invalid]')?.focus();
}
