// The secret with which this tab comes back to its world; kept over a reload, not shared with other tabs.

const NAME = "chunkcast.token";

/** @returns {string|undefined} undefined when there is none */
export function token() {
  return attempt(() => sessionStorage.getItem(NAME)) ?? undefined;
}

/** @param {string} token */
export function keepToken(token) {
  attempt(() => sessionStorage.setItem(NAME, token));
}

export function dropToken() {
  attempt(() => sessionStorage.removeItem(NAME));
}

/** A browser may forbid storage: then a lost connection begins a new world. */
function attempt(access) {
  try {
    return access();
  } catch {
    return null;
  }
}
