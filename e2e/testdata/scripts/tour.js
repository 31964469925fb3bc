import * as flow from '/page/flow.js';
import * as tour from '/page/tour.js';
import {answerWith, element, equal} from './check.js';

const order = (n) => ({id: `01980000-0000-7000-8000-0123456789a${n}`, state: 'PENDING', total_items: 1, created_at: '2026-01-02T03:04:05Z'});

// Whoever ordered while the tour ran, and typed on, typed nowhere.
export async function theTourTakesTheFocusFromNobody() {
  answerWith(() => new Promise(() => {}));
  tour.start(flow.picture);
  element('customer_name').focus();
  flow.follow(order(1).id, order(1), 12);
  equal([element('panel').hidden, document.activeElement.id], [true, 'customer_name']);
  tour.start(flow.picture);
  element('tour-skip').click();
  equal([element('panel').hidden, document.activeElement.id], [true, 'flow']);
}
