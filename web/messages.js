// Made from stream/protocol.py by `python -m stream.protocol --write`; change it there.
// The messages of /ws: functions that write those of the page, and parse() for those of the server.

export const VERSION = 1;
export const KEYS = ["a", "d", "i", "j", "k", "l", "s", "w"];
export const MAX_PROMPT_CHARACTERS = 2000;
export const MAX_SEED = 9007199254740991;

/** Held keys must be sent again within this many milliseconds, or the server releases them. */
export const KEYS_HELD_MS = 1000;

/**
 * The first message: what to see; without a seed the server draws one.
 */
export function hello({ prompt, seed = null }) {
  return JSON.stringify({ type: "hello", version: VERSION, prompt, seed });
}

/**
 * A new prompt; the world goes on from where it is.
 */
export function prompt({ seq, text }) {
  return JSON.stringify({ type: "prompt", seq, text });
}

/**
 * All keys that are held now, [] when none is.
 */
export function keys({ seq, held }) {
  return JSON.stringify({ type: "keys", seq, held });
}

/**
 * The page saw the first frame that obeys message `seq`, `ms` milliseconds after it sent it.
 */
export function shown({ seq, ms }) {
  return JSON.stringify({ type: "shown", seq, ms });
}

/**
 * Begin again in the same slot; what is not given stays (the seed) or is the newest (the prompt).
 */
export function restart({ seq, seed = null, prompt = null }) {
  return JSON.stringify({ type: "restart", seq, seed, prompt });
}

/**
 * The viewer goes; the slot is free at once.
 */
export function leave() {
  return JSON.stringify({ type: "leave" });
}

/**
 * One STUN or TURN server, in the shape that RTCPeerConnection takes.
 * @typedef {{ urls: string[], username: string|null, credential: string|null }} IceServer
 */

/**
 * What the world is. `token` is the secret that lets this viewer, and no one else, fetch its picture.
 * @typedef {{ type: "welcome", version: number, session: string, token: string, preset: string, width: number, height: number, fps: number, chunk_frames: number, keys: string[], ice_servers: IceServer[] }} Welcome
 */

/**
 * Not live yet: `place` in line counts from 1, of `waiting` in all; `reason` says why.
 * @typedef {{ type: "queued", place: number, waiting: number, reason: string }} Queued
 */

/**
 * The session has a slot and begins; POST /whep?session=TOKEN fetches the picture.
 * @typedef {{ type: "live", slot: number, seed: number, prompt: string }} Live
 */

/**
 * Message `seq` is taken and will be in the next chunk that begins.
 * @typedef {{ type: "received", seq: number }} Received
 */

/**
 * `frame` (the first of chunk `chunk`) obeys all messages up to `seq` and has just been sent.
 * `rtp` is that frame's RTP timestamp, as requestVideoFrameCallback reports it.
 * @typedef {{ type: "applied", seq: number, chunk: number, frame: number, rtp: number|null }} Applied
 */

/**
 * How the prompt was understood, and the words of it that were not.
 * @typedef {{ type: "scene", text: string, unknown_words: string[] }} Scene
 */

/**
 * About once a second: frames/s sent, times in milliseconds, and how many frames came late or were dropped.
 * @typedef {{ type: "stats", fps: number, chunk_ms: number, lead_ms: number, viewers: number, waiting: number, dropped: number, late: number }} Stats
 */

/**
 * The session is over; `reason` is a sentence for the viewer.
 * @typedef {{ type: "ended", reason: string }} Ended
 */

/**
 * A message was refused and nothing changed; `message` says what would be right.
 * @typedef {{ type: "error", message: string, seq: number|null }} Error
 */

const FIELDS = {
  welcome: ["version", "session", "token", "preset", "width", "height", "fps", "chunk_frames", "keys", "ice_servers"],
  queued: ["place", "waiting", "reason"],
  live: ["slot", "seed", "prompt"],
  received: ["seq"],
  applied: ["seq", "chunk", "frame"],
  scene: ["text", "unknown_words"],
  stats: ["fps", "chunk_ms", "lead_ms", "viewers", "waiting", "dropped", "late"],
  ended: ["reason"],
  error: ["message"],
};

/**
 * The message in a text frame of the server.
 * @param {string} text
 * @returns {Welcome|Queued|Live|Received|Applied|Scene|Stats|Ended|Error}
 * @throws {Error} when it is none of the messages above
 */
export function parse(text) {
  const message = JSON.parse(text);
  const fields = Object.hasOwn(FIELDS, message?.type) ? FIELDS[message.type] : null;
  if (fields === null) throw new Error(`no such message from the server: ${text.slice(0, 80)}`);
  for (const field of fields) {
    if (!(field in message)) throw new Error(`the server's ${message.type} lacks ${field}`);
  }
  return message;
}
