// The order as a shipping label, in an image that can be shown to anybody: it is drawn from what a share token shows.
import {barsOf} from './barcode.js';
import {amount, moment, plural, price} from './dom.js';

const width = 640;
const scale = 2; // pixels of the image to one of these
const [ink, paper, soft] = ['#101413', '#fff', '#4f5855'];
const sans = '"Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif';
const mono = 'ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace';
const [head, lineHeight, maxLines] = [132, 26, 12];

// linesOf are the lines of the label: those of the order, as far as there is room.
export function linesOf({order_items: items}) {
  const lines = items.slice(0, maxLines).map(({quantity, product_name: name, product_id: id}) => `${quantity} × ${name || `product ${id}`}`);
  return items.length > maxLines ? [...lines, `and ${plural(items.length - maxLines, 'other product')}`] : lines;
}

// drawLabel returns the label of a shared order as a PNG.
export function drawLabel(order) {
  const lines = linesOf(order);
  const height = head + lines.length * lineHeight + 62;
  const canvas = document.createElement('canvas');
  canvas.width = width * scale;
  canvas.height = height * scale;
  const c = canvas.getContext('2d');
  c.scale(scale, scale);
  c.fillStyle = paper;
  c.fillRect(0, 0, width, height);
  const text = (what, x, y, font, colour = ink, room = width - 40) => {
    c.fillStyle = colour;
    c.font = font;
    c.fillText(what, x, y, room);
  };
  const rule = (y) => c.fillRect(0, y, width, 2);
  c.fillStyle = ink;
  c.fillRect(0, 0, width, 40);
  text('The shop', 20, 27, `800 20px ${sans}`, paper);
  text('Order', 20, 64, `700 13px ${sans}`, soft);
  text(order.reference, 20, 90, `700 24px ${mono}`);
  const {bars, width: all} = barsOf(order.reference);
  for (const bar of bars) c.fillRect(190 + bar.x * 230 / all, 56, bar.width * 230 / all, 42);
  text('State', 450, 64, `700 13px ${sans}`, soft);
  text(order.state, 450, 90, `700 20px ${mono}`, ink, 170);
  rule(108);
  lines.forEach((line, i) => text(line, 20, head + 8 + i * lineHeight, `16px ${sans}`));
  c.fillStyle = ink;
  rule(height - 54);
  const total = order.total_value ? `, ${price(amount(order.total_value), order.total_value.currency_code)}` : '';
  text(`${plural(order.total_items, 'piece')}${total}`, 20, height - 20, `700 18px ${sans}`, ink, 340);
  c.textAlign = 'right';
  if (order.created_at) text(moment(order.created_at), width - 20, height - 20, `14px ${mono}`, soft, 240);
  c.lineWidth = 4;
  c.strokeStyle = ink;
  c.strokeRect(0, 0, width, height);
  return new Promise((resolve) => { canvas.toBlob(resolve, 'image/png'); });
}
