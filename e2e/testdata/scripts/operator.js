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
