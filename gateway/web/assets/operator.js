// What operators see: the event log, dead letters, what they look up, health, and the experiments if the shop was started with them.
import * as audit from './audit.js';
import * as breaking from './breaking.js';
import * as deadLetters from './deadletters.js';
import * as health from './health.js';
import * as log from './log.js';
import * as lookup from './lookup.js';
import * as flow from './flow.js';
import {showPanel} from './panel.js';
import * as storefront from './storefront.js';

// start shows all of it. report(what, state) is called with the state of its streams.
export function start(report) {
  log.start({onState: (state) => report('log', state), onEvent: flow.seen});
  deadLetters.start();
  lookup.start();
  audit.start();
  health.start({onDeadLetters: deadLetters.refreshSoon, onState: (state) => report('health', state)});
  if (document.body.hasAttribute('data-demo')) breaking.start({
    onLetter: deadLetters.refreshSoon, onChange: health.refreshSoon, onRunning: storefront.hold,
    show: (title, ...children) => { showPanel(title, children); flow.inSight(); },
  });
}
