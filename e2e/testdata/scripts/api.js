import {call} from '/page/api.js';
import {answerWith, equal, json} from './check.js';

// The page gave up after 10 s, a moment before the gateway said what it had waited for in vain, and when to try again.
export async function whatTheGatewaySaysAfterTenSecondsIsWaitedFor() {
  const giveUp = new AbortController();
  AbortSignal.timeout = (ms) => {
    if (ms <= 12_000) giveUp.abort(); // the answer takes as long
    return giveUp.signal;
  };
  answerWith((_, {signal}) => {
    signal.throwIfAborted();
    return json({message: 'the broker is unavailable'}, 503, {'Retry-After': '2'});
  });
  const refusal = await call('POST', '/v1/orders', {body: {}}).catch((error) => error);
  equal([refusal.message, refusal.status, refusal.retryAfter], ['the broker is unavailable', 503, 2]);
}
