import {answerWith, element, equal, json, text, until} from './check.js';

const id = '01980000-0000-7000-8000-0123456789ab';
const order = {id, state: 'PENDING', total_items: 1, created_at: '2026-01-02T03:04:05Z'};
const item = {id: 1, product_name: 'Laptop', quantity: 50, on_hand: 50, reserved: 0, price: {currency_code: 'USD', units: '1000'}};

// place loads the page's scripts, places an order, and returns its key. The page says that the order is on its way.
async function place() {
  const calls = answerWith(({path, method}) => {
    if (path === '/catalogue') return json({items: [item]});
    if (method === 'POST') return json(order, 202);
    return new Promise(() => {});
  });
  await import('/page/app.js');
  await until(() => element('products').children.length === 1);
  element('customer_name').value = 'Ada';
  element('customer_email').value = 'ada@example.org';
  document.querySelector('[data-step="1"]').click();
  element('order').requestSubmit();
  await until(() => text('slip-state') === 'PENDING');
  return calls.find(({method}) => method === 'POST').headers['Idempotency-Key'];
}

const refuse = () => { throw new DOMException('it may not be used', 'SecurityError'); };

export async function anOrderIsPlacedWhereStorageIsBlocked() {
  for (const storage of ['localStorage', 'sessionStorage']) Object.defineProperty(globalThis, storage, {get: refuse});
  await place();
  equal(location.hash, `#order=${id}`);
}

export async function anOrderIsShownThatStorageHasNoRoomFor() {
  Storage.prototype.setItem = refuse;
  await place();
  equal(location.hash, `#order=${id}`);
}

export async function anOrderIsPlacedFromAPageThatCameOverPlainHTTP() {
  Object.defineProperty(crypto, 'randomUUID', {value: undefined});
  const key = await place();
  equal([key.length >= 16 && key.length <= 255, /^[!-~]+$/.test(key)], [true, true]);
}
