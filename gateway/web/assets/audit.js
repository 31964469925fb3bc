// What the last audit found. The shop does not audit itself: no service may read what the others have stored.
import {asOperator, Refusal} from './api.js';
import {$, h, moment, plural, short} from './dom.js';

const words = (check) => check.replaceAll('_', ' ');

// auditTable shows what an audit has compared, and what contradicts. A dead letter that waits is listed in a place of its own.
function auditTable({audited_at: at, orders, checks, violations, reported_by: by}) {
  const contradictions = violations.filter(({check}) => check !== 'dead_letters');
  return h('div', {class: 'audit'}, h('table', {},
    h('caption', {}, `Audit of ${plural(orders, 'order')}, ${moment(at)}, reported by ${by}`),
    h('thead', {}, h('tr', {}, ...['check', 'found', 'in flight'].map((text) => h('th', {scope: 'col'}, text)))),
    h('tbody', {}, ...checks.map(({check, about, violations: found, in_flight: inFlight}) => h('tr', {class: found ? 'wrong' : null},
      h('th', {scope: 'row'}, words(check), h('span', {}, about)), h('td', {class: 'code'}, found), h('td', {class: 'code'}, inFlight))))),
  h('ul', {}, ...contradictions.map(({check, order_id: id, product, detail}) => h('li', {},
    `${words(check)}: ${product ? `${product}: ` : ''}${detail} `, id ? h('a', {href: `#order=${id}`, class: 'code'}, short(id)) : null))));
}

const note = (...children) => h('p', {class: 'lookup-note'}, ...children);

// showAudit puts the last audit into a frame, with the time at which it began.
export async function showAudit(frame) {
  try {
    const {report} = await asOperator('GET', '/v1/audit');
    frame.replaceChildren(report ? auditTable(report) : note('No audit was reported yet: run ', h('code', {}, 'shop audit --report'), '.'));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    frame.replaceChildren(note(`Not found out: ${error.message}.`));
  }
}

// start shows it when it is looked up, which may have been before there was somebody to notice.
export function start() {
  const look = () => $('lookup-audit').open && showAudit($('audit-body'));
  $('lookup-audit').addEventListener('toggle', look);
  look();
}
