// Try to break it: experiments that inject a fault. Each begins with a hypothesis, tells beside the picture what happens
// while it happens, and ends with a verdict in figures, which the shop has measured.
import {asOperator, call, Refusal} from './api.js';
import {showAudit} from './audit.js';
import {keys} from './contracts.js';
import {$, disable, duration, h, plural, setText} from './dom.js';
import {hopsOf, rowOf} from './journey.js';
import {closePanel} from './panel.js';

const watchEvery = 250; // ms
const timeout = 60_000; // ms; an experiment ends within 40 s, and then cleans up
const undelayed = 5; // s; behind a message that kept its place in the queue until it was a dead letter it would be 71

const passed = (ok) => (ok ? 'Passed.' : 'Failed.');
const audited = ({orders, violations}) => `audit of ${plural(orders, 'order')}: ${plural(violations, 'violation')}`;
const stock = ({stock_before: before, stock_after: after}) => `stock ${before} → ${after}`;
const seconds = (s) => duration(s * 1000);
const taken = ({stock_before: before, stock_after: after}) => before - after;
const sound = ({lost = 0, doubled = 0, audit = {orders: 1, violations: 0}}) => lost === 0 && doubled === 0 && audit.orders > 0 && audit.violations === 0;

// waiting says how many dead letters wait for a person, and how many of them are poison that was sent from here.
const waiting = (letters, sent) => {
  if (!letters) return '';
  const whose = sent === 0 ? '' : sent < letters ? `, you sent ${sent} of them` : letters === 1 ? ', you sent it' : ', you sent them';
  return `${plural(letters, 'dead letter waits', 'dead letters wait')} for a person${whose}. `;
};

const race = ({tried, sold, refused, oversold, audit}) => [oversold === 0 && audit.orders >= tried && audit.violations === 0,
  `${tried} tried, ${sold} sold, ${refused} refused, ${oversold} oversold; ${audited(audit)}.`];

