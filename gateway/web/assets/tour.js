// The tour says in half a minute what stands in the picture: what an exchange, a queue, an outbox and a dead letter do here.
import {bindings, eventExchange, keys} from './contracts.js';
import {$, h, setText} from './dom.js';
import {closePanel, showPanel} from './panel.js';

const stopTime = 5000; // ms
const reducedMotion = matchMedia('(prefers-reduced-motion: reduce)');

// Each stop has a name, what is said there, and the path that is marked in the picture.
const stops = [
  ['Gateway', 'You order at the gateway. It publishes a message, OrderPlaced, and answers “accepted” as soon as RabbitMQ, the message broker, has it on disk. It does not wait for anybody else.', ['gateway', 'exchange']],
  ['Exchange', `The exchange ${eventExchange} is the sorting office. It reads the routing key on the message, here ${keys.OrderPlaced}, and copies the message to every queue that is bound to such keys. It keeps nothing itself.`, ['exchange', 'order.queue']],
  ['Queue', `A queue keeps messages for one service until that says “handled”. If the service is stopped, they wait here; if it dies, they are delivered again. The queue logging is bound to ${bindings.logging[0]}: it gets a copy of everything.`, ['order.queue', 'order']],
  ['Stock check', 'The order service asks inventory, by a call over the broker, whether there is enough stock. Inventory holds the pieces, so that nobody else can have them, and answers.', ['order', 'inventory', 'inventory.db']],
  ['Outbox', 'The order service stores the order and, in the same transaction, the events that tell of it: that table is the outbox. A relay publishes them afterwards. If the service crashes in between, the events are still there, and none is lost.', ['order.db', 'order', 'exchange']],
  ['Dead letter', 'A message that cannot be handled is tried again, after 1, 10 and 60 seconds. Then it becomes a dead letter: set aside with its reason, so that it delays no others, until a person mends the cause and sends it again, or discards it.', ['exchange', 'inventory.queue', 'inventory']],
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
    back.disabled = at === 0;
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
  showPanel('The tour, in 30 seconds', [body], () => {
    clearTimeout(timer);
    picture.mark(null);
    $('flow').removeEventListener('keydown', keys);
    ($('first').hidden ? $('flow') : $('tour')).focus();
  });
  go(0);
  next.focus();
}
