// What this page knows of its session: what it asks for, how far it has come, and how its messages are numbered.

import * as messages from "./messages.js";
import { access, token, watched } from "./token.js";
import { wishOf } from "./wish.js";

export class Session {
  #seq = 0;

  /** @param {URLSearchParams} parameters of the page */
  constructor(parameters) {
    this.wish = wishOf(parameters); // what to ask for, also after a lost connection
    this.access = access();
    this.watch = watched(); // the token of the session of someone else that this page watches; null: one walks oneself
    this.forget();
  }

  /** Nothing is known of it: it has not begun, or the connection to it is lost. */
  forget() {
    Object.assign(this, {
      entered: false,
      welcome: null,
      live: false,
      shown: false,
      returning: false,
      leaving: false,
      paused: false,
      touched: false, // whether the viewer has done anything to this world
      prompt: this.wish.prompt, // "" where the picture that the world begins with says what to see
      pictured: false, // whether it begins with a picture, as far as this page knows
      promptSeq: 0,
      pictureSeq: 0,
      rewindSeq: 0,
      pictureTries: 0,
      heardAt: null,
      reason: "",
    });
  }

  /** What a connection says first: the wish, and the secrets that let this page in and back to its world. */
  get hello() {
    return messages.hello({ ...this.wish, token: token(), access: this.access });
  }

  /** The number of the next message. */
  next() {
    return ++this.#seq;
  }

  /** The session has had numbers up to `seq`, of an earlier page perhaps. */
  countOn(seq) {
    this.#seq = Math.max(this.#seq, seq);
  }

  /** What the world is asked for now; only words are asked for again. */
  takeWords(prompt) {
    this.prompt = prompt;
    if (prompt !== "") this.wish.prompt = prompt;
  }
}
