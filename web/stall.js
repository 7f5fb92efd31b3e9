// Notices a picture that stands still. A hidden page and a paused world show no frames, and that is no stall.

const STALL_MS = 8000;

export class Stall {
  #timer = 0;
  #running = false;
  #rests = false;
  #onstall;

  /** @param {() => void} onstall */
  constructor(onstall) {
    this.#onstall = onstall;
    document.addEventListener("visibilitychange", () => this.beat());
  }

  begin() {
    this.#running = true;
    this.beat();
  }

  end() {
    this.#running = false;
    this.beat();
  }

  /** The world is paused. */
  set rests(rests) {
    this.#rests = rests;
    this.beat();
  }

  /** A frame came. */
  beat() {
    clearTimeout(this.#timer);
    if (this.#running && !this.#rests && !document.hidden) this.#timer = setTimeout(this.#onstall, STALL_MS);
  }
}