// The experiments: evaluate returns of an answer whether the shop passed, and the figures. test is the test that proves the
// guarantee, with more orders and at more moments than a page can show.
const experiments = [
  {
    id: 'race', body: {buyers: 50, stock: 10}, name: '50 buyers for the last 10',
    guarantee: 'Stock is never oversold, however many customers order at once.',
    test: 'TestRace_TheLastPiecesAreSoldOnceEach', evaluate: race,
  },
  {
    id: 'last', path: '/demo/race', body: {buyers: 5, stock: 1}, name: 'Five buyers, one piece',
    guarantee: 'Of all who order the last piece at the same time, exactly one gets it.',
    test: 'TestRace_TheLastPiecesAreSoldOnceEach', evaluate: (answer) => [race(answer)[0] && answer.sold === 1, race(answer)[1]],
  },
  {
    id: 'crash', name: 'Crash between commit and publish',
    guarantee: 'A service that dies after it has stored orders, and before it has told anybody, loses none: their events stand in the outbox.',
    test: 'TestCrash_NothingIsLostOrDoubledAtAnyPoint',
    evaluate: (a) => [sound(a) && taken(a) === a.orders,
      `${a.orders} orders, ${a.unpublished} events unpublished at the crash; ${a.lost} lost, ${a.doubled} doubled, settled ${seconds(a.seconds)} after the restart; ${stock(a)}; ${audited(a.audit)}.`],
  },
  {
    id: 'replicas', name: 'Two replicas, and one dies',
    guarantee: 'When a replica dies in the middle of its work, the queue gives its messages to the other.',
    test: 'TestChaos_NoAcceptedOrderIsLost',
    evaluate: (a) => [sound(a) && taken(a) === a.orders,
      `${a.orders} orders, ${a.before} with stock when it died; ${a.lost} lost, ${a.doubled} doubled, all settled ${seconds(a.seconds)} later; ${stock(a)}; ${audited(a.audit)}.`],
  },
  {
    id: 'broker', name: 'Cut the line to the broker',
    guarantee: 'While the broker is out of reach the gateway promises nothing: customers wait, and after 10 s they are told to try again. What it has promised before is not lost, and nobody orders twice.',
    test: 'TestChaos_NoAcceptedOrderIsLost',
    evaluate: (a) => [sound(a) && a.promised === 0 && a.accepted === a.orders && taken(a) === a.orders,
      `Cut for ${seconds(a.cut)}: ${a.promised} orders accepted meanwhile; all ${a.orders} in ${a.attempts} attempts, the slowest after ${seconds(a.slowest)}; ${a.lost} lost, ${a.doubled} doubled, settled ${seconds(a.seconds)} after the line was mended; ${stock(a)}; ${audited(a.audit)}.`],
  },
  {
    id: 'database', name: 'Cut the line to the database',
    guarantee: 'Orders are accepted while the order service cannot reach its database: they wait in the queue, and each is stored once when it can.',
    test: 'TestOrders_AreAcceptedWhileAllServicesAndTheDatabaseAreDown',
    evaluate: (a) => [sound(a) && taken(a) === a.orders,
      `${a.orders} orders accepted, the slowest after ${seconds(a.slowest)}, ${a.waiting} of them waited; ${a.lost} lost, ${a.doubled} doubled, settled ${seconds(a.seconds)} after the line was mended; ${stock(a)}; ${audited(a.audit)}.`],
  },
  {
    id: 'slow', name: 'A slow consumer',
    guarantee: 'A service that works slowly holds up nobody but itself: orders are accepted as fast as before, and wait in its queue.',
    test: 'TestDatabase_SlowOrAwayDelaysOrdersAndCostsNone',
    evaluate: (a) => [sound(a) && taken(a) === a.orders && a.waiting > 0 && a.slowest < 2,
      `${a.orders} orders accepted, the slowest after ${seconds(a.slowest)}, ${a.waiting} of them waited; ${a.lost} lost, ${a.doubled} doubled, settled ${seconds(a.seconds)} after the database was fast again; ${stock(a)}; ${audited(a.audit)}.`],
  },
  {
    id: 'overload', name: 'Overload a gateway',
    guarantee: 'A gateway takes what it has room for, refuses the rest at once with 503 and Retry-After, and whoever tries again orders once.',
    test: 'TestPlaceOrder_MoreThanCanWaitForTheBrokerAreRefusedAtOnce',
    evaluate: (a) => [sound(a) && a.accepted === a.orders && taken(a) === a.orders,
      `${a.attempts} attempts to place ${a.orders} orders: ${a.accepted} × 202, ${a.refused} × 503 with Retry-After: ${a.retry_after}; settled after ${seconds(a.seconds)}; ${stock(a)}; ${audited(a.audit)}.`],
  },
  {
    id: 'compare', name: 'The same order, inventory stopped',
    guarantee: 'An order that is placed while a service is stopped is accepted, waits in the queue, and is decided when the service is back.',
    test: 'TestInventory_AbsentForLongerThanTheCallLastsOrAnsweringTooLateCostsNoOrder',
    evaluate: (a) => [taken(a) === 2, `2 orders, 2 confirmed; inventory was stopped for ${seconds(a.seconds)}; ${stock(a)}.`], more: waterfalls,
  },
  {
    id: 'price', name: 'The price changes meanwhile',
    guarantee: 'Nobody pays a price that they have not seen: if it changed while the order waited, the order is rejected.',
    test: 'TestOrders_RefusedForAReasonHoldNothing',
    evaluate: (a) => [a.state === 'REJECTED' && a.reason === 'PRICE_CHANGED' && taken(a) === 0,
      `Seen ${a.expected} ${a.currency}, now ${a.price} ${a.currency}: ${a.state}, ${a.reason}; ${stock(a)}.`],
  },
  {
    id: 'disorder', name: 'Events out of order',
    guarantee: 'A cancellation that arrives before the event that it cancels leaves the stock as it was.',
    test: 'TestCancel_HasTheSameResultBeforeAndAfterSettling',
    evaluate: (a) => [sound(a) && a.state === 'CANCELLED' && taken(a) === 0, `The order is ${a.state}; ${stock(a)}; ${audited(a.audit)}.`],
  },
  {
    id: 'twice', name: 'Deliver an event twice',
    guarantee: 'An event that is delivered twice has one effect.',
    test: 'TestOrderPlaced_DeliveredTwiceHasOneEffect',
    evaluate: (a) => [a.effects === 1, `${plural(a.deliveries, 'delivery', 'deliveries')} of each event, ${plural(a.effects, 'effect')}; ${stock(a)}.`],
  },
  {
    id: 'poison', name: 'Send a poison message',
    guarantee: 'A message that cannot be handled becomes a dead letter, and the orders behind it are not delayed.',
    test: 'TestDeadLetters_PoisonIsKeptOnceWithItsReasonAndCostsNobody',
    evaluate: (a) => [Boolean(a.dead_letter_id) && a.state === 'CONFIRMED' && a.seconds < undelayed && taken(a) === 1,
      `It is dead letter ${a.dead_letter_id} now, with the reason; the order behind it was ${a.state} after ${seconds(a.seconds)}; ${stock(a)}.`],
  },
  {
    id: 'repair', name: 'Mend the cause, redrive',
    guarantee: 'A dead letter is not lost: once its cause is mended it is sent to its queue again, and handled once.',
    test: 'TestRedrive_OnceItsCauseIsGoneTheMessageIsHandled',
    evaluate: (a) => [a.effects === 1 && a.stock === a.expected && a.open === 0 && a.audit.violations === 0,
      `Redriven ${a.in_vain} × in vain, then handled ${seconds(a.seconds)} after the repair: ${plural(a.effects, 'effect')}, ${a.stock} of ${a.expected} pieces; ${plural(a.open, 'dead letter waits', 'dead letters wait')}; ${audited(a.audit)}. It was dead because: ${a.reason}`],
  },
  {
    id: 'audit', name: 'Audit everything', more: (_, frame) => showAudit(frame),
    guarantee: 'Orders, holds, movements, stock and log agree.',
    test: 'TestAudit_ABusyShopGivesNoFalseAlarm',
    evaluate: ({orders, violations, findings, dead_letters: letters, sent}) => [violations === 0,
      `${plural(orders, 'order')} checked, ${plural(violations, 'violation')}. ${waiting(letters, sent)}${(findings ?? []).slice(0, 3).map(({check, detail}) => `${check}: ${detail}`).join('; ')}`],
  },
];

