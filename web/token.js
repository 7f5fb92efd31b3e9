// The secret with which this tab comes back to its world; kept over a reload, not shared with other tabs.

const NAME = "chunkcast.token";
const ACCESS = "chunkcast.access";

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

/**
 * The server's own token, where it asks for one: given once behind the address as #access=..., which no server sees,
 * and kept as the other one is.
 * @returns {string|undefined}
 */
export function access() {
  const given = new URLSearchParams(location.hash.slice(1)).get("access");
  if (given !== null) {
    attempt(() => sessionStorage.setItem(ACCESS, given));
    history.replaceState(null, "", location.pathname + location.search);
  }
  return given ?? attempt(() => sessionStorage.getItem(ACCESS)) ?? undefined;
}

/**
 * The token of a link that lets one watch somebody's walk, behind the address as #watch=..., which no server sees.
 * @returns {string|null} null: one walks oneself
 */
export function watched() {
  return new URLSearchParams(location.hash.slice(1)).get("watch");
}

/** A browser may forbid storage: then a lost connection begins a new world. */
function attempt(access) {
  try {
    return access();
  } catch {
    return null;
  }
}
