// The panel under the picture shows an experiment or the tour in the place of the order's journey, until another order is
// followed or it is closed.
import {$, h} from './dom.js';

let closed = () => {};

// showPanel puts something under the picture. onClose is called when it goes.
export function showPanel(title, children, onClose = () => {}) {
  closePanel();
  closed = onClose;
  $('panel').replaceChildren(h('h3', {id: 'panel-title'}, title), ...children);
  $('panel').hidden = false;
  $('flow').dataset.panel = '';
}

export function closePanel() {
  $('panel').hidden = true;
  delete $('flow').dataset.panel;
  const then = closed;
  closed = () => {};
  then();
}
