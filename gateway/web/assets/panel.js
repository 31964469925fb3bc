// The panel under the picture shows an experiment or the tour in the place of the order's journey, until another order is
// followed or it is closed.
import {$, h} from './dom.js';

let closed = () => {};

// showPanel puts something under the picture. onClose(focused) is called when it goes; focused says whether the focus was in it.
export function showPanel(title, children, onClose = () => {}) {
  closePanel();
  closed = onClose;
  $('panel').replaceChildren(h('h3', {id: 'panel-title'}, title), ...children);
  $('panel').hidden = false;
  $('flow').dataset.panel = '';
}

export function closePanel() {
  const focused = $('panel').contains(document.activeElement);
  $('panel').hidden = true;
  delete $('flow').dataset.panel;
  const then = closed;
  closed = () => {};
  then(focused);
}
