// What the server says, and what it means for the page.

import * as messages from "./messages.js";
import { dropToken, keepToken, token } from "./token.js";

/** A live session hears from the server once a second. */
const SILENT_MS = 6000;

export class Server {
  #session;
  #connection;
  #hud;
  #keys;
  #latency;
  #screen;
  #timeline;
  #viewer;
  #choosePicture;

  /**
   * @param {{ session: Session, connection: Connection, hud: Hud, keys: Keys, latency: Latency, screen: Screen,
   *   timeline: Timeline, viewer: Viewer, choosePicture: () => void }} parts of the page
   */
  constructor({ session, connection, hud, keys, latency, screen, timeline, viewer, choosePicture }) {
    this.#session = session;
    this.#connection = connection;
    this.#hud = hud;
    this.#keys = keys;
    this.#latency = latency;
    this.#screen = screen;
    this.#timeline = timeline;
    this.#viewer = viewer;
    this.#choosePicture = choosePicture;
  }

  /** The connection is there. */
  greet() {
    const session = this.#session;
    session.forget();
    if (session.watch !== null) return this.#connection.send(messages.spectate({ token: session.watch }));
    session.returning = token() !== undefined;
    this.#connection.send(session.hello);
  }

  take(message) {
    switch (message.type) {
      case "welcome":
        return this.#welcome(message);
      case "queued":
        return this.#queued(message);
      case "live":
        return this.#live(message);
      case "received":
        return this.#received(message); // the keys light up at once, without waiting for it
      case "applied":
        return this.#applied(message);
      case "paused":
        return this.#paused();
      case "asked":
        return this.#hud.ask(`Others wait: press a key within ${message.seconds} seconds, or your place goes to them.`);
      case "parked":
        return this.#parked(message);
      case "scene":
        return this.#scene(message);
      case "stats":
        return this.#stats(message);
      case "ended":
        return this.#ended(message);
      case "error":
        return this.#refused(message);
      default:
        throw new Error(`no one handles the message ${message.type}`);
    }
  }

  /** The connection is gone, and another one comes by itself. */
  lose() {
    const { reason, entered } = this.#session;
    const why = reason || (entered ? "The connection broke off." : "The server does not answer.");
    this.#session.forget();
    this.#screen.stop();
    const watches = this.#session.watch !== null;
    this.#hud.veil("lost", {
      title: watches ? "There is nothing to watch now" : "The world is out of reach",
      text: `${why} Trying again by itself.`,
      action: ["Try now", () => this.#connection.open()],
      other: watches ? ["Walk yourself", () => this.#viewer.walk()] : null,
    });
  }

  /** To be called now and then: a connection that is silent for too long is given up. */
  checkSilence() {
    const { live, heardAt } = this.#session;
    if (!live || heardAt === null || performance.now() - heardAt <= SILENT_MS) return;
    this.#session.reason = "The server has fallen silent.";
    this.#connection.retry();
  }

  // The way in.

  #welcome(message) {
    Object.assign(this.#session, { entered: true, welcome: message });
    if (!message.spectates) keepToken(message.token);
    this.#session.countOn(message.seq ?? 0);
    this.#timeline.begin(message);
    this.#hud.offers(message);
    this.#keys.shortest = (1000 * message.chunk_frames) / message.fps;
  }

