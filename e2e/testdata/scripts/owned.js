import {forgetToken, onTokenRefused, takeToken} from '/page/api.js';
import * as flow from '/page/flow.js';
import {answerWith, element, equal, eventStream, json, text, until} from './check.js';

const id = '01980000-0000-7000-8000-0123456789ab';
const owned = {id, state: 'CONFIRMED', total_items: 1, created_at: '2026-01-02T03:04:05Z'};

// open shows an order that belongs to somebody to whoever has a token, and returns the calls. Only operators with the token good see it.
async function open(token) {
  location.hash = `#token=${token}`;
  takeToken();
  onTokenRefused(forgetToken);
  const calls = answerWith(({path, headers}, {signal}) => {
    if (headers.Authorization && headers.Authorization !== 'Bearer good') return json({message: 'the token is not valid'}, 401);
    if (path.endsWith(':stream')) return eventStream(signal).response;
    if (!headers.Authorization) return json({message: 'order not found'}, 404);
    return json(path.endsWith(':cancel') ? {...owned, state: 'CANCELLED'} : {...owned, share_token: 'shared'});
  });
  flow.start({onChange() {}, onRejected() {}, onConnection() {}});
  flow.follow(id);
  return calls;
}

// Nobody but its owner saw the order, and that an operator had cancelled one was recorded nowhere.
export async function anOperatorSeesAndCancelsAnOrderOfSomebody() {
  const calls = await open('good');
  await until(() => text('slip-state') === 'CONFIRMED');
  element('cancel').click();
  await until(() => text('slip-state') === 'CANCELLED');
  let copied;
  Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (link) => { copied = link; }}}); // the browser's own may ask
  element('copy-link').click();
  await until(() => copied);
  equal(calls.filter(({headers}) => headers.Authorization !== 'Bearer good').map(({path}) => path), [], 'calls without the token:');
}

export async function whoHasAnInvalidTokenSeesWhatEverybodySees() {
  const calls = await open('wrong');
  await until(() => calls.some(({path, headers}) => path.endsWith(':stream') && !headers.Authorization));
  await until(() => text('slip-state') === 'NOT FOUND');
}

// It was shown as "Checking stock…" for as long as the page was open.
export async function anOrderThatCannotBeReadAnyMoreIsSaidToBeSo() {
  let there = false;
  answerWith(({path}, {signal}) => {
    if (path.endsWith(':stream')) return eventStream(signal).response;
    return there ? json({...owned, state: 'PENDING'}) : json({message: 'order not found'}, 404);
  });
  flow.follow(id, {...owned, state: 'PENDING'}, 12);
  const before = text('slip-detail');
  await until(() => text('slip-detail').startsWith('The order cannot be read any more.'));
  there = true; // it was a gateway of another release that did not know it
  await until(() => text('slip-detail') === before);
}
