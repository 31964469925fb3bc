// The front page. Everything that a customer needs is started at once; what operators see, when their token is known to be
// valid.
import {asOperator, forgetToken, hasToken, onTokenRefused, Refusal, takeToken} from './api.js';
import {$, setText} from './dom.js';
import * as storefront from './storefront.js';
import * as flow from './flow.js';

// The page shows the worst state of its connections.
const connections = new Map([['shop', 'connecting']]);
const words = {cut: 'reconnecting', down: 'a service is down', connecting: 'connecting', idle: 'paused', live: 'live'};

// report notes the state of a connection. One that is refused is none.
function report(what, state) {
  if (state === 'refused') connections.delete(what);
  else connections.set(what, state);
  const worst = Object.keys(words).find((word) => [...connections.values()].includes(word)) ?? 'live';
  setText($('connection'), words[worst]);
  $('connection').dataset.state = worst;
}

function followAddress() {
  const id = new URLSearchParams(location.hash.slice(1)).get('order');
  if (id) flow.follow(id);
}

let operating = false; // whether what operators see is shown

async function startOperator() {
  if (!hasToken()) return;
  try {
    await asOperator('GET', '/v1/events?page_size=1');
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.refusesToken) return;
    if (error.status === 429) { // no token is checked at the moment
      setTimeout(startOperator, (error.retryAfter ?? 1) * 1000);
      return;
    }
    // The log is down: the token may be valid, and the operator wants to see what is wrong.
  }
  if (operating) return; // two links were opened at once
  operating = true;
  setText($('role'), 'operator');
  $('operator-hint').hidden = true;
  for (const element of document.querySelectorAll('[data-operator]')) element.hidden = false;
  const operator = await import('./operator.js');
  operator.start(report);
}

// What operators see stays, as it was last: to read it again would be refused, as is what they do.
onTokenRefused((reason) => {
  forgetToken();
  setText($('role'), $('role').textContent === 'operator' ? 'operator, signed out' : 'customer');
  setText($('operator-hint'), reason === 'ROLE_REQUIRED' ? 'This token is valid, but not an operator’s. Ask whoever gives out the tokens for the role.'
    : 'This operator token is not valid here, or not any more. Open the link that the last make up printed.');
  $('operator-hint').hidden = false;
  for (const what of ['log', 'health']) report(what, 'refused');
});
takeToken();
flow.start({onChange: storefront.refreshSoon, onRejected: storefront.refill, onConnection: (state) => report('order', state)});
storefront.start({
  onPlaced(order, ms) {
    flow.follow(order.id, order, ms);
    flow.inSight();
  },
  onReached: (state) => report('shop', state),
});
addEventListener('hashchange', () => {
  if (takeToken()) {
    if (operating) location.reload(); // what operators see begins anew
    else startOperator();
  }
  followAddress();
});
followAddress();
startOperator();
