// Joins the parts: what the viewer does goes to the server, what the server says goes to the picture and the page.

import { copy } from "./clipboard.js";
import { Connection } from "./connection.js";
import { Glow } from "./glow.js";
import { Hud } from "./hud.js";
import { Keys } from "./keys.js";
import { Latency } from "./latency.js";
import { Media } from "./media.js";
import { Rate } from "./rate.js";
import { access, dropToken, keepToken, token } from "./token.js";
import * as messages from "./messages.js";

const EXAMPLES = [
  "a desert with columns at dusk",
  "a snowy forest at night",
  "a glade of mushrooms at dawn",
  "a garden with lanterns in the rain",
  "a sunny shore with palms",
  "a lava field in the fog",
];
const RESEND_MS = messages.KEYS_HELD_MS / 5;
const SEEDS = 1_000_000; // so that a seed is short enough to be read out
const MEDIA_TRIES = 3;
const MEDIA_DELAY_MS = 1000;

const find = (id) => document.getElementById(id);
const stage = find("stage");
const video = find("video");
const field = find("prompt");

const hud = new Hud();
const glow = new Glow(find("glow"), video);
const rate = new Rate();
const latency = new Latency(onShown);
const keys = new Keys(onHeld);
const media = new Media(video, { frame: onFrame, lost: onMediaLost, blocked: onBlocked });
const connection = new Connection(socketAddress(), { opened: sayHello, message: onMessage, lost: onLost });

const wish = wishOf(new URLSearchParams(location.search)); // what to ask for, also after a lost connection
const pass = access();
let session = newSession();
let seq = 0;
let resend = 0;

function newSession() {
  return { entered: false, welcome: null, live: false, shown: false, promptSeq: 0, mediaTries: 0, reason: "", returning: false };
}

function wishOf(parameters) {
  const prompt = parameters.get("prompt")?.trim().slice(0, messages.MAX_PROMPT_CHARACTERS);
  const seed = Number(parameters.get("seed") || NaN);
  return {
    prompt: prompt || EXAMPLES[Math.floor(Math.random() * EXAMPLES.length)],
    seed: Number.isInteger(seed) && seed >= 0 && seed <= messages.MAX_SEED ? seed : null,
  };
}

