// Elements and texts. Text is always put in as text: nothing here, or elsewhere, makes HTML of a string.

export const $ = (id) => document.getElementById(id);

// h makes an element: h('button', {type: 'button', onclick: f}, 'Cancel').
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (typeof value === 'boolean' && name.startsWith('aria-')) element.setAttribute(name, value); // these are 'true' or 'false'
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

// s makes an SVG element.
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// setText changes an element's text only if it differs: screen readers announce each change of a live region.
export function setText(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

// disable makes a button do nothing. It stays where the keyboard is, which a browser takes away from one with the attribute disabled.
export const disable = (button, is = true) => button.setAttribute('aria-disabled', is);

document.addEventListener('click', (event) => {
  if (!event.target.closest('[aria-disabled=true]')) return;
  event.preventDefault();
  event.stopPropagation();
}, true);

// short is the part of an order's id that people read to each other. Ids begin with the time, and so with the same.
export const short = (id) => (id || '').slice(-8);

const clockFormat = new Intl.DateTimeFormat('en-GB', {hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3});
export const clock = (time) => clockFormat.format(new Date(time));
const momentFormat = new Intl.DateTimeFormat('en-GB', {dateStyle: 'medium', timeStyle: 'medium'});
export const moment = (time) => momentFormat.format(new Date(time));

const monthFormat = new Intl.DateTimeFormat('en-GB', {month: 'long', year: 'numeric'});
export const month = (time) => monthFormat.format(new Date(time));

// duration is milliseconds for people.
export function duration(ms) {
  if (ms < 1) return '<1 ms';
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.round(ms / 60_000)} min`;
}

// amount is an amount of money to calculate with, in ten-thousandths: no currency has more decimals. It is a BigInt: a sum that the
// shop allows has more digits than a number holds.
export const amount = (money) => BigInt(money?.units ?? 0) * 10_000n + BigInt(Math.round((money?.nanos ?? 0) / 1e5));
// price writes an amount with the decimals that its currency has, and more only if it needs them.
export const price = (amount, currency) => {
  const usual = new Intl.NumberFormat('en', {style: 'currency', currency}).resolvedOptions().maximumFractionDigits;
  const decimals = String(amount % 10_000n).padStart(4, '0').replace(/0+$/, '').padEnd(usual, '0');
  return `${amount / 10_000n}${decimals ? `.${decimals}` : ''} ${currency}`;
};

// breakable are the words of a routing key, which may stand on lines of their own.
export const breakable = (key) => key.split(/(?<=\.)/).flatMap((word, i) => (i > 0 ? [document.createElement('wbr'), word] : [word]));

export const plural = (n, one, many = one + 's') => `${n} ${n === 1 ? one : many}`;

// copy puts text on the clipboard, and shows that on the button for a moment.
export async function copy(button, text) {
  const label = button.dataset.label ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch {
    window.prompt('Copy this:', text); // no clipboard outside localhost and https
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

// quoted is text as one word of a shell.
export const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// grpcurl is the command that makes a call over gRPC. It does not contain the token: the command reads $TOKEN.
export function grpcurl(method, request, operator) {
  const words = ['grpcurl -plaintext'];
  if (operator) words.push('-H "Authorization: Bearer $TOKEN"');
  words.push('-d', quoted(JSON.stringify(request)), location.host || 'localhost:3000', method);
  return words.join(' ');
}
