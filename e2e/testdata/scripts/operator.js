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

export async function aStreamOfTheLogThatIsRefusedIsNoConnection() {
  const valid = ['Bearer good'];
  await load(valid);
  const answer = globalThis.fetch;
  globalThis.fetch = (path, options) => (path.startsWith('/v1/events:stream') ? json({message: 'not for you'}, 403) : answer(path, options));
  location.hash = '#token=good';
  await until(() => text('log-state') === 'Unavailable' && text('connection') === 'live');
}
