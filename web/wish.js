// What to ask for: the words and the seed, from the page's address or by chance, and the address that leads there.

import { MAX_PROMPT_CHARACTERS, MAX_SEED } from "./messages.js";

export const EXAMPLES = [
  "a desert with columns at dusk",
  "a snowy forest at night",
  "a glade of mushrooms at dawn",
  "a garden with lanterns in the rain",
  "a sunny shore with palms",
  "a lava field in the fog",
];
const SEEDS = 1_000_000; // so that a seed is short enough to be read out

/** @param {URLSearchParams} parameters of the page */
export function wishOf(parameters) {
  const prompt = parameters.get("prompt")?.trim().slice(0, MAX_PROMPT_CHARACTERS);
  return {
    prompt: prompt || EXAMPLES[Math.floor(Math.random() * EXAMPLES.length)],
    seed: seedOf(parameters.get("seed")),
  };
}

/** @returns {number|null} null for what is no seed */
export function seedOf(text) {
  const seed = Number(text?.trim() || NaN);
  return Number.isInteger(seed) && seed >= 0 && seed <= MAX_SEED ? seed : null;
}

export function anySeed() {
  return Math.floor(Math.random() * SEEDS);
}

/** The address with which others watch the session of this `watch_token`. */
export function addressToWatch(watchToken) {
  const address = new URL(document.baseURI);
  [address.search, address.hash] = ["", new URLSearchParams({ watch: watchToken })];
  return address.href;
}

export function addressOf({ prompt, seed }) {
  const address = new URL(document.baseURI);
  address.search = new URLSearchParams({ prompt, ...(seed === null ? {} : { seed }) });
  return address.href;
}
