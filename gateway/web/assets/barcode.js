// The barcode on the slip: Code 39 of the order's short id. It can be scanned.
import {s} from './dom.js';

// Each character is five bars and four gaps, three of them wide: n narrow, w wide.
const patterns = {
  0: 'nnnwwnwnn', 1: 'wnnwnnnnw', 2: 'nnwwnnnnw', 3: 'wnwwnnnnn', 4: 'nnnwwnnnw', 5: 'wnnwwnnnn', 6: 'nnwwwnnnn', 7: 'nnnwnnwnw',
  8: 'wnnwnnwnn', 9: 'nnwwnnwnn', A: 'wnnnnwnnw', B: 'nnwnnwnnw', C: 'wnwnnwnnn', D: 'nnnnwwnnw', E: 'wnnnwwnnn', F: 'nnwnwwnnn',
  '*': 'nwnnwnwnn',
};
const widths = {n: 1, w: 2.5};

// barsOf are the bars of the characters 0 to 9 and A to F of text, and how wide all of them are together.
export function barsOf(text) {
  const bars = [];
  let x = 0;
  for (const character of `*${text.toUpperCase()}*`) {
    [...(patterns[character] ?? '')].forEach((element, i) => {
      if (i % 2 === 0) bars.push({x, width: widths[element]});
      x += widths[element];
    });
    x += 1;
  }
  return {bars, width: x - 1};
}

// draw draws text into an svg element.
export function draw(svg, text) {
  const {bars, width} = barsOf(text);
  svg.setAttribute('viewBox', `0 0 ${width} 24`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.replaceChildren(...bars.map((bar) => s('rect', {...bar, y: 0, height: 24})));
}
