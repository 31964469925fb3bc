import * as breaking from '/page/breaking.js';
import {answerWith, element, equal, json, text, until} from './check.js';

// start shows the experiments, and the services of a shop in which one is stopped.
async function start() {
  answerWith(({path}) => json(path === '/demo' ? {services: [{name: 'order', running: true}, {name: 'inventory', running: false}]} : {dead_letter_id: '7'}));
  breaking.start({onLetter() {}, onChange() {}, onRunning() {}, show() {}});
  await until(() => service('inventory'));
}

const service = (name) => element('breaking').querySelector(`[data-service=${name}]`);

// The buttons were made anew after each experiment.
export async function theButtonOfAServiceKeepsTheFocusWhenAnExperimentEnds() {
  await start();
  const before = service('order');
  before.focus();
  element('breaking').querySelector('[data-experiment=poison] button').click();
  await until(() => service('order') !== before);
  equal([document.activeElement === service('order'), text('breaking-body').includes('It is dead letter 7 now')], [true, true]);
}

// What is on or off was said by an attribute without a value, which says neither.
export async function aServiceThatIsStoppedIsAButtonThatIsPressed() {
  await start();
  equal(['order', 'inventory'].map((name) => service(name).getAttribute('aria-pressed')), ['false', 'true']);
}

// It was written onto the button for the moment until the buttons were made anew.
export async function whyAServiceCouldNotBeStoppedStaysToBeRead() {
  await start();
  const answer = globalThis.fetch;
  globalThis.fetch = (path, options) => (path.endsWith('/stop') ? json({message: 'an experiment is running'}, 409) : answer(path, options));
  const before = service('order');
  before.click();
  await until(() => service('order') !== before);
  equal(element('breaking').querySelector('.switches .outcome').textContent, 'The service order was not stopped: an experiment is running.');
}
