import * as letters from '/page/deadletters.js';
import {answerWith, element, equal, json, text, until} from './check.js';
import {takeToken} from '/page/api.js';

const letter = (id) => ({id, source_queue: 'order', routing_key: 'shop.order.placed', reason: 'it is poison', order_id: '', message_id: `m${id}`, created_at: '2026-01-02T03:04:05Z', attempts: 4});

// open shows these dead letters to an operator of a shop that answers with answer(made), or with them if that is undefined.
async function open(ids, answer = () => undefined) {
  location.hash = '#token=good';
  takeToken();
  const shop = {ids};
  shop.calls = answerWith((made) => {
    const own = answer(made);
    if (own) return own;
    if (made.method === 'POST') {
      shop.ids = shop.ids.filter((id) => !made.path.includes(`/${id}:`));
      return json({});
    }
    if (made.path.includes('message_id=')) return json({dead_letters: []});
    return json(/letters\/\d+$/.test(made.path) ? {payload: {name: 'Ada'}} : {dead_letters: shop.ids.map(letter)});
  });
  letters.start();
  await until(() => rows().length === ids.length);
  return shop;
}

const rows = () => [...element('dead-letters-body').querySelectorAll('.letters > [data-id]')];
const down = () => json({message: 'the logging service is unavailable'}, 503);
const note = () => element('dead-letters-body').querySelector('.outcome').textContent;
const summary = (id) => rows().find((row) => row.dataset.id === id).querySelector('summary');
const button = (id, name) => [...rows().find((row) => row.dataset.id === id).querySelectorAll('button')].find((b) => b.textContent === name);

// "No open dead letters" stood there for as long as the logging service was down.
export async function thatThereAreNoneIsNotSaidWhileTheyCannotBeRead() {
  let up = true;
  await open([], () => (up ? undefined : down()));
  await until(() => text('dead-letters-body').includes('No open dead letters.'));
  up = false;
  letters.refreshSoon();
  await until(() => text('dead-letters-body').includes('Dead letters are unavailable'));
  equal(text('dead-letters-body').includes('No open dead letters.'), false);
  up = true;
  letters.refreshSoon();
  await until(() => text('dead-letters-body').includes('No open dead letters.'));
}

// An error was shown as the payload, and stayed there.
export async function aPayloadThatCouldNotBeReadIsReadWhenTheLetterIsOpenedAgain() {
  let up = false;
  await open(['7'], ({path}) => (path.endsWith('/7') && !up ? down() : undefined));
  const details = rows()[0].querySelector('details');
  const payload = details.querySelector('pre');
  details.open = true;
  await until(() => details.textContent.includes('The payload cannot be read: the logging service is unavailable.'));
  equal([payload.textContent, payload.hidden], ['', true]);
  up = true;
  details.open = false;
  await until(() => !payload.checkVisibility());
  details.open = true;
  await until(() => payload.textContent.includes('Ada') && !payload.hidden && !details.textContent.includes('cannot'));
}

// A redrive was said to have failed when what became of the letter could not be read.
export async function aRedriveThatSucceededIsNotSaidToHaveFailed() {
  let looked = 0;
  const shop = await open(['7'], ({path}) => (path.includes('message_id=') ? (looked++, down()) : undefined));
  button('7', 'Redrive').click();
  await until(() => looked === 1 && shop.calls.at(-1).path.includes('state=OPEN&page_size') && rows().length === 0);
  equal(note(), 'Dead letter 7 was sent to queue order again. If it still cannot be handled, it comes back here.');
}

// A button that was pressed took the focus with it when its row went: the keyboard began at the top of the page again.
export async function theFocusMovesToTheNextLetter() {
  element('dead-letters').hidden = false;
  const ids = Array.from({length: 52}, (_, i) => String(90 - i));
  const shop = await open(ids.slice(0, 3));
  for (const [id, next] of [['90', '89'], ['88', null]]) {
    button(id, 'Discard').focus();
    button(id, 'Discard').click();
    await until(() => !rows().some((row) => row.dataset.id === id));
    equal(document.activeElement === (next ? summary(next) : element('dead-letters')), true, `the focus is behind ${id}:`);
  }
  button('89', 'Redrive').focus();
  shop.ids = ids;
  letters.refreshSoon();
  await until(() => rows().length === 50);
  const more = [...element('dead-letters-body').querySelectorAll('button')].at(-1);
  more.focus();
  more.click();
  equal([rows().length, document.activeElement === summary('40')], [52, true]);
}
