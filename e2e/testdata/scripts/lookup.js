import * as lookup from '/page/lookup.js';
import {answerWith, element, equal, json, until} from './check.js';

// The browser refused addresses that the shop takes, and nothing was looked up.
export async function everyAddressOfACustomerIsLookedUp() {
  const calls = answerWith(() => json({items: [], orders: [], next_page_token: ''}));
  lookup.start();
  element('lookup').hidden = false;
  element('lookup-email').value = 'jürgen@example.org';
  element('lookup-form').requestSubmit();
  await until(() => calls.some(({path}) => path.startsWith('/v1/orders?')));
  equal(new URLSearchParams(calls.find(({path}) => path.startsWith('/v1/orders?')).path.split('?')[1]).get('customer_email'), 'jürgen@example.org');
}

// The button hid itself while it read, and the keyboard began at the top of the page again.
export async function showMoreKeepsTheFocus() {
  element('lookup').hidden = false;
  let release;
  answerWith(async ({path}) => {
    if (!path.startsWith('/v1/operator-actions')) return json({items: [], next_page_token: ''});
    const page = Number(new URLSearchParams(path.split('?')[1]).get('page_token') || 1);
    if (page > 1) await new Promise((resolve) => { release = resolve; });
    return json({operator_actions: [{acted_at: '2026-01-02T03:04:05Z', method: '/a/B', target: `item ${page}`}], next_page_token: page < 3 ? String(page + 1) : ''});
  });
  lookup.start();
  element('lookup-actions').open = true;
  const rows = () => element('lookup-actions').querySelectorAll('li').length;
  const more = element('lookup-actions').querySelector('button');
  await until(() => rows() === 1 && more.checkVisibility());
  more.focus();
  for (const page of [2, 3]) {
    more.click();
    await until(() => release);
    equal([document.activeElement === more, more.getAttribute('aria-disabled')], [true, 'true'], `while page ${page} is read`);
    release();
    release = null;
    await until(() => rows() === page && more.getAttribute('aria-disabled') === 'false');
  }
  equal([more.checkVisibility(), document.activeElement.textContent], [false, '3 found.']);
}
