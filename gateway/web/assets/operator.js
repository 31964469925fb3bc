// What operators see: the event log, dead letters, health, and where the shop was started with them, the controls.
import * as breaking from './breaking.js';
import * as deadLetters from './deadletters.js';
import * as health from './health.js';
import * as log from './log.js';
import * as way from './way.js';

// start shows all of it. report(what, state) is told how its streams are.
export function start(report) {
  log.start({onState: (state) => report('log', state), onEvent: way.seen});
  deadLetters.start();
  health.start({onDeadLetters: deadLetters.refreshSoon});
  if (document.body.hasAttribute('data-demo')) breaking.start({onLetter: deadLetters.refreshSoon, onChange: health.refreshSoon});
}
