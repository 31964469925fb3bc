// What the browser keeps for the page. It may refuse to, because its user blocks that or it has no room: then nothing is kept,
// and the page works without.

// kept returns what is kept in a storage, 'localStorage' or 'sessionStorage', under a key, or null.
export function kept(storage, key) {
  try {
    return globalThis[storage].getItem(key);
  } catch {
    return null;
  }
}

// keep keeps a text under a key; null removes what is kept there.
export function keep(storage, key, text) {
  try {
    if (text === null) globalThis[storage].removeItem(key);
    else globalThis[storage].setItem(key, text);
  } catch {
    // not kept
  }
}
