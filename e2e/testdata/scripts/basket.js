import * as storefront from '/page/storefront.js';
import {answerWith, element, equal, json, text, until} from './check.js';

const items = [
  {id: 1, product_name: 'Laptop', quantity: 50, on_hand: 50, reserved: 0, price: {currency_code: 'USD', units: '1000'}},
  {id: 2, product_name: 'Mouse', quantity: 0, on_hand: 4, reserved: 4, price: {currency_code: 'USD', units: '19', nanos: 990_000_000}},
];

// shop shows the catalogue; orders are answered by order(made).
async function shop(order) {
  const placed = [];
  const calls = answerWith((made) => (made.path === '/catalogue' ? json({items}) : order(made)));
  storefront.start({onPlaced: (answer) => placed.push(answer), onReached() {}});
  await until(() => element('products').children.length === items.length);
  return {placed, orders: () => calls.filter(({method}) => method === 'POST')};
}

const quantity = (id) => document.querySelector(`[name="quantity.${id}"]`);

function enter(id, value) {
  quantity(id).value = value;
  quantity(id).dispatchEvent(new Event('input', {bubbles: true}));
}

const busy = () => element('place').getAttribute('aria-busy') === 'true';
const basket = () => [...element('basket-lines').children].map((line) => [...line.children].slice(0, 2).map((e) => e.textContent).join(': '));
const submit = () => element('order').requestSubmit();

export async function theBasketHasWhatIsChosenAndItsTotal() {
  await shop();
  equal(text('basket-total'), 'empty');
  enter(1, '2');
  enter(2, '3');
  equal(basket(), ['2 × Laptop: 2000.00 USD', '3 × Mouse: 59.97 USD']);
  equal(text('basket-total'), '5 pieces, 2059.97 USD');
  enter(2, '0');
  equal(basket(), ['2 × Laptop: 2000.00 USD']);
}

export async function whatIsNoQuantityIsWorthNothing() {
  await shop();
  enter(1, '1');
  enter(2, '1.5');
  equal(basket(), ['1 × Laptop: 1000.00 USD', '1.5 × Mouse: –']);
  enter(2, '-3');
  equal(basket()[1], '-3 × Mouse: –');
}

// The answer to an order emptied what was entered for the next one meanwhile.
export async function whatIsEnteredWhileAnOrderIsPlacedStays() {
  let answer;
  const {placed} = await shop(() => new Promise((resolve) => { answer = () => resolve(json({id: 'x', state: 'PENDING'}, 202)); }));
  enter(1, '2');
  enter(2, '1');
  submit();
  await until(() => answer);
  enter(1, '1');
  answer();
  await until(() => placed.length === 1);
  equal([quantity(1).value, quantity(2).value], ['1', '']);
}

// Euros were added to dollars, and called dollars.
export async function theTotalIsThatOfEachCurrency() {
  const before = items[1].price;
  items[1].price = {...before, currency_code: 'EUR'};
  await shop();
  enter(1, '2');
  enter(2, '3');
  equal([text('basket-total'), text('basket-mixed').includes('cannot be ordered together')], ['5 pieces, 2000.00 USD + 59.97 EUR', true]);
  enter(1, '');
  equal([text('basket-total'), text('basket-mixed')], ['3 pieces, 59.97 EUR', '']);
  items[1].price = before;
}

export async function theButtonsChangeTheQuantityAndNotBelowZero() {
  await shop();
  const [less, more] = document.querySelectorAll('[data-id="1"] [data-step]');
  less.click();
  equal(text('basket-total'), 'empty');
  more.click();
  more.click();
  equal(text('basket-total'), '2 pieces, 2000.00 USD');
  less.click();
  less.click();
  equal([text('basket-total'), quantity(1).value], ['empty', '']);
}

// Each time the stock was read the lines were made anew, and whoever used the keyboard was back at the page's beginning.
export async function aLineKeepsTheFocusWhenTheStockIsRead() {
  await shop();
  enter(1, '1');
  const button = element('basket-lines').querySelector('button');
  button.focus();
  await storefront.refresh();
  equal([document.activeElement === button, basket()], [true, ['1 × Laptop: 1000.00 USD']]);
}

export async function aLineCanBeRemoved() {
  await shop();
  enter(1, '1');
  enter(2, '1');
  element('basket-lines').querySelector('button').click();
  equal(text('basket-total'), '1 piece, 19.99 USD');
  equal(document.activeElement === quantity(1), true);
}

