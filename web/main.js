// Joins the parts: what the viewer does goes to the server, what the server says goes to the picture and the page.

import { copy } from "./clipboard.js";
import * as controls from "./controls.js";
import { Connection } from "./connection.js";
import { Glow } from "./glow.js";
import { Hud } from "./hud.js";
import { Keys } from "./keys.js";
import { Latency } from "./latency.js";
import { Picture } from "./picture.js";
import { Rate } from "./rate.js";
import { Timeline } from "./timeline.js";
import * as upload from "./upload.js";
import { access, dropToken, keepToken, token } from "./token.js";
import { EXAMPLES, addressOf, anySeed, seedOf, wishOf } from "./wish.js";
import * as messages from "./messages.js";

const RESEND_MS = messages.KEYS_HELD_MS / 5;
const PICTURE_TRIES = 3;
const PICTURE_DELAY_MS = 1000;
/** A live session hears from the server once a second. */
const SILENT_MS = 6000;

const find = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);
const stage = find("stage");
const field = find("prompt");

const hud = new Hud();
const timeline = new Timeline();
const glow = new Glow(find("glow"));
const rate = new Rate();
const latency = new Latency(onShown);
const keys = new Keys(onHeld);
const picture = new Picture(
  { video: find("video"), canvas: find("canvas") },
  { frame: onFrame, lost: onPictureLost, blocked: onBlocked, way: (reason) => hud.way(reason) },
  parameters.get("via") === "ws",
);
const connection = new Connection(socketAddress(), { opened: sayHello, message: onMessage, lost: onLost });

const wish = wishOf(parameters); // what to ask for, also after a lost connection
const pass = access();
let session = newSession();
let seq = 0;
let resend = 0;

