// The picture's life on this page: it begins, moves, is paused, breaks off, is fetched again, ends.

import { Glow } from "./glow.js";
import { Picture } from "./picture.js";
import { Rate } from "./rate.js";

const TRIES = 3;
const DELAY_MS = 1000;

const find = (id) => document.getElementById(id);

export class Screen {
  #session;
  #connection;
  #hud;
  #keys;
  #latency;
  #picture;
  #glow = new Glow(find("glow"));
  #rate = new Rate();

  /**
   * @param {{ session: Session, connection: Connection, hud: Hud, keys: Keys, latency: Latency }} parts of the page
   * @param {boolean} overSocket the picture comes over the WebSocket, without a try by WebRTC
   */
  constructor({ session, connection, hud, keys, latency }, overSocket) {
    this.#session = session;
    this.#connection = connection;
    this.#hud = hud;
    this.#keys = keys;
    this.#latency = latency;
    const handlers = {
      frame: (now, frame) => this.#shown(now, frame),
      lost: (reason) => this.#lost(reason),
      blocked: () => this.#blocked(),
      way: (reason) => hud.way(reason),
    };
    this.#picture = new Picture({ video: find("video"), canvas: find("canvas") }, handlers, overSocket);
  }

  /** Whether a picture is there or on its way. */
  get running() {
    return this.#picture.running;
  }

  async start() {
    this.#latency.reset();
    try {
      await this.#picture.start(this.#session.welcome);
    } catch (error) {
      this.#picture.stop();
      this.#lost(error.message);
    }
  }

  /** No world is live: no picture, and nothing that is told beside one. */
  stop() {
    this.#picture.stop();
    this.#keys.release();
    this.pause(false);
    this.#hud.rate(null);
    this.#hud.latency(null);
    this.#hud.turn(null);
    this.#hud.company(0, 0);
  }

  /** The page goes away. */
  leave() {
    this.#picture.stop();
  }

  /** What was connected over the network before is not any more. */
  forgetNetwork() {
    this.#picture.forget();
  }

  /** @param {boolean} paused the world stands still, and that is no fault of the picture's */
  pause(paused) {
    if (this.#session.paused && !paused) this.#rate.forget();
    this.#session.paused = this.#picture.rests = paused;
    this.#hud.paused(paused);
  }

  /** To be called now and then: tells the frames a second. */
  tellRate() {
    const { shown, paused } = this.#session;
    this.#hud.rate(shown && !paused ? this.#rate.now(performance.now()) : null);
  }

  #shown(now, frame) {
    this.#rate.presented(frame.presentationTime, frame.presentedFrames);
    this.#latency.presented(frame.rtpTimestamp, frame.expectedDisplayTime);
    this.#glow.update(now, this.#picture.element);
    if (this.#session.shown || !this.#session.live) return;
    Object.assign(this.#session, { shown: true, pictureTries: 0, reason: "" });
    this.#connection.settled();
    this.#hud.live();
    if (this.#session.watch !== null) this.#hud.notice("You see what someone else walks through.");
    else if (!this.#session.returning) this.#hud.hint();
  }

  #lost(reason) {
    const session = this.#session;
    if (!session.live) return;
    session.reason = reason;
    session.shown = false;
    session.pictureTries += 1;
    if (session.pictureTries >= TRIES) return this.#connection.retry();
    this.#hud.veil("opening", { title: "Looking for another way", text: `${reason} Trying again by itself.` });
    const { welcome } = session;
    const delay = DELAY_MS * (session.pictureTries - 1); // a change of network needs no more than another offer
    setTimeout(() => session.live && session.welcome === welcome && !this.running && this.start(), delay);
  }

  #blocked() {
    this.#hud.veil("blocked", { title: "Your world is ready", action: ["Enter", () => this.#picture.play()] });
  }
}