export async function anOrderNamesThePricesThatWereSeen() {
  const page = await shop(() => json({id: 'o', state: 'PENDING'}, 202));
  enter(2, '3');
  element('customer_name').value = ' Ada ';
  element('customer_email').value = 'ada@example.org';
  submit();
  await until(() => page.placed.length === 1);
  equal(JSON.parse(page.orders()[0].body), {
    customer_name: 'Ada', customer_email: 'ada@example.org',
    order_items: [{product_id: 2, quantity: 3, expected_unit_price: items[1].price}],
  });
  equal(text('basket-total'), 'empty');
}

export async function theSameOrderHasTheSameKeyAndAnotherOneAnother() {
  let up = false;
  const page = await shop(() => (up ? json({id: 'o', state: 'PENDING'}, 202) : json({message: 'the broker is unavailable'}, 503, {'Retry-After': '2'})));
  const key = (n) => page.orders()[n].headers['Idempotency-Key'];
  const again = async (n) => {
    submit();
    await until(() => page.orders().length === n && !busy());
  };
  enter(1, '1');
  await again(1);
  equal(text('outcome'), 'The order may not have been placed: the broker is unavailable. Try again in 2 seconds. Retrying is safe: you will not order twice.');
  up = true;
  await again(2);
  equal(key(1), key(0), 'the key of the second try:');
  enter(1, '1');
  await again(3);
  equal(key(2) !== key(1), true, 'another order has another key:');
}

// The order had the new price under the old key: it was refused, although it had been accepted, and the next was a second one.
export async function anOrderWhoseAnswerWasLostIsSentAgainAtThePriceThatItHad() {
  let lost = true;
  const page = await shop(() => { if (lost) throw new TypeError('network error'); return json({id: 'o', state: 'PENDING'}, 202); });
  enter(1, '1');
  submit();
  await until(() => text('outcome') !== '');
  equal(text('outcome'), 'The order may not have been placed: the shop is unreachable. Try again. Retrying is safe: you will not order twice.');
  const before = items[0].price;
  items[0].price = {currency_code: 'USD', units: '1001'};
  await storefront.refresh();
  equal(text('basket-total'), '1 piece, 1001.00 USD');
  lost = false;
  for (const n of [1, 2]) {
    submit();
    await until(() => page.placed.length === n && !busy());
    enter(1, '1');
  }
  equal(page.orders().map(({body}) => JSON.parse(body).order_items[0].expected_unit_price.units), ['1000', '1000', '1001'], 'the prices:');
  equal(page.orders().map(({headers}) => headers['Idempotency-Key'] === page.orders()[0].headers['Idempotency-Key']), [true, true, false], 'the first key:');
  items[0].price = before;
}

// A customer was told to use a new key for a new order.
export async function anOrderThatWasAcceptedBeforeIsSaidToBe() {
  const page = await shop(() => json({message: 'use a new key for a new order', details: [{reason: 'IDEMPOTENCY_KEY_REUSED'}]}, 409));
  enter(1, '1');
  submit();
  await until(() => page.orders().length === 1 && !busy());
  equal(text('outcome'), 'This form has already placed an order. Place the order again only to order once more.');
}

// An order that the shop was sure not to have taken was "not placed" as much as one whose answer was lost.
export async function anOrderIsSaidNotToBePlacedOnlyIfThatIsKnown() {
  const overloaded = json({message: 'too many orders', details: [{reason: 'OVERLOADED'}]}, 503);
  const answers = [overloaded, json({message: 'internal error'}, 500), overloaded, json({message: 'slow down'}, 429)].map((answer) => () => answer.clone());
  const page = await shop(() => answers[page.orders().length - 1]());
  enter(1, '1');
  const said = [];
  for (let n = 1; n <= answers.length; n++) {
    submit();
    await until(() => page.orders().length === n && !busy());
    said.push(text('outcome').split(':')[0]);
  }
  const unknown = 'The order may not have been placed';
  equal(said, ['The order was not placed', unknown, unknown, unknown]);
}

// The second click sent an empty order, whose refusal stood under the order that was placed, or ordered once more.
export async function aDoubleClickOrdersOnce() {
  const page = await shop(() => json({id: 'o', state: 'PENDING'}, 202));
  const click = (id, detail) => element(id).dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true, detail}));
  enter(1, '1');
  for (const [n, id] of ['place', 'order-for-me'].entries()) {
    click(id, 1);
    await until(() => page.placed.length === n + 1 && !busy());
    click(id, 2);
    equal([busy(), page.orders().length, text('outcome')], [false, n + 1, ''], id);
  }
}

// unanswered sends an order that the shop has no answer to, but to the next it has. keys are those of all orders.
async function unanswered() {
  let up = false;
  let busyNow = false;
  const page = await shop(() => {
    if (busyNow) {
      busyNow = false;
      return json({message: 'too many orders', details: [{reason: 'OVERLOADED'}]}, 503);
    }
    return up ? json({id: 'o', state: 'PENDING'}, 202) : json({message: 'the broker is unavailable'}, 503);
  });
  const keys = () => page.orders().map(({headers}) => headers['Idempotency-Key']);
  enter(1, '1');
  submit();
  await until(() => text('outcome').includes('Retrying is safe'));
  up = true;
  return {page, keys, busyOnce: () => { busyNow = true; }};
}

