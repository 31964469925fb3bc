// Live events by server-sent events. EventSource cannot send a token, so the stream is read by hand; like EventSource
// it resumes after the last event when it was cut.
import {authorization, refuse, Refusal} from './api.js';

const minBackoff = 250; // ms
const maxBackoff = 5000;
// A stream sends something every 15 s, if only a comment. One that is silent for longer is dead.
const silence = 40_000;

// open reads the events at path until stop() of what it returns is called. It is idle while the tab is hidden.
//   onEvents(events)  those that arrived together, oldest first
//   onState(state, refusal) 'connecting', 'live', 'cut' (it tries again), 'idle', or 'refused' (it does not); refusal is the
//                           answer, if it was no stream
//   after             the id of the last event that is known already
//   onWake(last)      called when the tab is seen again, with the last id; returns the id to resume after, or a promise of it
export function open(path, {onEvents, onState = () => {}, operator = false, after = '', onWake = (last) => last}) {
  let last = after;
  let stopped = false;
  let running = null; // the AbortController of the connection
  let pause = minBackoff;
  let timer;

  // An error in onEvents is reported, and no reason to reconnect.
  function show(events) {
    try {
      onEvents(events);
    } catch (error) {
      reportError(error);
    }
  }

  async function connect() {
    running = new AbortController();
    const {signal} = running;
    const abort = () => running?.abort();
    let watchdog = setTimeout(abort, silence);
    let refusal;
    onState('connecting');
    try {
      const headers = {Accept: 'text/event-stream', ...(operator ? authorization() : {})};
      if (last) headers['Last-Event-ID'] = last;
      const response = await fetch(path, {headers, signal, cache: 'no-store'});
      if (!response.ok) {
        refusal = new Refusal(response.status, await response.json().catch(() => undefined));
        const {status} = refusal;
        if (status < 500 && ![404, 408, 429].includes(status)) {
          stopped = true;
          if (status === 401) refuse(headers.Authorization);
          onState('refused', refusal);
          return;
        }
        throw refusal;
      }
      onState('live');
      const parser = new Parser();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const {done, value} = await reader.read();
        if (done) break;
        clearTimeout(watchdog);
        watchdog = setTimeout(abort, silence);
        pause = minBackoff;
        const events = parser.feed(value);
        last = parser.lastId || last;
        if (events.length > 0) show(events);
      }
    } catch {
      // cut, or aborted on purpose: what follows is the same
    } finally {
      clearTimeout(watchdog);
      if (running?.signal === signal) running = null;
    }
    if (stopped || document.hidden) return;
    onState('cut', refusal);
    timer = setTimeout(connect, pause * (0.5 + Math.random()));
    pause = Math.min(pause * 2, maxBackoff);
  }

  async function wake() {
    if (stopped) return;
    if (document.hidden) {
      clearTimeout(timer);
      running?.abort();
      onState('idle');
      return;
    }
    if (running) return;
    clearTimeout(timer);
    last = await onWake(last);
    if (!stopped && !running && !document.hidden) connect();
  }
  document.addEventListener('visibilitychange', wake);
  if (document.hidden) onState('idle');
  else connect();

  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener('visibilitychange', wake);
      running?.abort();
    },
  };
}

// Parser cuts a stream into events, as the HTML standard says. lastId is the place up to which it has been read: a
// stream tells where it begins before it has an event.
class Parser {
  lastId = '';
  #rest = '';
  #data = [];
  #id = '';

  feed(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/); // the \n of a \r at the end may be still to come
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === '') {
        if (this.#data.length > 0) events.push(JSON.parse(this.#data.join('\n')));
        this.#data = [];
        this.lastId = this.#id;
        continue;
      }
      const colon = line.indexOf(':');
      if (colon === 0) continue; // a comment keeps the connection alive
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
      if (field === 'data') this.#data.push(value);
      if (field === 'id') this.#id = value;
    }
    return events;
  }
}
