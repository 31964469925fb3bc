// What operators look up: orders, what changed the stock of a product, and what operators have done. Each list goes on by a button.
import {asOperator, Refusal} from './api.js';
import {ways} from './contracts.js';
import {amount, $, disable, h, moment, plural, price, setText, short} from './dom.js';

const perPage = 20;
const ago = {'': null, '1h': 3600e3, '24h': 24 * 3600e3, '7d': 7 * 24 * 3600e3};

// List is a list that is read page by page: read(token) returns {rows, next}, and row makes a line of one of them. One page of the
// shop may have fewer rows than were asked for, or none, while others follow: pages are read on until there is something to show.
class List {
  constructor(id, {read, row, none}) {
    this.note = h('p', {class: 'lookup-note', role: 'status', tabindex: -1});
    this.rows = h('ul', {class: 'lookup-rows'});
    this.more = h('button', {type: 'button', onclick: () => this.go(), hidden: true}, 'Show more');
    this.read = read;
    this.row = row;
    this.none = none;
    $(id).append(this.rows, this.note, h('p', {class: 'actions'}, this.more));
  }

  begin(query) {
    this.query = query;
    this.token = '';
    this.run = (this.run ?? 0) + 1; // an answer to an earlier question is of no interest
    this.rows.replaceChildren();
    this.more.hidden = true;
    return this.go();
  }

  async go() {
    const {run} = this;
    const before = this.rows.childElementCount;
    disable(this.more);
    setText(this.note, 'Looking …');
    try {
      do {
        const {rows, next} = await this.read(this.query, this.token);
        if (run !== this.run) return;
        this.token = next;
        this.rows.append(...rows.map(this.row));
        setText(this.note, `Looking … ${this.rows.childElementCount} found`);
      } while (this.token && this.rows.childElementCount === before);
      const found = this.rows.childElementCount;
      setText(this.note, found ? `${found} found${this.token ? ', and there may be more' : ''}.` : this.none);
      if (!this.token && document.activeElement === this.more) this.note.focus({preventScroll: true});
      this.more.hidden = !this.token;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (run !== this.run) return;
      setText(this.note, sayRefused(error));
      this.more.hidden = before === 0;
    }
    disable(this.more, false);
  }
}

const hints = {id_suffix: 'an order’s id has only digits, letters from a to f, and dashes'};
const sayRefused = ({message, violations}) => `Not found out: ${violations.length ? violations.map((v) => hints[v.field] ?? `${v.field} ${v.description}`).join('; ') : message}.`;

const names = new Map(); // of the catalogue's products, by id: an order that was rejected has no names of its own

const item = ({quantity, product_id: id, product_name: name}) => `${quantity} × ${name || names.get(String(id)) || `product ${id}`}`;

const orderLink = (id) => h('a', {href: `#order=${id}`, class: 'code', title: `${id}: show its flow`}, short(id));

function orderRow(order) {
  const total = order.total_value ? price(amount(order.total_value), order.total_value.currency_code) : '';
  return h('li', {},
    h('span', {class: 'stamp', 'data-state': order.state}, order.state), ' ', orderLink(order.id), ' ',
    h('span', {}, moment(order.created_at)), ' ',
    h('span', {class: 'lookup-who'}, `${order.customer_name || 'erased'}${order.customer_email ? `, ${order.customer_email}` : ''}`), ' ',
    h('span', {}, `${order.order_items.map(item).join(', ')}${total ? `, ${total}` : ''}`));
}

async function readOrders({id, email, product, state, since}, token) {
  const query = new URLSearchParams({page_size: perPage});
  if (id) query.set('id_suffix', id);
  if (email) query.set('customer_email', email);
  if (product) query.set('product_id', product);
  if (state) query.set('state', state);
  if (since) query.set('placed_after', since);
  if (token) query.set('page_token', token);
  const page = await asOperator('GET', `/v1/orders?${query}`);
  return {rows: page.orders, next: page.next_page_token};
}

const movementWords = {CREATED: 'first stock', ADJUSTED: 'set by an operator', SOLD: 'sold', RESTOCKED: 'given back by a cancelled order'};

function movementRow(movement) {
  const pieces = Number(movement.quantity);
  return h('li', {},
    h('span', {class: 'code lookup-pieces'}, `${pieces > 0 ? '+' : '−'}${Math.abs(pieces)}`), ' ',
    h('span', {}, movementWords[movement.reason] ?? movement.reason), ' ', ...(movement.order_id ? [orderLink(movement.order_id), ' '] : []),
    h('span', {}, moment(movement.moved_at)));
}

async function readMovements(product, token) {
  const page = await asOperator('GET', `/v1/inventory/${product}/movements?${new URLSearchParams({page_size: perPage, page_token: token})}`);
  return {rows: page.movements, next: page.next_page_token};
}

function actionRow(action) {
  return h('li', {},
    h('span', {}, moment(action.acted_at)), ' ', h('b', {}, action.operator || 'somebody'), ' ',
    h('span', {class: 'code'}, action.method.slice(action.method.lastIndexOf('/') + 1)), ' ',
    h('span', {}, [action.target, action.detail].filter(Boolean).join(': ')));
}

async function readActions(_, token) {
  const page = await asOperator('GET', `/v1/operator-actions?${new URLSearchParams({page_size: perPage, page_token: token})}`);
  return {rows: page.operator_actions, next: page.next_page_token};
}

// fillProducts offers the products of the catalogue, in the order of their names.
async function fillProducts() {
  const products = [];
  let token = '';
  do {
    const page = await asOperator('GET', `/v1/inventory?${new URLSearchParams({page_size: 1000, page_token: token})}`);
    products.push(...page.items);
    token = page.next_page_token;
  } while (token);
  for (const {id, product_name: name} of products) names.set(String(id), name);
  products.sort((a, b) => a.product_name.localeCompare(b.product_name));
  for (const select of [$('lookup-product'), $('lookup-history')]) {
    const chosen = select.value;
    select.replaceChildren(select.options[0], ...products.map(({id, product_name: name}) => h('option', {value: id}, name)));
    select.value = [...select.options].some(({value}) => value === chosen) ? chosen : '';
  }
}

export function start() {
  const orders = new List('lookup-orders', {read: readOrders, row: orderRow, none: 'No such orders.'});
  const movements = new List('lookup-movements', {read: readMovements, row: movementRow, none: 'Its stock has never changed.'});
  const actions = new List('lookup-actions', {read: readActions, row: actionRow, none: 'Operators have done nothing yet.'});
  $('lookup-state').append(...Object.keys(ways).filter((state) => state !== 'PENDING').map((state) => h('option', {value: state}, state)));
  $('lookup-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const past = ago[$('lookup-since').value];
    orders.begin({
      id: $('lookup-id').value.trim(), email: $('lookup-email').value.trim(), product: $('lookup-product').value,
      state: $('lookup-state').value, since: past && new Date(Date.now() - past).toISOString(),
    });
  });
  $('lookup-history').addEventListener('change', ({target}) => target.value && movements.begin(target.value));
  $('lookup-actions').addEventListener('toggle', () => $('lookup-actions').open && actions.begin());
  const fill = () => fillProducts().catch((error) => { if (!(error instanceof Refusal)) throw error; }); // an order is found by its id, too
  for (const select of [$('lookup-product'), $('lookup-history')]) select.addEventListener('focus', fill, {once: true});
  fill();
}
