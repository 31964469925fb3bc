import {open} from '/page/stream.js';
import {answerWith, equal, eventStream, json, until} from './check.js';

// connect opens a stream whose n-th connection is answered by answers[n], and the last one also those that follow.
function connect(answers, options = {}) {
  const seen = {events: [], batches: [], states: []};
  let n = 0;
  seen.calls = answerWith((made, {signal}) => answers[Math.min(n++, answers.length - 1)](signal));
  seen.stream = open('/events', {
    onEvents: (events) => { seen.batches.push(events); seen.events.push(...events); },
    onState: (state, refusal) => seen.states.push(refusal ? [state, refusal.status] : [state]),
    ...options,
  });
  return seen;
}

// sends answers with a stream of these texts, which stays open if open is true.
const sends = (texts, stays = false) => (signal) => {
  const stream = eventStream(signal);
  for (const text of texts) stream.send(text);
  if (!stays) stream.end();
  return stream.response;
};

const event = (id) => `id: ${id}\ndata: {"id":"${id}"}\n\n`;
const ids = (events) => events.map(({id}) => id);

export async function eventsThatArriveInPiecesAreWhole() {
  const stream = `id: 1\ndata: {"text":\ndata: "two lines"}\n\n: still there\n\nevent: other\ndata:{"text":"x: y"}\n\n`;
  for (const newline of ['\n', '\r\n']) {
    const seen = connect([sends([...stream.replaceAll('\n', newline)], true)]);
    await until(() => seen.events.length === 2);
    equal(seen.events, [{text: 'two lines'}, {text: 'x: y'}]);
    seen.stream.stop();
  }
}

export async function lettersOfSeveralBytesMayBeCut() {
  const bytes = new TextEncoder().encode('data: "…"\n\n');
  const seen = connect([() => new Response(new ReadableStream({
    start(c) { for (const byte of bytes) c.enqueue(Uint8Array.of(byte)); },
  }))]);
  await until(() => seen.events.length > 0);
  equal(seen.events[0], '…');
  seen.stream.stop();
}

export async function whatArrivesTogetherIsShownTogether() {
  const seen = connect([sends([event(1) + event(2) + event(3)], true)]);
  await until(() => seen.events.length === 3);
  equal(seen.batches.length, 1);
  seen.stream.stop();
}

export async function aStreamThatWasCutResumesAfterTheLastWholeEvent() {
  const seen = connect([sends([event(1), event(2), 'id: 3\ndata: {"id":']), sends([event(3)], true)]);
  await until(() => seen.events.length === 3);
  equal(ids(seen.events), ['1', '2', '3']);
  equal(seen.calls.map(({headers}) => headers['Last-Event-ID'] ?? null), [null, '2']);
  equal(seen.states.map(([state]) => state), ['connecting', 'live', 'cut', 'connecting', 'live']);
  seen.stream.stop();
}

export async function aStreamSaysWhereItBeginsBeforeItHasAnEvent() {
  const seen = connect([sends(['id: 41\n\n']), sends([event(42)], true)]);
  await until(() => seen.events.length === 1);
  equal(seen.calls[1].headers['Last-Event-ID'], '41');
  seen.stream.stop();
}

export async function itBeginsAfterWhatIsKnown() {
  const seen = connect([sends([event(8)], true)], {after: '7'});
  await until(() => seen.events.length === 1);
  equal(seen.calls[0].headers['Last-Event-ID'], '7');
  seen.stream.stop();
}

export async function aServerThatIsDownIsTriedAgain() {
  for (const status of [404, 408, 429, 500, 503]) {
    const seen = connect([() => json({}, status), sends([event(1)], true)]);
    await until(() => seen.events.length === 1, `an event after status ${status}`);
    equal(seen.states[1], ['cut', status]);
    seen.stream.stop();
  }
}

export async function aConnectionThatFailsIsTriedAgain() {
  const seen = connect([() => { throw new TypeError('network error'); }, sends([event(1)], true)]);
  await until(() => seen.events.length === 1);
  seen.stream.stop();
}

export async function aRefusalIsFinal() {
  for (const status of [400, 401, 403]) {
    const seen = connect([() => json({}, status)]);
    await until(() => seen.states.length === 2);
    equal(seen.states, [['connecting'], ['refused', status]]);
    await new Promise((resolve) => setTimeout(resolve, 500)); // longer than the first pause
    equal(seen.calls.length, 1, `calls after status ${status}:`);
  }
}

export async function anErrorInWhatIsShownDoesNotEndTheStream() {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  let shown = 0;
  const seen = connect([(signal) => {
    const stream = eventStream(signal);
    stream.send(event(1));
    setTimeout(stream.send, 50, event(2));
    return stream.response;
  }], {onEvents(events) { if (++shown === 1) throw new Error(`shown ${events.length}`); }});
  await until(() => shown === 2);
  equal(reported, ['shown 1']);
  equal(seen.calls.length, 1);
  seen.stream.stop();
}

export async function aHiddenTabIsIdleAndResumesWhenItIsSeen() {
  let hidden = false;
  Object.defineProperty(document, 'hidden', {get: () => hidden});
  const turn = (to) => { hidden = to; document.dispatchEvent(new Event('visibilitychange')); };
  const seen = connect([sends([event(1)], true), sends([event(9)], true)], {onWake: async (last) => `${last}0`});
  await until(() => seen.events.length === 1);
  turn(true);
  await until(() => seen.states.at(-1)[0] === 'idle');
  await new Promise((resolve) => setTimeout(resolve, 500));
  equal(seen.calls.length, 1);
  turn(false);
  await until(() => seen.events.length === 2);
  equal(seen.calls[1].headers['Last-Event-ID'], '10');
  seen.stream.stop();
}

export async function aStreamThatIsStoppedIsClosed() {
  let closed = false;
  const seen = connect([(signal) => {
    signal.addEventListener('abort', () => { closed = true; });
    return eventStream(signal).response;
  }]);
  await until(() => seen.states.length === 2);
  seen.stream.stop();
  await until(() => closed);
  await new Promise((resolve) => setTimeout(resolve, 500));
  equal(seen.calls.length, 1);
}
