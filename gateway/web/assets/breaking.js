// Try to break it: experiments that inject a fault, the guarantee that each one tests, and whether it passed, in figures.
import {asOperator, Refusal} from './api.js';
import {$, h, plural, setText} from './dom.js';

const passed = (ok) => (ok ? 'Passed.' : 'Failed.');
const audited = ({orders, violations}) => `audit of ${plural(orders, 'order')}: ${plural(violations, 'violation')}`;

// waiting says how many dead letters wait for a person, and how many of them are poison that was sent from here.
const waiting = (letters, sent) => {
  if (!letters) return '';
  const whose = sent === 0 ? '' : sent < letters ? `, you sent ${sent} of them` : letters === 1 ? ', you sent it' : ', you sent them';
  return `${plural(letters, 'dead letter waits', 'dead letters wait')} for a person${whose}. `;
};

const experiments = [
  {
    path: '/demo/race', body: {buyers: 50, stock: 10}, name: '50 buyers for the last 10',
    guarantee: 'Stock is never oversold, however many customers order at once.',
    evaluate: ({tried, sold, refused, oversold, audit}) => [oversold === 0 && audit.violations === 0,
      `${tried} tried, ${sold} sold, ${refused} refused, ${oversold} oversold; ${audited(audit)}.`],
  },
  {
    path: '/demo/twice', name: 'Deliver an event twice',
    guarantee: 'An event that is delivered twice has one effect.',
    evaluate: ({deliveries, effects}) => [effects === 1, `${plural(deliveries, 'delivery', 'deliveries')} of each event, ${plural(effects, 'effect')}.`],
  },
  {
    path: '/demo/poison', name: 'Send a poison message',
    guarantee: 'A message that cannot be handled becomes a dead letter, and other orders are not delayed.',
    evaluate: ({dead_letter_id: id}) => [Boolean(id), `It is dead letter ${id} now, with the reason.`],
  },
  {
    path: '/demo/audit', name: 'Audit everything',
    guarantee: 'Orders, holds, movements, stock and log agree.',
    evaluate: ({orders, violations, findings, dead_letters: letters, sent}) => [violations === 0,
      `${plural(orders, 'order')} checked, ${plural(violations, 'violation')}. ${waiting(letters, sent)}${(findings ?? []).slice(0, 3).map(({check, detail}) => `${check}: ${detail}`).join('; ')}`],
  },
];

let onLetter = () => {};
let onChange = () => {};
const buttons = [];
const services = h('ul', {class: 'services'});

export function start(options) {
  ({onLetter, onChange} = options);
  for (const element of document.querySelectorAll('[data-demo-part]')) element.hidden = false;
  $('breaking-body').append(h('ul', {class: 'experiments'}, ...experiments.map(newExperiment)),
    h('div', {class: 'switches'}, h('h3', {}, 'Stop a service, order, and start it again'), services,
      h('p', {}, 'Guarantee: orders are still accepted, wait in the queue, and are decided when the service is back.')));
  refresh();
}

function newExperiment(experiment) {
  const result = h('p', {class: 'result', role: 'status'});
  const button = h('button', {type: 'button', onclick: () => run(experiment, result)}, experiment.name);
  buttons.push(button);
  return h('li', {'data-experiment': experiment.path.split('/').at(-1)}, button, h('p', {class: 'guarantee'}, experiment.guarantee), result);
}

// run runs one experiment. The others are disabled meanwhile: they would disturb each other.
async function run({path, body = {}, evaluate}, result) {
  for (const button of buttons) button.disabled = true;
  delete result.dataset.passed;
  setText(result, 'Running …');
  try {
    const [ok, figures] = evaluate(await asOperator('POST', path, body));
    result.dataset.passed = ok;
    setText(result, `${passed(ok)} ${figures}`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    setText(result, `Not run: ${error.message}.`);
  } finally {
    for (const button of buttons) button.disabled = false;
  }
  onLetter();
  onChange();
}

async function refresh() {
  try {
    const {services: states} = await asOperator('GET', '/demo');
    services.replaceChildren(...states.map(({name, running}) => h('li', {},
      h('button', {type: 'button', 'aria-pressed': !running, 'data-service': name, onclick: () => turn(name, running)}, `${running ? 'Stop' : 'Start'} ${name}`))));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    services.replaceChildren(h('li', {}, `The services cannot be stopped or started: ${error.message}.`));
  }
}

async function turn(name, running) {
  const button = services.querySelector(`[data-service=${name}]`);
  button.disabled = true;
  setText(button, running ? `Stopping ${name} …` : `Starting ${name} …`);
  try {
    await asOperator('POST', `/demo/services/${name}/${running ? 'stop' : 'start'}`, {});
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    setText(button, error.message);
  }
  await refresh();
  services.querySelector(`[data-service=${name}]`)?.focus();
  onChange();
}
