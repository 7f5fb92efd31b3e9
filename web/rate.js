// Frames a second over the last two seconds, from the browser's count of presented frames.

const SPAN_MS = 2000;

export class Rate {
  #marks = []; // { at, count }

  /** `count` frames of this stream had been presented at `at` ms. */
  presented(at, count) {
    if (this.#marks.length && count < this.#marks.at(-1).count) this.#marks = []; // another stream
    this.#marks.push({ at, count });
  }

  /** The world stood still: what was before it does not count. */
  forget() {
    this.#marks = [];
  }

  /** @returns {number|null} frames/s in the time up to `at` ms, null where too little was seen to say */
  now(at) {
    this.#marks = this.#marks.filter((mark) => at - mark.at < SPAN_MS);
    const [first] = this.#marks;
    const last = this.#marks.at(-1);
    return this.#marks.length < 2 ? null : (1000 * (last.count - first.count)) / (last.at - first.at);
  }
}
