// The products with their stock, the basket, and placing the order.
import {call, Refusal} from './api.js';
import {$, amount, h, plural, price, setText} from './dom.js';
import {keep, kept} from './storage.js';

const form = $('order');
const list = $('products');
// The stock is read every two seconds, less often if nothing changes.
const minPoll = 2000;
const maxPoll = 6000;
const maxUnsearched = 12; // as many products are seen without searching
const cacheTime = 600; // the server caches the stock for half a second

const items = new Map(); // by id, as the catalogue has them
const rows = new Map(); // by id, in the list
let timer;
let pause = minPoll;
let again = false;
let held = false;
let last = '';
let shown = '[]'; // the lines that the basket shows, as text
let placing = false;
let entered = new Set(); // fields that were changed since the order that is being placed was sent
let placed = () => {};
let reached = () => {};
const firstPage = form.elements.page_token?.value ?? ''; // the token that leads to it
let pages = 1; // of the catalogue, that are shown
let searched = 0; // pages after those, that are read for the search alone
let vain = null; // what was looked for last that no product has
let own = new Set(); // the ids on the pages that are shown without a search
let next = ''; // the token of the one after them; '' if there is none
let sent = []; // what was ordered last: [id, quantity]
let attempt = null; // the order that was sent last and may have been accepted, with its prices, and its key

// An order that was sent and may have been accepted without the page hearing of it is kept in this tab, with its key: sent
// again, also after the page was loaded anew, it is the same order.
const attemptKey = 'shop.attempted';

// attemptOf returns what to send for an order, and under which key: what was sent last if the customer has changed nothing since.
// Prices do not make it another order: under the key of an order that was accepted, the same at a new price is refused.
function attemptOf(order) {
  if (!attempt || chosenIn(attempt.order) !== chosenIn(order)) attempt = {order, key: newKey()};
  keep('sessionStorage', attemptKey, JSON.stringify(attempt));
  return attempt;
}

const chosenIn = ({customer_name: name, customer_email: email, order_items: lines}) =>
  JSON.stringify([name, email, lines.map(({product_id: id, quantity}) => [id, quantity])]);

function forgetAttempt() {
  attempt = null;
  keep('sessionStorage', attemptKey, null);
}

// newKey names an order. crypto.randomUUID is not there on a page that came over plain HTTP.
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// The customer's name and address stay in this tab until it is closed.
const customerKey = 'shop.customer';
const customerFields = ['customer_name', 'customer_email'];

// start registers the form. onPlaced(order, ms) is called with each order that was accepted, onReached(state) each time
// the stock is read: 'live', 'down' (the shop answers, but without the stock), or 'cut'.
export function start({onPlaced, onReached}) {
  placed = onPlaced;
  reached = onReached;
  form.addEventListener('submit', submit);
  form.addEventListener('input', ({target}) => {
    entered.add(target);
    basket();
    keepCustomer();
  });
  $('find').addEventListener('input', find);
  $('more-products').addEventListener('click', (event) => { event.preventDefault(); more(); });
  for (const id of ['place', 'order-for-me']) $(id).addEventListener('click', once);
  $('order-for-me').addEventListener('click', orderSomething);
  for (const row of list.children) rows.set(Number(row.dataset.id), row); // they came with the page
  fillInCustomer();
  attempt = JSON.parse(kept('sessionStorage', attemptKey));
  if (attempt) attempt.unknown = true; // what was answered is not kept
  list.addEventListener('click', (event) => {
    const step = Number(event.target.closest('[data-step]')?.dataset.step);
    if (step) add(event.target.closest('.product'), step);
  });
  document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : refresh()));
  refresh();
}

// hold keeps the list as it is while an experiment runs: its products come and go.
export function hold(is) {
  held = is;
  if (!is) refreshSoon();
}

// refresh reads the stock now, and then regularly.
export async function refresh() {
  clearTimeout(timer);
  if (document.hidden || held) return;
  try {
    const products = await read();
    if (held) return;
    const text = JSON.stringify(products);
    pause = text === last ? Math.min(pause * 1.5, maxPoll) : minPoll;
    last = text;
    show(products);
    $('more-products').hidden = !next;
    $('catalogue-notice').hidden = true;
    reached('live');
  } catch (error) {
    reached(error instanceof Refusal && error.status > 0 ? 'down' : 'cut');
    setText($('catalogue-notice'), error.status === 401 ? error.message
      : items.size > 0 ? 'The stock is as it was last: inventory does not answer. You can still order.'
      : 'The catalogue is unavailable at the moment. You can still order over the API.');
    $('catalogue-notice').hidden = false;
    list.classList.add('stale'); // the stock may be outdated
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, again ? cacheTime : pause);
  again = false;
}

