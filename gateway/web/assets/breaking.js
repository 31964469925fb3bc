// Try to break it: experiments that a shop makes with itself, what it promises, and whether it held, in figures.
import {asOperator, Refusal} from './api.js';
import {$, h, plural, setText} from './dom.js';

const held = (ok) => (ok ? 'It held.' : 'It did not hold.');
const audited = ({orders, violations}) => `audit of ${plural(orders, 'order')}: ${plural(violations, 'violation')}`;

const experiments = [
  {
    path: '/demo/race', body: {buyers: 50, stock: 10}, name: '50 buyers for the last 10',
    promise: 'Stock is never sold twice, however many want it at once.',
    verdict: ({tried, sold, refused, oversold, audit}) => [oversold === 0 && audit.violations === 0,
      `${tried} tried, ${sold} sold, ${refused} refused, ${oversold} oversold; ${audited(audit)}.`],
  },
  {
    path: '/demo/twice', name: 'Deliver an event twice',
    promise: 'A message that is handled twice has one effect.',
    verdict: ({deliveries, effects}) => [effects === 1, `${plural(deliveries, 'delivery', 'deliveries')} of each event, ${plural(effects, 'effect')}.`],
  },
  {
    path: '/demo/poison', name: 'Send a poison message',
    promise: 'What cannot be handled is kept where a person can see it, and holds nobody up.',
    verdict: ({dead_letter_id: id}) => [Boolean(id), `It is dead letter ${id} now, with the reason.`],
  },
  {
    path: '/demo/audit', name: 'Audit everything',
    promise: 'Orders, holds, movements, stock and log agree.',
    verdict: ({orders, violations, findings}) => [violations === 0,
      `${plural(orders, 'order')} looked at, ${plural(violations, 'violation')}. ${(findings ?? []).slice(0, 3).map(({check, detail}) => `${check}: ${detail}`).join('; ')}`],
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
      h('p', {}, 'Promised: orders are taken all the same, wait in the queue, and are decided when it is back.')));
  refresh();
}

function newExperiment(experiment) {
  const verdict = h('p', {class: 'verdict', role: 'status'});
  const button = h('button', {type: 'button', onclick: () => run(experiment, verdict)}, experiment.name);
  buttons.push(button);
  return h('li', {'data-experiment': experiment.path.split('/').at(-1)}, button, h('p', {class: 'promise'}, experiment.promise), verdict);
}

// run runs one experiment: they would disturb each other.
async function run({path, body = {}, verdict}, place) {
  for (const button of buttons) button.disabled = true;
  delete place.dataset.held;
  setText(place, 'Running …');
  try {
    const [ok, figures] = verdict(await asOperator('POST', path, body));
    place.dataset.held = ok;
    setText(place, `${held(ok)} ${figures}`);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    setText(place, `No verdict: ${error.message}.`);
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
    services.replaceChildren(h('li', {}, `The services cannot be switched: ${error.message}.`));
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