function socketAddress() {
  const address = new URL("ws", document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  return address.href;
}

// What the server says.

function sayHello() {
  session = newSession();
  session.returning = token() !== undefined;
  connection.send(messages.hello({ ...wish, token: token(), access: pass }));
}

function onMessage(message) {
  switch (message.type) {
    case "welcome":
      return onWelcome(message);
    case "queued":
      return onQueued(message);
    case "live":
      return onLive(message);
    case "received":
      return; // the keys light up at once, without waiting for it
    case "applied":
      if (message.seq >= session.promptSeq) hud.pending(false);
      return latency.applied(message.seq, message.rtp ?? null);
    case "paused":
      return; // the page has no such key yet; the picture stands
    case "asked":
      return hud.notice(`Others wait: press a key within ${message.seconds} seconds, or your place goes to them.`);
    case "parked":
      return onParked(message);
    case "scene":
      return hud.scene(message.text, message.unknown_words, message.guessed_words ?? []);
    case "stats":
      return hud.company(message.viewers, message.waiting);
    case "ended":
      dropToken();
      session.reason = message.reason;
      return connection.retry();
    case "error":
      return onRefused(message);
    default:
      throw new Error(`no one handles the message ${message.type}`);
  }
}

function onWelcome(message) {
  session.entered = true;
  session.welcome = message;
  keepToken(message.token);
  seq = Math.max(seq, message.seq ?? 0);
  keys.shortest = (1000 * message.chunk_frames) / message.fps;
  stage.style.setProperty("--shape", `${message.width} / ${message.height}`);
}

function onRefused({ message }) {
  session.reason = message;
  hud.pending(false);
  hud.notice(message);
  if (!session.entered) hud.veil("lost", { title: "That cannot be shown", text: message });
}

function onParked({ reason, by_itself }) {
  session.reason = reason;
  if (by_itself) return connection.retry();
  connection.close();
  session = newSession();
  media.stop();
  keys.release();
  hud.veil("lost", {
    title: "Your world is kept",
    text: `${reason} You can go on with it for a day.`,
    action: ["Go on", () => connection.open()],
  });
}

function onQueued({ place, waiting, reason, wait_seconds, restoring }) {
  Object.assign(session, { entered: true, live: false }); // welcome comes later while the engine is loading
  media.stop();
  connection.settled();
  session.returning = Boolean(restoring);
  const title = restoring ? "Restoring your world" : place === 1 ? "You are next" : "You are in line";
  const company = waiting > 1 ? ` ${waiting} are waiting.` : "";
  const wait = wait_seconds === null || wait_seconds === undefined ? "" : ` It takes about ${lasting(wait_seconds)}.`;
  hud.veil("waiting", { title, text: `${reason} You enter by yourself when it is your turn.${company}${wait}`, place });
}

/** @param {number} seconds */
function lasting(seconds) {
  return seconds < 90 ? `${seconds} seconds` : `${Math.round(seconds / 60)} minutes`;
}

function onLive({ seed, prompt }) {
  session.live = true;
  Object.assign(wish, { seed, prompt });
  if (document.activeElement !== field) field.value = prompt;
  hud.seed(seed);
  onHeld(keys.held, performance.now());
  if (media.running) return; // a world that began again comes through the same peer
  session.shown = false;
  const title = session.returning ? "Restoring your world" : "Drawing your world";
  hud.veil("opening", { title, text: wish.prompt });
  startMedia();
}

function onLost() {
  const reason = session.reason || (session.entered ? "The connection broke off." : "The server does not answer.");
  session = newSession();
  media.stop();
  keys.release();
  hud.rate(null);
  hud.latency(null);
  hud.company(0, 0);
  hud.veil("lost", {
    title: "The world is out of reach",
    text: `${reason} Trying again by itself.`,
    action: ["Try now", () => connection.open()],
  });
}

// The picture.

async function startMedia() {
  const { token, ice_servers } = session.welcome;
  const endpoint = new URL("whep", document.baseURI);
  endpoint.searchParams.set("session", token);
  latency.reset();
  try {
    await media.start(endpoint, ice_servers.map(withoutNulls));
  } catch (error) {
    media.stop();
    onMediaLost(error.message);
  }
}

/** RTCPeerConnection takes an absent user name, but not null. */
function withoutNulls(server) {
  return Object.fromEntries(Object.entries(server).filter(([, value]) => value !== null));
}

function onMediaLost(reason) {
  if (!session.live) return;
  session.reason = reason;
  session.shown = false;
  session.mediaTries += 1;
  if (session.mediaTries >= MEDIA_TRIES) return connection.retry();
  hud.veil("opening", { title: "Looking for another way", text: `${reason} Trying again by itself.` });
  const { welcome } = session;
  setTimeout(() => session.live && session.welcome === welcome && !media.running && startMedia(), MEDIA_DELAY_MS);
}

function onBlocked() {
  hud.veil("blocked", { title: "Your world is ready", action: ["Enter", () => media.play()] });
}

function onFrame(now, frame) {
  rate.presented(frame.presentationTime, frame.presentedFrames);
  latency.presented(frame.rtpTimestamp, frame.expectedDisplayTime);
  glow.update(now);
  if (session.shown || !session.live) return;
  Object.assign(session, { shown: true, mediaTries: 0, reason: "" });
  connection.settled();
  hud.live();
}

function onShown(number, ms) {
  hud.latency(ms);
  connection.send(messages.shown({ seq: number, ms }));
}

// What the viewer does.

function onHeld(held, at) {
  hud.held(held);
  clearInterval(resend);
  if (!session.live) return;
  const text = messages.keys({ seq: ++seq, held });
  latency.sent(seq, at);
  connection.send(text);
  if (held.length) resend = setInterval(() => connection.send(text), RESEND_MS);
}

function ask(text) {
  const prompt = text.trim();
  if (prompt === "") return hud.notice("Say in a few words what you want to see.");
  wish.prompt = prompt;
  field.value = prompt;
  stage.focus();
  if (!session.entered) return void connection.send(messages.hello(wish)); // the first one was refused
  session.promptSeq = ++seq;
  if (connection.send(messages.prompt({ seq, text: prompt }))) hud.pending(true);
}

function beginAgain() {
  const seed = Math.floor(Math.random() * SEEDS);
  wish.seed = seed;
  connection.send(messages.restart({ seq: ++seq, seed, prompt: wish.prompt }));
  stage.focus();
}

async function share() {
  const address = new URL(document.baseURI);
  address.search = new URLSearchParams({ prompt: wish.prompt, ...(wish.seed === null ? {} : { seed: wish.seed }) });
  await copy(address.href);
  hud.notice("The link to this world is copied.");
}

async function copySeed() {
  await copy(String(wish.seed));
  hud.notice(`The seed ${wish.seed} is copied.`);
}

function listenToComposer() {
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(field.value);
  });
  field.addEventListener("focus", () => field.select());
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    field.value = wish.prompt;
    stage.focus();
  });
  addEventListener("keydown", (event) => {
    if (event.target !== document.body && event.target !== stage) return;
    if (event.key !== "Enter" && event.key !== "/") return;
    event.preventDefault();
    field.focus();
  });
}

function listenToPage() {
  stage.addEventListener("click", () => stage.focus());
  find("again").addEventListener("click", beginAgain);
  find("share").addEventListener("click", share);
  find("seed").addEventListener("click", copySeed);
  addEventListener("online", () => session.entered || connection.open());
  addEventListener("pageshow", (event) => event.persisted && connection.open());
  addEventListener("pagehide", () => {
    connection.send(messages.leave());
    connection.close();
    media.stop();
  });
}

field.value = wish.prompt;
field.maxLength = messages.MAX_PROMPT_CHARACTERS;
hud.examples(EXAMPLES, ask);
keys.listenToKeyboard(window);
for (const group of document.querySelectorAll(".keys")) keys.listenToButtons(group);
listenToComposer();
listenToPage();
setInterval(() => hud.rate(rate.now(performance.now())), 500);
stage.focus();
connection.open();