let onLetter = () => {};
let onChange = () => {};
let onRunning = () => {};
let show = () => {};
const buttons = [];
const services = h('ul', {class: 'services'});
const problem = h('p', {class: 'outcome', role: 'status'}); // why a service could not be stopped or started

// start shows the experiments. onLetter() is called when there may be another dead letter, onChange() when queues and
// services may have changed, onRunning(is) when an experiment begins and ends, show(title, …children) shows something
// beside the picture.
export function start(options) {
  ({onLetter, onChange, onRunning, show} = options);
  for (const element of document.querySelectorAll('[data-demo-part]')) element.hidden = false;
  $('breaking-body').append(h('ul', {class: 'experiments'}, ...experiments.map(newExperiment)),
    h('div', {class: 'switches'}, h('h3', {}, 'Stop a service, order, and start it again'), services, problem,
      h('p', {}, 'Guarantee: orders are still accepted, wait in the queue, and are decided when the service is back.')));
  $('lookup-audit').append(
    h('p', {class: 'actions'}, h('button', {type: 'button', onclick: () => document.querySelector('[data-experiment=audit] button').click()}, 'Audit now')));
  refresh();
}

function newExperiment(experiment) {
  const result = h('p', {class: 'result'});
  const button = h('button', {type: 'button', onclick: () => run(experiment, result)}, experiment.name);
  buttons.push(button);
  return h('li', {'data-experiment': experiment.id}, button, h('p', {class: 'guarantee'}, experiment.guarantee), result);
}

