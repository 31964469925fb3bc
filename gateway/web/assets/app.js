// The front page. Everything that a customer needs is started at once; what operators see once their token is known
// to be good.
import {asOperator, forgetToken, hasToken, Refusal, takeToken} from './api.js';
import {$, setText} from './dom.js';
import * as storefront from './storefront.js';
import * as way from './way.js';

// The worst state of what is connected is what the page says.
const connections = new Map();
const words = {cut: 'reconnecting', connecting: 'connecting', resting: 'resting', live: 'live'};

function report(what, state) {
  connections.set(what, state);
  const worst = Object.keys(words).find((word) => [...connections.values()].includes(word)) ?? 'live';
  setText($('connection'), words[worst]);
  $('connection').dataset.state = worst;
}

function followAddress() {
  const id = new URLSearchParams(location.hash.slice(1)).get('order');
  if (id) way.follow(id);
}

async function admitOperator() {
  if (!hasToken()) return;
  try {
    await asOperator('GET', '/v1/events?page_size=1');
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 401) {
      forgetToken();
      setText($('operator-hint'), 'This operator token is not valid here. Open the link that make up printed last.');
      return;
    }
    // The log is away: the token may well be good, and the operator is here to see what is wrong.
  }
  setText($('role'), 'operator');
  $('operator-hint').hidden = true;
  for (const element of document.querySelectorAll('[data-operator]')) element.hidden = false;
  const operator = await import('./operator.js');
  operator.start(report);
}

takeToken();
way.start({onChange: storefront.refreshSoon, onConnection: (state) => report('order', state)});
storefront.start({
  onPlaced(order, ms) {
    way.follow(order.id, order, ms);
    const {top} = $('way').getBoundingClientRect();
    if (top > innerHeight * 0.6) $('way').scrollIntoView({behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'});
  },
  onReached: (reached) => report('shop', reached ? 'live' : 'cut'),
});
addEventListener('hashchange', followAddress);
followAddress();
admitOperator();
