// Made from stream/protocol.py by `python -m stream.protocol --write`; change it there.
// The messages of /ws: functions that write those of the page, and parse() for those of the server.

export const VERSION = 1;
export const KEYS = ["a", "d", "i", "j", "k", "l", "s", "w"];
export const MAX_PROMPT_CHARACTERS = 2000;
export const MAX_SEED = 9007199254740991;
export const MAX_PICTURE_BYTES = 16777216;

/** Held keys must be sent again within this many milliseconds, or the server releases them. */
export const KEYS_HELD_MS = 1000;

/**
 * The first message: what to see; without a seed the server draws one.
 * With the `token` of an earlier welcome that session goes on; if it is gone, a new one begins.
 * `access` is the server's own token, where it asks for one.
 */
export function hello({ prompt, seed, token, access }) {
  return JSON.stringify({ type: "hello", version: VERSION, prompt, seed, token, access });
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
 * Begin again in the same slot; what is not given stays (seed and picture) or is the newest (the prompt).
 * `image` is what the answer to PUT /api/sessions/{session}/image calls the picture to begin with, or "none". With a
 * picture, in a world that names pictures, `prompt` may be "": then it is what the picture shows.
 */
export function restart({ seq, seed, prompt, image }) {
  return JSON.stringify({ type: "restart", seq, seed, prompt, image });
}

/**
 * Go back to where the world had `chunk` chunks, 0 for its beginning, and go on from there.
 */
export function rewind({ seq, chunk }) {
  return JSON.stringify({ type: "rewind", seq, chunk });
}

/**
 * Make no more of the world; the slot stays.
 */
export function pause({ seq }) {
  return JSON.stringify({ type: "pause", seq });
}

/**
 * Go on.
 */
export function unpause({ seq }) {
  return JSON.stringify({ type: "unpause", seq });
}

/**
 * Keep the world and give the slot back; `hello` with the token goes on with it.
 */
export function park() {
  return JSON.stringify({ type: "park" });
}

/**
 * The viewer goes; the slot is free at once.
 */
export function leave() {
  return JSON.stringify({ type: "leave" });
}

/**
 * In place of `hello`: to watch a session that someone else steers, by the `watch_token` of their `welcome`.
 * What comes is told as to a viewer, with a `token` that fetches the picture. A spectator says nothing but `leave`.
 */
export function spectate({ token }) {
  return JSON.stringify({ type: "spectate", version: VERSION, token });
}

/**
 * One STUN or TURN server, in the shape that RTCPeerConnection takes.
 * @typedef {{ urls: string[], username: string|null, credential: string|null }} IceServer
 */

/**
 * What the world is. `token` is the secret that lets this viewer, and no one else, fetch its picture and come back.
 * `seq` is the newest number of the session so far: the page counts on from there. `keys` is empty where the world has
 * no camera; `image` says whether it begins with a picture of the viewer's: "none", "optional" or "required".
 * `names_pictures`: it tells by itself what such a picture shows, so that a `restart` with one needs no prompt.
 * `watch_token` may be given to others: `spectate` with it watches and steers nothing; absent where no one may watch.
 * `spectates`: this is not one's own session, but one that is watched.
 * @typedef {{ type: "welcome", version: number, session: string, token: string, preset: string, width: number, height: number, fps: number, chunk_frames: number, keys: string[], image: string, ice_servers: IceServer[], seq: number|null, names_pictures: boolean|null, watch_token: string|null, spectates: boolean|null }} Welcome
 */

/**
 * Not live now: `place` in line counts from 1, of `waiting` in all; `reason` says why.
 * `wait_seconds` is the wait to be expected, where one can tell; `restoring` that the world had begun and goes on;
 * `needs_picture` that it waits for the viewer's picture, which others need not wait for.
 * @typedef {{ type: "queued", place: number, waiting: number, reason: string, wait_seconds: number|null, restoring: boolean|null, needs_picture: boolean|null }} Queued
 */

/**
 * The session has a slot and begins; POST /whep?session=TOKEN fetches the picture.
 * `prompt` is "" where the world began with a picture and no words: `scene` says what it was taken for.
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
 * Message `seq` is obeyed: chunk `chunk` and those after it are not begun before `unpause`.
 * Who comes back to a world that stands hears it again.
 * @typedef {{ type: "paused", seq: number, chunk: number }} Paused
 */

/**
 * Others wait and nothing was steered for a while: without any control in `seconds` the session is parked.
 * @typedef {{ type: "asked", seconds: number }} Asked
 */

/**
 * The session is kept and its slot free; this connection ends. `hello` with the token goes on with it.
 * `by_itself`: the page should say it without being asked, for the server did not want this either.
 * @typedef {{ type: "parked", reason: string, by_itself: boolean|null }} Parked
 */

/**
 * How the prompt was understood, and the words of it that were not.
 * `guessed_words` were understood though no one listed them: pairs of the word and what it was taken for.
 * Who comes back hears it again.
 * @typedef {{ type: "scene", text: string, unknown_words: string[], guessed_words: string[][]|null }} Scene
 */

/**
 * About once a second: frames/s sent, times in milliseconds, and how many frames came late or were dropped.
 * `chunk` is how many chunks the world has; `turn_seconds` what is left of the viewer's turn, where turns are limited
 * and others wait.
 * @typedef {{ type: "stats", fps: number, chunk_ms: number, lead_ms: number, viewers: number, waiting: number, dropped: number, late: number, chunk: number|null, turn_seconds: number|null }} Stats
 */

/**
 * The session is over; `reason` is a sentence for the viewer. `needs_access`: the hello lacked the server's own
 * token, or had a wrong one.
 * @typedef {{ type: "ended", reason: string, needs_access: boolean|null }} Ended
 */

/**
 * A message was refused and nothing changed; `message` says what would be right.
 * @typedef {{ type: "error", message: string, seq: number|null }} Error
 */

const FIELDS = {
  welcome: ["version", "session", "token", "preset", "width", "height", "fps", "chunk_frames", "keys", "image", "ice_servers"],
  queued: ["place", "waiting", "reason"],
  live: ["slot", "seed", "prompt"],
  received: ["seq"],
  applied: ["seq", "chunk", "frame"],
  paused: ["seq", "chunk"],
  asked: ["seconds"],
  parked: ["reason"],
  scene: ["text", "unknown_words"],
  stats: ["fps", "chunk_ms", "lead_ms", "viewers", "waiting", "dropped", "late"],
  ended: ["reason"],
  error: ["message"],
};

/**
 * The message in a text frame of the server.
 * @param {string} text
 * @returns {Welcome|Queued|Live|Received|Applied|Paused|Asked|Parked|Scene|Stats|Ended|Error}
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