function newSession() {
  return {
    entered: false,
    welcome: null,
    live: false,
    shown: false,
    returning: false,
    leaving: false,
    paused: false,
    pictured: false, // whether it begins with a picture, as far as this page knows
    promptSeq: 0,
    pictureSeq: 0,
    pictureTries: 0,
    heardAt: null,
    reason: "",
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
      return onReceived(message); // the keys light up at once, without waiting for it
    case "applied":
      if (message.seq >= session.promptSeq) hud.pending(false);
      return latency.applied(message.seq, message.rtp ?? null);
    case "paused":
      return onPaused();
    case "asked":
      return hud.notice(`Others wait: press a key within ${message.seconds} seconds, or your place goes to them.`);
    case "parked":
      return onParked(message);
    case "scene":
      return hud.scene(message.text, message.unknown_words, message.guessed_words ?? []);
    case "stats":
      return onStats(message);
    case "ended":
      return onEnded(message);
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
  timeline.begin(message);
  hud.offers(message.keys.length > 0, message.image !== "none");
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
  const { welcome } = session;
  rest();
  hud.veil("parked", {
    title: "Your world is kept",
    text: `${reason} You can go on with it for a day.`,
    action: ["Go on", () => connection.open()],
    other: ["Delete it", () => giveUp(welcome)],
  });
}

/** A world that is kept is deleted, and the page waits for a click. */
async function giveUp({ session: name, token: secret }) {
  dropToken();
  hud.veil("parked", { title: "You have left", action: ["Begin another world", () => connection.open()] });
  const address = new URL(`api/sessions/${name}`, document.baseURI);
  await fetch(address, { method: "DELETE", headers: { Authorization: `Bearer ${secret}` } }).catch(() => {}); // a day does it
}

function onEnded({ reason }) {
  dropToken();
  if (!session.leaving) {
    session.reason = reason;
    return connection.retry();
  }
  rest();
  hud.veil("parked", { title: "You have left the line", action: ["Stand in line again", () => connection.open()] });
}

/** No connection, no picture, and no other try by itself. */
function rest() {
  connection.close();
  stopPicture();
  session = newSession();
}

function stopPicture() {
  picture.stop();
  keys.release();
  pausePicture(false);
  hud.rate(null);
  hud.latency(null);
  hud.turn(null);
  hud.company(0, 0);
}

function pausePicture(paused) {
  session.paused = picture.rests = paused;
  hud.paused(paused);
}

function onStats({ viewers, waiting, chunk, lead_ms, turn_seconds }) {
  session.heardAt = performance.now();
  hud.company(viewers, waiting);
  hud.turn(turn_seconds ?? null);
  timeline.told(chunk ?? 0, lead_ms);
}

function onReceived({ seq: number }) {
  if (number === session.pictureSeq) hud.notice("A new world begins with your picture.");
}

function onPaused() {
  if (!session.live) return;
  pausePicture(true);
  if (!session.shown) hud.veil("blocked", { title: "Your world stands still", action: ["Go on", togglePause] });
}

function onQueued({ place, waiting, reason, wait_seconds, restoring, needs_picture }) {
  Object.assign(session, { entered: true, live: false }); // welcome comes later while the engine is loading
  stopPicture();
  connection.settled();
  session.returning = Boolean(restoring);
  const other = ["Leave the line", leaveLine];
  if (needs_picture) {
    const text = "This world begins with a picture. Drop one here, paste it, or choose a file.";
    return hud.veil("waiting", { title: "Which picture?", text, action: ["Choose a picture", choosePicture], other });
  }
  const title = restoring ? "Restoring your world" : place === 1 ? "You are next" : "You are in line";
  const company = waiting > 1 ? ` ${waiting} are waiting.` : "";
  const wait = wait_seconds === null || wait_seconds === undefined ? "" : ` It takes about ${lasting(wait_seconds)}.`;
  const then = restoring ? "It goes on by itself." : "You enter by yourself when it is your turn.";
  const text = `${reason} ${then}${company}${wait}`;
  hud.veil("waiting", { title, text, place, other });
}

/** @param {number} seconds */
function lasting(seconds) {
  return seconds < 90 ? `${seconds} seconds` : `${Math.round(seconds / 60)} minutes`;
}

function onLive({ seed, prompt }) {
  session.live = true;
  pausePicture(false);
  timeline.told(0, 0);
  Object.assign(wish, { seed, prompt });
  if (document.activeElement !== field) field.value = prompt;
  hud.seed(seed);
  onHeld(keys.held, performance.now());
  if (picture.running) return; // a world that began again comes through the same peer
  session.shown = false;
  const title = session.returning ? "Restoring your world" : "Drawing your world";
  hud.veil("opening", { title, text: wish.prompt });
  startPicture();
}

function onLost() {
  const reason = session.reason || (session.entered ? "The connection broke off." : "The server does not answer.");
  session = newSession();
  stopPicture();
  hud.veil("lost", {
    title: "The world is out of reach",
    text: `${reason} Trying again by itself.`,
    action: ["Try now", () => connection.open()],
  });
}

// The picture.

async function startPicture() {
  latency.reset();
  try {
    await picture.start(session.welcome);
  } catch (error) {
    picture.stop();
    onPictureLost(error.message);
  }
}

function onPictureLost(reason) {
  if (!session.live) return;
  session.reason = reason;
  session.shown = false;
  session.pictureTries += 1;
  if (session.pictureTries >= PICTURE_TRIES) return connection.retry();
  hud.veil("opening", { title: "Looking for another way", text: `${reason} Trying again by itself.` });
  const { welcome } = session;
  const delay = PICTURE_DELAY_MS * (session.pictureTries - 1); // a change of network needs no more than another offer
  setTimeout(() => session.live && session.welcome === welcome && !picture.running && startPicture(), delay);
}

function onBlocked() {
  hud.veil("blocked", { title: "Your world is ready", action: ["Enter", () => picture.play()] });
}

function onFrame(now, frame) {
  rate.presented(frame.presentationTime, frame.presentedFrames);
  latency.presented(frame.rtpTimestamp, frame.expectedDisplayTime);
  glow.update(now, picture.element);
  if (session.shown || !session.live) return;
  Object.assign(session, { shown: true, pictureTries: 0, reason: "" });
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
  if (!session.live || !session.welcome.keys.length) return;
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

/** Another seed; without the picture, unless the world cannot begin without one. */
function beginAnother(seed) {
  wish.seed = seed;
  const image = session.welcome.image === "required" ? undefined : "none";
  session.pictured &&= image === undefined;
  connection.send(messages.restart({ seq: ++seq, seed, prompt: wish.prompt, image }));
  stage.focus();
}

function beginWithSeed(text) {
  const seed = seedOf(text);
  if (seed === null) return hud.notice(`A seed is a whole number from 0 to ${messages.MAX_SEED}.`);
  beginAnother(seed);
}

function beginAgain() {
  connection.send(messages.restart({ seq: ++seq }));
}

function goBack() {
  if (!session.shown) return;
  connection.send(messages.rewind({ seq: ++seq, chunk: timeline.back() }));
  pausePicture(false);
}

function togglePause() {
  if (!session.live) return;
  if (!session.paused) return connection.send(messages.pause({ seq: ++seq })); // the picture stands when `paused` comes
  pausePicture(false);
  connection.send(messages.unpause({ seq: ++seq }));
  if (!session.shown) hud.veil("opening", { title: "Restoring your world", text: wish.prompt });
}

function leaveLine() {
  session.leaving = true;
  connection.send(messages.leave());
}

function choosePicture() {
  find("file").click();
}

async function beginWithPicture(file) {
  const { welcome } = session;
  if (!welcome) return hud.notice("There is no world yet for a picture: wait until there is.");
  if (welcome.image === "none") return hud.notice("This world takes no picture, only words.");
  hud.notice("Your picture is on its way …", true);
  try {
    const image = await upload.send(file, welcome);
    if (session.welcome !== welcome) throw new Error("The connection broke off meanwhile: send the picture again.");
    Object.assign(session, { pictured: true, pictureSeq: ++seq });
    connection.send(messages.restart({ seq, prompt: wish.prompt, image }));
  } catch (error) {
    hud.notice(error.message);
  }
}

async function share() {
  await copy(addressOf(wish));
  hud.notice(session.pictured ? "A link to these words is copied; your picture stays here." : "The link to this world is copied.");
}

function listenToPage() {
  addEventListener("online", () => {
    if (!connection.wanted) return;
    picture.forget(); // what was connected over the network before is not any more
    connection.open();
  });
  addEventListener("pageshow", (event) => event.persisted && connection.open());
  addEventListener("pagehide", () => {
    connection.send(messages.leave());
    connection.close();
    picture.stop();
  });
}

field.value = wish.prompt;
field.maxLength = messages.MAX_PROMPT_CHARACTERS;
hud.examples(EXAMPLES, ask);
keys.listenToKeyboard(window);
for (const group of document.querySelectorAll(".keys")) keys.listenToButtons(group);
controls.listen({
  ask,
  forgetWords: () => (field.value = wish.prompt),
  forgetSeed: () => hud.seed(wish.seed),
  begin: beginWithSeed,
  another: () => beginAnother(anySeed()),
  again: beginAgain,
  back: goBack,
  pause: togglePause,
  park: () => connection.send(messages.park()),
  share,
  choose: choosePicture,
});
upload.listen(find("file"), beginWithPicture);
listenToPage();
setInterval(() => {
  hud.rate(session.shown && !session.paused ? rate.now(performance.now()) : null);
  if (session.live && session.heardAt !== null && performance.now() - session.heardAt > SILENT_MS) {
    session.reason = "The server has fallen silent.";
    connection.retry();
  }
}, 500);
stage.focus();
connection.open();
