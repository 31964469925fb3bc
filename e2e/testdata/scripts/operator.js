import {answerWith, element, equal, eventStream, json, text, until} from './check.js';

const status = {services: [{name: 'order', ready: true}], queues: [], outboxes: []};

// load runs the page's scripts with a shop that takes the tokens in valid, and returns the calls.
async function load(valid) {
  const calls = answerWith(({path, headers}, {signal}) => {
    if (path === '/catalogue') return json({items: []});
    if (!valid.includes(headers.Authorization)) return json({message: 'the token is not valid'}, 401);
    if (path.startsWith('/v1/events:stream')) return eventStream(signal).response;
    if (path.startsWith('/v1/status')) return json(status);
    return json({events: [], dead_letters: [], items: [], next_page_token: ''});
  });
  await import('/page/app.js');
  await until(() => text('connection') === 'live');
  return calls;
}

// The page looked for a token when it was loaded, and never again: it stayed a customer's, with the token in its address.
export async function anOperatorLinkIsTakenByATabThatShowsThePage() {
  await load(['Bearer good']);
  equal(text('role'), 'customer');
  location.hash = '#token=wrong';
  await until(() => text('operator-hint').includes('not valid'));
  equal([location.hash, text('role')], ['', 'customer']);
  location.hash = '#token=good';
  await until(() => text('role') === 'operator' && !element('log').hidden);
  equal([location.hash, element('operator-hint').hidden], ['', true]);
}

// The header said for ever what it had said last, "connecting" or "a service is down", and each second another call was refused.
export async function whoIsSignedOutIsToldWhatTheShopIsLikeAndAsksNoMore() {
  const valid = ['Bearer good'];
  const calls = await load(valid);
  const operators = () => calls.filter(({path}) => path !== '/catalogue').length;
  status.services[0].ready = false;
  location.hash = '#token=good';
  await until(() => text('connection') === 'a service is down' && text('log-state').includes('events/s'));
  valid.pop();
  await until(() => text('role') === 'operator, signed out');
  await until(() => text('connection') === 'live');
  const before = [operators(), calls.length];
  document.dispatchEvent(new Event('visibilitychange')); // as if the tab had been seen again: all is read that is read at all
  await until(() => calls.length > before[1]);
  equal([operators(), text('connection'), element('health-body').textContent.includes('order')], [before[0], 'live', true]);
}

// Whoever had a valid token without the role was shown the operators' page, on which each second another login failed.
export async function whoIsNoOperatorIsToldSoAndAsksNoMore() {
  const calls = await load(['Bearer customer']);
  const answer = globalThis.fetch;
  globalThis.fetch = (path, options) => (options.headers.Authorization && path !== '/catalogue'
    ? answer(path, options).then(() => json({message: 'no role', details: [{reason: 'ROLE_REQUIRED'}]}, 403)) : answer(path, options));
  location.hash = '#token=customer';
  await until(() => text('operator-hint').includes('valid, but not an operator’s'));
  await until(() => calls.filter(({path}) => path === '/catalogue').length > 1);
  equal([text('role'), element('log').hidden, calls.filter(({headers}) => headers.Authorization).length], ['customer', true, 1]);
}

// While no tokens were checked, because too many had been wrong, every token opened the operators' page.
export async function aTokenThatIsNotCheckedYetOpensNothing() {
  await load(['Bearer good']);
  const answer = globalThis.fetch;
  const seen = []; // at each call with the token
  globalThis.fetch = (path, options) => {
    if (options.headers.Authorization) seen.push([text('role'), element('log').hidden]);
    return seen.length === 1 ? json({message: 'too many tokens from this address were not valid', details: [{reason: 'TOO_MANY_FAILED_LOGINS'}]}, 429, {'Retry-After': '1'})
      : answer(path, options);
  };
  location.hash = '#token=good';
  await until(() => seen.length > 1);
  equal(seen.slice(0, 2), [['customer', true], ['customer', true]]);
  await until(() => text('role') === 'operator' && !element('log').hidden);
}

export async function aStreamOfTheLogThatIsRefusedIsNoConnection() {
  const valid = ['Bearer good'];
  await load(valid);
  const answer = globalThis.fetch;
  globalThis.fetch = (path, options) => (path.startsWith('/v1/events:stream') ? json({message: 'not for you'}, 403) : answer(path, options));
  location.hash = '#token=good';
  await until(() => text('log-state') === 'Unavailable' && text('connection') === 'live');
}

export async function aStreamOfTheLogForWhichThereIsNoRoomSaysWhy() {
  await load(['Bearer good']);
  const answer = globalThis.fetch;
  globalThis.fetch = (path, options) => (path.startsWith('/v1/events:stream') ? json({message: 'too many streams are open'}, 429) : answer(path, options));
  location.hash = '#token=good';
  await until(() => text('log-state') === 'reconnecting: too many streams are open');
}
