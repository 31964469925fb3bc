// The tour says in half a minute what stands in the picture: what an exchange, a queue, an outbox and a dead letter do here.
import {bindings, eventExchange, keys} from './contracts.js';
import {$, disable, h, setText} from './dom.js';
import {closePanel, showPanel} from './panel.js';
import {asks} from './picture.js';

const stopTime = 5000; // ms
const reducedMotion = matchMedia('(prefers-reduced-motion: reduce)');

// Each stop has a name, what is said there, and the path that is marked in the picture.
const stops = [
  ['Gateway', 'You order at the gateway, the program behind this page. It publishes a message, OrderPlaced, to RabbitMQ, the message broker, which keeps it on disk, in queues. As soon as it is there the gateway answers “accepted”. It waits for nobody else.', ['gateway', 'exchange']],
  ['Exchange', `Within the broker the exchange ${eventExchange} is the sorting office. It reads the label of the message, its routing key, here ${keys.OrderPlaced}, and puts a copy into every queue that is bound to such keys. It keeps nothing itself.`, ['exchange', 'order.queue']],
  ['Queue', `A queue keeps the messages of one service until the service says of each that it is handled. While the service is stopped they wait, however long that takes. If it dies in the middle, what it had not handled is delivered again, and has its effect once. The queue logging is bound to ${bindings.logging[0]}, and # is anything: it gets a copy of everything.`, ['order.queue', 'order']],
  ['Stock check', 'The order service asks inventory whether there is enough. Question and answer go through queues of the broker, too. Inventory reserves the pieces for this order; if there are too few, the order is rejected. If inventory is stopped, the order waits in its queue until it is back.', asks('order', 'inventory')],
  ['Outbox', 'The order service stores the order, and with it, in one transaction (both or neither), the messages that tell of it. The table of these messages is the outbox. A part of the service, the relay, publishes them afterwards. If the service crashes in between, they are still there: no message is lost.', ['order.db', 'order', 'exchange']],
  ['Dead letter', 'A service may fail at a message, because something is wrong with the message or with the service, not because it is stopped. It tries again after 1 second, then 10, then 60. Then the message becomes a dead letter: set aside with its reason, so that it delays no others. A person mends the cause and sends it again, or discards it.', ['exchange', 'inventory.queue', 'inventory']],
];

// start takes the tour through a picture.
export function start(picture) {
  let at = -1;
  let timer;
  let paused = reducedMotion.matches; // who wants no motion goes on by hand
  const name = h('strong', {});
  const said = h('span', {});
  const button = (text, id, onclick) => h('button', {type: 'button', id, onclick}, text);
  const pause = button('', 'tour-pause', () => { paused = !paused; go(at); });
  const back = button('Back', 'tour-back', () => go(at - 1));
  const next = button('Next', 'tour-next', () => (at + 1 < stops.length ? go(at + 1) : closePanel()));
  const body = h('div', {class: 'tour'},
    h('p', {class: 'tour-stop', 'aria-live': 'polite', 'aria-atomic': true}, name, said),
    h('p', {class: 'actions'}, back, pause, next, button('Skip the tour', 'tour-skip', closePanel)));

  function go(to) {
    clearTimeout(timer);
    const moved = to !== at;
    at = to;
    const [title, text, path] = stops[at];
    setText(name, `${at + 1} of ${stops.length}. ${title}`);
    setText(said, ` ${text}`);
    disable(back, at === 0);
    setText(next, at + 1 < stops.length ? 'Next' : 'Done');
    setText(pause, paused ? 'Go on by itself' : 'Pause');
    picture.mark(path);
    if (moved) picture.playPath(path);
    if (!paused && at + 1 < stops.length) timer = setTimeout(() => go(at + 1), stopTime);
  }
  const keys = ({key}) => {
    if (key === 'Escape') closePanel();
    else if (key === 'ArrowRight' && at + 1 < stops.length) go(at + 1);
    else if (key === 'ArrowLeft' && at > 0) go(at - 1);
  };
  $('flow').addEventListener('keydown', keys);
  showPanel('The tour, in 30 seconds', [body], (focused) => {
    clearTimeout(timer);
    picture.mark(null);
    $('flow').removeEventListener('keydown', keys);
    if (focused) ($('first').hidden ? $('flow') : $('tour')).focus();
  });
  go(0);
  next.focus({preventScroll: true});
}