// read reads the pages of the catalogue that are shown.
async function read() {
  const products = [];
  const unsearched = new Set();
  let token = firstPage;
  for (let i = 0; i < pages + searched; i++) {
    const answer = await call('GET', `/catalogue${token && `?${new URLSearchParams({page_token: token})}`}`, {cache: 'no-cache'}); // 304 if nothing has changed
    products.push(...answer.items);
    if (i < pages) for (const {id} of answer.items) unsearched.add(id);
    token = answer.next_page_token;
    if (!token) break;
  }
  next = token;
  own = unsearched;
  return products;
}

// more shows one more page of the catalogue.
function more() {
  pages++;
  return refresh();
}

// refreshSoon reads the stock soon, and once more when the server's cache is sure to be newer than the call. Several calls
// are combined.
export function refreshSoon() {
  pause = minPoll;
  again = true;
  clearTimeout(timer);
  timer = setTimeout(refresh, 150);
}

function show(products) {
  list.classList.remove('stale');
  const known = new Set();
  for (const item of products) {
    known.add(item.id);
    const row = rows.get(item.id) ?? list.appendChild(newRow(item));
    rows.set(item.id, row);
    showItem(row, item, items.get(item.id));
    items.set(item.id, item);
  }
  for (const [id, row] of rows) {
    if (known.has(id)) continue;
    items.delete(id);
    rows.delete(id);
    row.remove();
  }
  $('find-product').hidden = products.length <= maxUnsearched;
  find();
  basket();
}

// find hides the products whose names do not have the words that are looked for, except those in the basket. While none has
// them the rest of the catalogue is read, once: what was read for a search alone is read no more when that is over, or was in vain.
function find() {
  const text = $('find').value.trim().toLowerCase();
  const words = text.split(/\s+/);
  if (text !== vain) vain = null;
  let found = 0;
  for (const row of list.children) {
    const name = row.querySelector('.product-name').textContent.toLowerCase();
    const wanted = words.every((word) => name.includes(word));
    if (wanted) found++;
    row.hidden = !wanted && !Number(quantityOf(row).value);
  }
  if (found === 0 && vain === null) {
    if (next) {
      searched += pages + searched;
      refresh();
      return;
    }
    vain = text;
  }
  if (searched === 0 || found > 0 && text !== '') return;
  if (lines().some(({item}) => !own.has(item.id))) pages += searched; // what is in the basket stays
  searched = 0;
}

function keepCustomer() {
  keep('sessionStorage', customerKey, JSON.stringify(Object.fromEntries(customerFields.map((id) => [id, $(id).value]))));
}

function fillInCustomer() {
  const customer = JSON.parse(kept('sessionStorage', customerKey) ?? '{}');
  for (const id of customerFields) $(id).value ||= customer[id] ?? '';
}

// refill puts what was ordered last back into the basket, after it was rejected, unless another order has been begun.
export function refill() {
  if (lines().length > 0) return;
  for (const [id, quantity] of sent) {
    const row = rows.get(id);
    if (row) quantityOf(row).value = quantity;
  }
  sent = [];
  basket();
}

function newRow(item) {
  const row = $('product-row').content.firstElementChild.cloneNode(true);
  row.dataset.id = item.id;
  const [less, more] = row.querySelectorAll('[data-step]');
  less.setAttribute('aria-label', `Decrease quantity: ${item.product_name}`);
  more.setAttribute('aria-label', `Increase quantity: ${item.product_name}`);
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
  row.classList.toggle('sold-out', item.quantity === 0);
}

const quantityOf = (row) => row.querySelector('[type=number]');

function add(row, step) {
  const input = quantityOf(row);
  const next = Math.max(0, (Number(input.value) || 0) + step);
  input.value = next || '';
  input.dispatchEvent(new Event('input', {bubbles: true}));
}

// lines are the rows with a quantity.
function lines() {
  return [...list.children].flatMap((row) => {
    const input = quantityOf(row);
    const item = items.get(Number(row.dataset.id));
    const entered = input.value.trim();
    return item && (entered !== '' && entered !== '0' || input.validity.badInput) ? [{row, item, quantity: Number(entered)}] : [];
  });
}

const isCount = (quantity) => Number.isInteger(quantity) && quantity >= 0; // somebody may have entered something else
const worth = ({item, quantity}) => (isCount(quantity) ? amount(item.price) * BigInt(quantity) : 0n);

