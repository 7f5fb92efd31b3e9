// What the viewer does, and what the server is told of it.

import { copy } from "./clipboard.js";
import * as messages from "./messages.js";
import { token } from "./token.js";
import * as upload from "./upload.js";
import { addressOf, addressToWatch, anySeed, seedOf } from "./wish.js";

const RESEND_MS = messages.KEYS_HELD_MS / 5;

export class Viewer {
  #session;
  #connection;
  #hud;
  #latency;
  #screen;
  #timeline;
  #resend = 0;

  /** @param {{ session: Session, connection: Connection, hud: Hud, latency: Latency, screen: Screen,
   *   timeline: Timeline }} parts of the page */
  constructor({ session, connection, hud, latency, screen, timeline }) {
    this.#session = session;
    this.#connection = connection;
    this.#hud = hud;
    this.#latency = latency;
    this.#screen = screen;
    this.#timeline = timeline;
  }

  // Keys and words.

  /** Holds these keys since `at` ms; they are told again while any is held. */
  hold(held, at) {
    this.#hud.held(held);
    clearInterval(this.#resend);
    if (!this.#session.live || !this.#session.welcome.keys.length) return;
    if (held.length) this.#touch();
    const seq = this.#session.next();
    const text = messages.keys({ seq, held });
    this.#latency.sent(seq, at);
    this.#connection.send(text);
    if (held.length) this.#resend = setInterval(() => this.#connection.send(text), RESEND_MS);
  }

  /** The first frame that obeys message `seq` came `ms` after what caused it. */
  saw(seq, ms) {
    this.#hud.latency(ms);
    this.#connection.send(messages.shown({ seq, ms }));
  }

  ask(text) {
    const prompt = text.trim();
    if (prompt === "") return this.#hud.notice("Say in a few words what you want to see.");
    const session = this.#session;
    if (!this.#connection.wanted && token()) return this.#hud.notice("Go on with your world first, then say it again.");
    session.takeWords(prompt);
    this.#hud.write(prompt);
    this.#hud.focusWorld();
    if (!this.#connection.wanted) return this.#connection.open();
    if (!session.entered) return void this.#connection.send(session.hello); // the first one was refused
    this.#touch();
    session.promptSeq = session.next();
    if (this.#connection.send(messages.prompt({ seq: session.promptSeq, text: prompt }))) this.#hud.pending(true);
  }

  forgetWords() {
    this.#hud.write(this.#session.prompt);
  }

  // Another world, or this one from its beginning.

  beginAnother() {
    this.#beginWith(anySeed());
  }

  beginWithSeed(text) {
    const seed = seedOf(text);
    if (seed === null) return this.#hud.notice(`A seed is a whole number from 0 to ${messages.MAX_SEED}.`);
    this.#beginWith(seed);
  }

  forgetSeed() {
    this.#hud.seed(this.#session.wish.seed);
  }

  /** Another seed; without the picture, unless the world cannot begin without one. */
  #beginWith(seed) {
    const session = this.#session;
    session.wish.seed = seed;
    const image = session.welcome.image === "required" ? undefined : "none";
    session.pictured &&= image === undefined;
    this.#touch();
    this.#connection.send(messages.restart({ seq: session.next(), seed, prompt: session.wish.prompt, image }));
    this.#hud.focusWorld();
  }

  beginAgain() {
    this.#connection.send(messages.restart({ seq: this.#session.next() }));
  }

  async beginWithPicture(file) {
    const { welcome } = this.#session;
    if (!welcome) return this.#hud.notice("There is no world yet for a picture: wait until there is.");
    if (welcome.image === "none") return this.#hud.notice("This world takes no picture, only words.");
    this.#hud.notice("Your picture is on its way …", true);
    try {
      const image = await upload.send(file, welcome);
      if (this.#session.welcome !== welcome) throw new Error("The connection broke off meanwhile: send the picture again.");
      this.#touch();
      const seq = this.#session.next();
      Object.assign(this.#session, { pictured: true, pictureSeq: seq });
      this.#connection.send(messages.restart({ seq, prompt: this.#wordsBeside(welcome), image }));
    } catch (error) {
      this.#hud.notice(error.message);
    }
  }

  /** The words that a picture begins with: what was written for it; else none, where the world needs none. */
  #wordsBeside({ names_pictures }) {
    const { written } = this.#hud;
    if (written !== this.#session.prompt) return written;
    return names_pictures ? "" : this.#session.wish.prompt;
  }

  // Time.

  goBack() {
    if (!this.#session.shown) return;
    this.#touch();
    this.#session.rewindSeq = this.#session.next(); // a paused world goes on once the server says that it goes back
    this.#connection.send(messages.rewind({ seq: this.#session.rewindSeq, chunk: this.#timeline.back() }));
  }

  togglePause() {
    const session = this.#session;
    if (!session.live) return;
    this.#touch();
    const seq = session.next();
    if (!session.paused) return this.#connection.send(messages.pause({ seq })); // the picture stands when `paused` comes
    this.#screen.pause(false);
    this.#connection.send(messages.unpause({ seq }));
    if (!session.shown) this.#hud.veil("opening", { title: "Restoring your world", text: session.prompt });
  }

  park() {
    this.#connection.send(messages.park());
  }

  // Coming and going.

  leaveLine() {
    this.#session.leaving = true;
    this.#connection.send(messages.leave());
  }

  /** A world that was walked in is kept, or reloading the page would lose it; the place is free at once either way. */
  leavePage() {
    const { touched, returning } = this.#session;
    this.#connection.send(touched || returning ? messages.park() : messages.leave());
    this.#connection.close();
    this.#screen.leave();
  }

  changeNetwork() {
    if (!this.#connection.wanted) return;
    this.#screen.forgetNetwork();
    this.#connection.open();
  }

  async invite() {
    const watchToken = this.#session.welcome?.watch_token;
    if (!watchToken) return this.#hud.notice("There is no world to watch now: wait until there is.");
    const said = "A link is copied: whoever opens it sees what you see, and steers nothing.";
    await this.#copy(addressToWatch(watchToken), said);
  }

  /** From watching to a world of one's own. */
  walk() {
    location.assign(new URL(".", document.baseURI));
  }

  #touch() {
    this.#session.touched = true;
    this.#hud.endHint();
  }

  async share() {
    const { wish, pictured } = this.#session;
    const said = pictured ? "A link to these words is copied; your picture stays here." : "The link to this world is copied.";
    await this.#copy(addressOf(wish), said);
  }

  /** A browser may forbid it: then the link is there to be copied by hand. */
  async #copy(address, said) {
    try {
      await copy(address);
      this.#hud.notice(said);
    } catch {
      this.#hud.notice(`The browser did not copy the link. Here it is: ${address}`, true);
    }
  }
}
