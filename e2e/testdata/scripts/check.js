// What the tests of the page's scripts share.

// equal compares values by their JSON.
export function equal(got, want, what = '') {
  const [a, b] = [got, want].map((value) => JSON.stringify(value));
  if (a !== b) throw new Error(`${what} got ${a}, want ${b}`);
}

// until waits until look() is true. The test ends with the page if it never is.
export async function until(look, what) {
  for (const deadline = Date.now() + 20_000; !look();) {
    if (Date.now() > deadline) throw new Error(`after 20 s still not: ${what ?? look}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

// json is an answer of the shop.
export const json = (body, status = 200, headers = {}) => new Response(JSON.stringify(body), {status, headers});

// answerWith has each call of fetch answered by answer(path, options), and returns the list of those calls.
export function answerWith(answer) {
  const calls = [];
  globalThis.fetch = async (path, options = {}) => {
    const made = {path, method: options.method ?? 'GET', headers: options.headers ?? {}, body: options.body};
    calls.push(made);
    return answer(made, options);
  };
  return calls;
}

// eventStream is a stream that stays open: send(text) adds to it, end() ends it. It breaks off when signal aborts.
export function eventStream(signal) {
  let controller;
  const encoder = new TextEncoder();
  const body = new ReadableStream({start(c) { controller = c; }});
  signal?.addEventListener('abort', () => controller.error(signal.reason));
  return {
    response: new Response(body, {headers: {'Content-Type': 'text/event-stream'}}),
    send: (text) => controller.enqueue(encoder.encode(text)),
    end: () => controller.close(),
  };
}

export const element = (id) => document.getElementById(id);
export const text = (id) => element(id).textContent;