// What was typed into the search, or typed and taken back, gave the order another key.
export async function theOrderKeepsItsKeyWhateverIsTypedIfItIsTheSame() {
  const {page, keys} = await unanswered();
  for (const [id, value] of [['find', 'mouse'], ['customer_name', 'Ada'], ['customer_name', '']]) {
    element(id).value = value;
    element(id).dispatchEvent(new Event('input', {bubbles: true}));
  }
  enter(1, '2');
  enter(1, '1');
  submit();
  await until(() => page.placed.length === 1);
  equal(keys()[1], keys()[0], 'the key of the second try:');
}

// A page that was loaded anew had another key for the order whose answer it had not waited for.
export async function theOrderKeepsItsKeyWhenThePageIsLoadedAnew() {
  const {keys, busyOnce} = await unanswered();
  element('order').replaceWith(element('order').cloneNode(true)); // without what listens to it
  quantity(1).value = '';
  const placed = [];
  const anew = await import('/page/storefront.js?anew');
  anew.start({onPlaced: (answer) => placed.push(answer), onReached() {}});
  busyOnce();
  enter(1, '1');
  submit();
  await until(() => text('outcome').startsWith('The order may not have been placed: too many orders.') && !busy());
  for (const n of [1, 2]) {
    enter(1, '1');
    submit();
    await until(() => placed.length === n);
  }
  equal(keys().map((key) => key === keys()[0]), [true, true, true, false], 'three tries, and another order, have the first key:');
}

export async function whatIsWrongIsSaidBesideItsField() {
  const details = [{field_violations: [
    {field: 'customer_name', description: 'must not be empty'},
    {field: 'customer_email', description: 'must be an email address'},
    {field: 'order_items[1].quantity', description: 'must be at most 100000'},
  ]}];
  const page = await shop(() => json({message: 'invalid', details}, 400));
  enter(1, '1');
  enter(2, '100001');
  submit();
  await until(() => page.orders().length === 1 && !busy());
  equal([text('customer_name-error'), text('customer_email-error'), text('quantity-1-error'), text('quantity-2-error')],
    ['Enter your name', 'Enter an email address', '', 'must be at most 100000']);
  equal(document.activeElement === quantity(2), true, 'the focus is on the first field that is wrong:');
  enter(2, '1.5');
  submit();
  await until(() => text('quantity-2-error') === 'Enter a whole number');
  equal([text('customer_name-error'), page.orders().length], ['', 1]);
}

export async function anEmptyOrderIsNotSentTwiceAndSaysWhatIsMissing() {
  let answer;
  const page = await shop(() => new Promise((resolve) => { answer = resolve; }));
  submit();
  submit();
  await until(() => answer);
  equal([page.orders().length, busy()], [1, true]);
  answer(json({message: 'invalid', details: [{field_violations: [{field: 'order_items', description: 'too few'}]}]}, 400));
  await until(() => text('outcome') === 'Add at least one product');
}

// After a search that found nothing the whole catalogue was read every few seconds, for as long as the page was open.
export async function whatWasReadForASearchAloneIsReadNoMore() {
  const pageOf = (n) => [1, 2].map((i) => ({...items[0], id: 2 * n + i, product_name: `Product ${2 * n + i}`}));
  let reads = 0;
  answerWith(({path}) => {
    const n = Number(new URLSearchParams(path.split('?')[1]).get('page_token') || 0);
    reads++;
    return json({items: pageOf(n), next_page_token: n < 4 ? String(n + 1) : ''});
  });
  storefront.start({onPlaced() {}, onReached() {}});
  const list = () => element('products').children.length;
  const find = (words) => {
    element('find').value = words;
    element('find').dispatchEvent(new Event('input', {bubbles: true}));
  };
  const again = async () => {
    reads = 0;
    await storefront.refresh();
    return [reads, list()];
  };
  await until(() => list() === 2);
  find('no such thing');
  await until(() => list() === 10);
  equal([await again(), await again()], [[1, 2], [1, 2]], 'in vain:');
  find('product 9');
  await until(() => list() === 10);
  equal(await again(), [5, 10], 'while what was found is shown:');
  find('');
  equal(await again(), [1, 2], 'when the search is over:');
  find('product 9');
  await until(() => list() === 10);
  enter(9, '1');
  find('');
  equal([await again(), text('basket-total')], [[5, 10], '1 piece, 1000.00 USD'], 'with what was found in the basket:');
}