function basket() {
  const chosen = lines();
  const content = JSON.stringify(chosen.map(({item: {id, product_name: name, price}, quantity}) => [id, name, price, quantity]));
  if (content !== shown) { // else the button that has the focus would lose it each time the stock is read
    shown = content;
    $('basket-lines').replaceChildren(...chosen.map(({row, item, quantity}) => h('li', {},
      h('span', {}, `${quantity} × ${item.product_name}`),
      h('span', {class: 'code'}, isCount(quantity) ? price(worth({item, quantity}), item.price.currency_code) : '–'),
      h('button', {type: 'button', class: 'quiet', 'aria-label': `Remove ${item.product_name}`, onclick: () => remove(row)}, 'Remove'))));
  }
  const pieces = chosen.reduce((sum, line) => sum + line.quantity, 0);
  const totals = new Map(); // by currency
  for (const line of chosen) {
    const {currency_code: currency} = line.item.price;
    totals.set(currency, (totals.get(currency) ?? 0n) + worth(line));
  }
  const sums = [...totals].map(([currency, total]) => price(total, currency)).join(' + ');
  setText($('basket-total'), chosen.length === 0 ? 'empty' : `${plural(pieces, 'piece')}, ${sums}`);
  setText($('basket-mixed'), totals.size > 1 ? 'Products in different currencies cannot be ordered together. Order them one currency at a time.' : '');
}

function remove(row) {
  const input = quantityOf(row);
  input.value = '';
  input.dispatchEvent(new Event('input', {bubbles: true}));
  input.focus();
}

// once has a double click order once: by its second click the first may have been answered, and emptied the basket.
function once(event) {
  if (event.detail < 2) return;
  event.preventDefault();
  event.stopImmediatePropagation();
}

// orderSomething orders one piece of what is in stock, as a guest if nobody has given a name.
function orderSomething() {
  const row = [...list.children].find(({dataset: {id}}) => items.get(Number(id))?.quantity > 0);
  if (!row) {
    say('Nothing is in stock at the moment.');
    return;
  }
  if (lines().length === 0) add(row, 1);
  $('customer_name').value ||= 'Guest';
  $('customer_email').value ||= 'guest@example.org';
  form.requestSubmit();
}

async function submit(event) {
  event.preventDefault();
  if (placing) return;
  if (items.size === 0) { // on a slow line somebody is faster than the catalogue, and what they chose is not known yet
    busy(true);
    await refresh();
    busy(false);
  }
  const chosen = lines();
  clearErrors();
  const order = {
    customer_name: $('customer_name').value.trim(),
    customer_email: $('customer_email').value.trim(),
    order_items: chosen.map(({item, quantity}) => ({product_id: item.id, quantity, expected_unit_price: item.price})),
  };
  const notANumber = chosen.find(({quantity}) => !Number.isInteger(quantity));
  if (notANumber) {
    setFieldError(quantityOf(notANumber.row), 'Enter a whole number');
    focusFirstError();
    return;
  }
  busy(true);
  entered = new Set();
  const start = performance.now();
  try {
    const {order: body, key} = attemptOf(order);
    const taken = await call('POST', '/v1/orders', {body, headers: {'Idempotency-Key': key}});
    forgetAttempt();
    say('');
    sent = chosen.map(({item, quantity}) => [item.id, quantity]);
    for (const {row} of chosen) if (!entered.has(quantityOf(row))) quantityOf(row).value = '';
    basket();
    placed(taken, performance.now() - start);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    describeError(error, chosen);
  } finally {
    busy(false);
  }
}

function busy(is) {
  placing = is;
  $('place').setAttribute('aria-busy', is);
}

const say = (text) => setText($('outcome'), text);

// surelyRefused are the reasons after which an order was not accepted. After other answers that are no word on it, or none, it
// may have been.
const surelyRefused = ['OVERLOADED', 'ORDER_QUEUE_UNAVAILABLE'];

// describeError shows an error beside the fields that it is about.
function describeError(refusal, chosen) {
  attempt.unknown ||= refusal.status === 0 || refusal.status >= 500 && !surelyRefused.includes(refusal.reason);
  const {unknown} = attempt;
  if (!unknown || !refusal.transient) forgetAttempt(); // what was refused may be sent at new prices
  if (refusal.reason === 'IDEMPOTENCY_KEY_REUSED') {
    say('This form has already placed an order. Place the order again only to order once more.');
    return;
  }
  for (const {field, description} of refusal.violations) {
    const line = /^order_items\[(\d+)\]/.exec(field);
    if (field === 'customer_name') setFieldError($(field), $(field).value.trim() ? description : 'Enter your name');
    else if (field === 'customer_email') setFieldError($(field), $(field).value.trim() ? 'Enter an email address such as ada@example.org' : 'Enter an email address');
    else if (line && chosen[line[1]]) setFieldError(quantityOf(chosen[line[1]].row), description);
    else if (field === 'order_items' && chosen.length === 0) say('Add at least one product');
    else say(`${field} ${description}`);
  }
  if (refusal.violations.length === 0) {
    const again = refusal.transient
      ? ` Try again${refusal.retryAfter ? ` in ${plural(refusal.retryAfter, 'second')}` : ''}. Retrying is safe: you will not order twice.` : '';
    say(`The order ${unknown ? 'may not have been' : 'was not'} placed: ${refusal.message}.${again}`);
  }
  focusFirstError();
}

function setFieldError(input, description) {
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