  #queued({ place, waiting, reason, wait_seconds, restoring, needs_picture }) {
    Object.assign(this.#session, { entered: true, live: false, shown: false }); // welcome comes later while the engine is loading
    this.#screen.stop();
    this.#connection.settled();
    this.#session.returning = Boolean(restoring);
    if (this.#session.watch !== null) {
      const text = `${reason} You see it as soon as it goes on.`;
      return this.#hud.veil("waiting", { title: "The world stands still", text });
    }
    const other = ["Leave the line", () => this.#viewer.leaveLine()];
    if (needs_picture) {
      const text = "This world begins with a picture. Drop one here, paste it, or choose a file.";
      const action = ["Choose a picture", this.#choosePicture];
      return this.#hud.veil("waiting", { title: "Which picture?", text, action, other });
    }
    const title = restoring ? "Restoring your world" : place === 1 ? "You are next" : "You are in line";
    const company = waiting > 1 ? ` ${waiting} are waiting.` : "";
    const wait = wait_seconds === null || wait_seconds === undefined ? "" : ` It takes ${lasting(wait_seconds)}.`;
    const then = restoring ? "It goes on by itself." : "You enter by yourself when it is your turn.";
    const text = `${reason} ${then}${company}${wait}`;
    this.#hud.veil("waiting", { title, text, place, other });
  }

  #live({ seed, prompt }) {
    const session = this.#session;
    session.live = true;
    this.#screen.pause(false);
    this.#timeline.told(0, 0);
    session.wish.seed = seed;
    session.takeWords(prompt);
    this.#hud.offerWords(prompt);
    this.#hud.seed(seed);
    this.#viewer.hold(this.#keys.held, performance.now());
    if (this.#screen.running) return; // a world that began again comes through the same peer
    session.shown = false;
    const own = session.returning ? "Restoring your world" : "Drawing your world";
    const title = session.watch === null ? own : "Coming to the walk";
    this.#hud.veil("opening", { title, text: prompt });
    this.#screen.start();
  }

  // Answers, and what is told of the world.

  #received({ seq }) {
    if (seq === this.#session.pictureSeq) this.#hud.notice("A new world begins with your picture.");
    if (seq === this.#session.rewindSeq) this.#screen.pause(false);
  }

  #applied({ seq, rtp }) {
    if (seq >= this.#session.promptSeq) this.#hud.pending(false);
    this.#latency.applied(seq, rtp ?? null);
  }

  #refused({ message }) {
    this.#session.reason = message;
    this.#hud.pending(false);
    this.#hud.notice(message);
    if (!this.#session.entered) this.#hud.veil("lost", { title: "That cannot be shown", text: message });
  }

  #paused() {
    if (!this.#session.live) return;
    this.#screen.pause(true);
    const action = ["Go on", () => this.#viewer.togglePause()];
    if (!this.#session.shown && this.#session.watch === null) this.#hud.veil("blocked", { title: "Your world stands still", action });
  }

  #scene({ text, unknown_words, guessed_words }) {
    const { prompt, wish } = this.#session;
    if (prompt === "") wish.prompt = text; // another world of this kind has no picture to say it
    this.#hud.scene(text, unknown_words, guessed_words ?? []);
  }

  #stats({ viewers, waiting, chunk, lead_ms, turn_seconds }) {
    this.#session.heardAt = performance.now();
    this.#hud.company(viewers, waiting);
    this.#hud.turn(turn_seconds ?? null);
    this.#timeline.told(chunk ?? 0, lead_ms);
  }

  // The end.

  #parked({ reason, by_itself }) {
    this.#session.reason = reason;
    this.#hud.notice("");
    if (by_itself) return this.#connection.retry();
    const { welcome } = this.#session;
    this.#rest();
    this.#hud.veil("parked", {
      title: "Your world is kept",
      text: `${reason} You can go on with it for a day.`,
      action: ["Go on", () => this.#connection.open()],
      other: ["Delete it", () => this.#giveUp(welcome)],
    });
  }

  /** A world that is kept is deleted, and the page waits for a click. */
  async #giveUp({ session: name, token: secret }) {
    dropToken();
    this.#hud.veil("left", {
      title: "You have left",
      action: ["Begin another world", () => this.#connection.open()],
    });
    const address = new URL(`api/sessions/${name}`, document.baseURI);
    const headers = { Authorization: `Bearer ${secret}` };
    await fetch(address, { method: "DELETE", headers }).catch(() => {}); // a day does it
  }

  #ended({ reason, needs_access }) {
    const { entered, watch, leaving } = this.#session;
    if (entered && watch === null) dropToken(); // who is turned away at the door still has a world that is kept
    if (needs_access) return this.#lock(reason);
    if (!leaving) {
      this.#session.reason = reason;
      return this.#connection.retry();
    }
    this.#rest();
    this.#hud.veil("left", {
      title: "You have left the line",
      action: ["Stand in line again", () => this.#connection.open()],
    });
  }

  /** No try without the server's own token would do better. */
  #lock(reason) {
    this.#rest();
    this.#hud.veil("left", {
      title: "This server asks for its token",
      text: `${reason} Open the link that you were given: it ends in #access=…`,
      action: ["Try again", () => this.#connection.open()],
    });
  }

  /** No connection, no picture, and no other try by itself. */
  #rest() {
    this.#connection.close();
    this.#screen.stop();
    this.#session.forget();
  }
}

/** @param {number} seconds */
function lasting(seconds) {
  if (seconds < 5) return "a moment";
  return seconds < 90 ? `about ${seconds} seconds` : `about ${Math.round(seconds / 60)} minutes`;
}