// run runs one experiment. The others are disabled meanwhile: they would disturb each other.
async function run({id, path = `/demo/${id}`, body = {}, name, guarantee, test, evaluate, more}, result) {
  for (const button of buttons) disable(button);
  onRunning(true);
  delete result.dataset.passed;
  setText(result, 'Running …');
  const steps = h('ol', {class: 'steps', 'aria-live': 'polite', 'aria-label': 'What happens'});
  const verdict = h('p', {class: 'result', role: 'status'}, 'Running …');
  const beside = h('div', {});
  show(name, verdict, h('p', {}, h('strong', {}, 'Hypothesis: '), guarantee), beside, steps,
    h('p', {class: 'proof'}, 'The test that proves it: ', h('code', {}, test)),
    h('p', {class: 'actions'}, h('button', {type: 'button', onclick: () => { closePanel(); $('flow').focus(); }}, 'Back to the order')));
  const watch = setInterval(() => { tell(steps); onChange(); }, watchEvery);
  try {
    const answer = await call('POST', path, {body, operator: true, timeout});
    const [ok, figures] = evaluate(answer);
    for (const each of [result, verdict]) {
      each.dataset.passed = ok;
      setText(each, `${passed(ok)} ${figures}`);
    }
    await more?.(answer, beside);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    for (const each of [result, verdict]) setText(each, `Not run: ${error.message}.`);
  } finally {
    clearInterval(watch);
    for (const button of buttons) disable(button, false);
    onRunning(false);
  }
  tell(steps);
  refresh();
  if ($('lookup-audit').open) showAudit($('audit-body'));
  onLetter();
  onChange();
}

// tell adds the steps that the experiment has told of since.
async function tell(list) {
  try {
    const {steps = []} = await asOperator('GET', '/demo');
    for (const {after_ms: after, text} of steps.slice(list.childElementCount)) {
      list.append(h('li', {}, h('span', {class: 'code'}, `+ ${duration(after)}`), h('span', {}, text)));
    }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error; // the next call may get through
  }
}

// waterfalls draws the journeys of two orders on one scale.
async function waterfalls({usual, waited}, frame) {
  const {events: changes} = await asOperator('GET', `/v1/events?${new URLSearchParams({routing_key: keys.StockChanged, page_size: 50})}`);
  const journeys = await Promise.all([usual, waited].map(async (id) => {
    const {events} = await call('GET', `/v1/orders/${id}/events`);
    const traces = new Set(events.map((event) => event.trace_id).filter(Boolean));
    return hopsOf(events, changes.filter((event) => traces.has(event.trace_id)).sort((a, b) => Number(a.id) - Number(b.id)));
  }));
  const length = (hops) => Math.max(...hops.map(({to}) => to)) - hops[0].from;
  const longest = Math.max(...journeys.map(length));
  frame.replaceChildren(...journeys.map((hops, i) => h('div', {class: 'waterfall'},
    h('h4', {}, `${['Everything runs', 'Inventory is stopped'][i]}: ${duration(length(hops))}`),
    h('ol', {}, ...hops.map((hop) => h('li', {class: 'hop', title: hop.text}, ...rowOf(hop, hops[0].from, longest)))))),
  h('p', {class: 'proof'}, `Both on one scale: the whole width is ${duration(longest)}.`));
}

async function refresh() {
  try {
    const {services: states} = await asOperator('GET', '/demo');
    const focused = services.contains(document.activeElement) ? document.activeElement.dataset.service : '';
    services.replaceChildren(...states.map(({name, running}) => h('li', {},
      h('button', {type: 'button', 'aria-pressed': !running, 'data-service': name, onclick: () => turn(name, running)}, `${running ? 'Stop' : 'Start'} ${name}`))));
    if (focused) services.querySelector(`[data-service=${focused}]`)?.focus();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    services.replaceChildren(h('li', {}, `The services cannot be stopped or started: ${error.message}.`));
  }
}

async function turn(name, running) {
  const button = services.querySelector(`[data-service=${name}]`);
  disable(button);
  setText(problem, '');
  setText(button, running ? `Stopping ${name} …` : `Starting ${name} …`);
  try {
    await asOperator('POST', `/demo/services/${name}/${running ? 'stop' : 'start'}`, {});
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    setText(problem, `The service ${name} was not ${running ? 'stopped' : 'started'}: ${error.message}.`);
  }
  await refresh();
  services.querySelector(`[data-service=${name}]`)?.focus();
  onChange();
}
