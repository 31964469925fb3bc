// Calls of the shop's REST API, and who is calling.
import {keep, kept} from './storage.js';

const tokenKey = 'shop.token';
let token = kept('sessionStorage', tokenKey);

// takeToken moves an operator token from the address into this tab, where it stays until the tab is closed. The
// address is cleaned at once, so that the token is neither bookmarked nor shared. It says whether there was one.
export function takeToken() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get('token');
  if (!given) return false;
  token = given;
  keep('sessionStorage', tokenKey, given);
  fragment.delete('token');
  history.replaceState(null, '', location.pathname + location.search + (fragment.size ? '#' + fragment : ''));
  return true;
}

let tokenRefused = () => {};

// onTokenRefused registers what is done when the shop does not take the token, or not any more: then(reason).
export function onTokenRefused(then) { tokenRefused = then; }

// refuse notes that the shop did not take the token in a header Authorization. Another may have been taken since.
export function refuse(sent, reason) {
  if (sent && sent === authorization().Authorization) tokenRefused(reason);
}

export function forgetToken() {
  token = null;
  keep('sessionStorage', tokenKey, null);
}

export const hasToken = () => token !== null;

export const authorization = () => (token ? {Authorization: `Bearer ${token}`} : {});

// Refusal is an error response. status is 0 if there was no response.
export class Refusal extends Error {
  constructor(status, body, retryAfter) {
    super(body?.message || (status ? `HTTP status ${status}` : 'the shop is unreachable'));
    this.status = status;
    this.retryAfter = retryAfter;
    const details = body?.details ?? [];
    this.reason = details.find((d) => d.reason)?.reason ?? '';
    this.violations = details.flatMap((d) => d.field_violations ?? d.fieldViolations ?? []);
  }

  // transient says that the same call may succeed later.
  get transient() { return this.status === 0 || this.status === 429 || this.status >= 500; }

  // refusesToken says that every such call will be refused, and count as a failed login.
  get refusesToken() { return this.status === 401 || this.reason === 'ROLE_REQUIRED'; }
}

// The gateway waits up to 10 s for the broker or a service, after it has asked whether an order is known, and then says what to do.
const patience = 15_000; // ms

// call makes a call and returns its answer's body. It throws a Refusal. Calls are given up after timeout, in ms.
export async function call(method, path, {body, headers = {}, operator = false, cache = 'no-store', timeout = patience} = {}) {
  let response;
  let answer;
  const who = operator ? authorization() : {};
  try {
    response = await fetch(path, {
      method,
      headers: {
        ...(body === undefined ? {} : {'Content-Type': 'application/json'}),
        ...who,
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      cache,
      signal: AbortSignal.timeout(timeout),
    });
    answer = await response.json().catch((error) => {
      if (response.ok) throw error; // the line was cut in the middle
      return null;
    });
  } catch {
    throw new Refusal(0);
  }
  if (response.ok) return answer;
  const refusal = new Refusal(response.status, answer, Number(response.headers.get('Retry-After')) || undefined);
  if (refusal.refusesToken) refuse(who.Authorization, refusal.reason);
  throw refusal;
}

export const asOperator = (method, path, body) => call(method, path, {body, operator: true});
