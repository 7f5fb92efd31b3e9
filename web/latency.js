// From a key to the screen: which shown frame is the first that obeys which message.

const REMEMBERED = 32;

export class Latency {
  #sent = new Map(); // seq -> when its key changed, ms
  #frames = []; // the newest frames on the screen: { rtp, at }
  #awaited = []; // applied messages whose frame is not on the screen yet: { seq, rtp, since }
  #onshown;

  /** @param {(seq: number, ms: number) => void} onshown */
  constructor(onshown) {
    this.#onshown = onshown;
  }

  /** Message `seq` was sent for something that the viewer did at `at` ms. */
  sent(seq, at) {
    this.#sent.set(seq, at);
    if (this.#sent.size > REMEMBERED) this.#sent.delete(this.#sent.keys().next().value);
  }

  /** The server: the frame with RTP timestamp `rtp` is the first that obeys `seq`; null where it cannot tell. */
  applied(seq, rtp) {
    const since = this.#sent.get(seq);
    for (const older of this.#sent.keys()) if (older <= seq) this.#sent.delete(older);
    if (since === undefined || rtp === null) return;
    this.#awaited.push({ seq, rtp, since });
    this.#settle();
  }

  /** A frame came to the screen at `at` ms; `rtp` is undefined where the browser does not say. */
  presented(rtp, at) {
    if (rtp === undefined) return;
    this.#frames.push({ rtp, at });
    if (this.#frames.length > REMEMBERED) this.#frames.shift();
    this.#settle();
  }

  /** Another stream counts its timestamps from elsewhere. */
  reset() {
    this.#sent.clear();
    this.#frames = [];
    this.#awaited = [];
  }

  #settle() {
    this.#awaited = this.#awaited.filter(({ seq, rtp, since }) => {
      const frame = this.#frames.find((candidate) => reached(candidate.rtp, rtp));
      if (frame) this.#onshown(seq, frame.at - since);
      return !frame;
    });
  }
}

/** RTP timestamps have 32 bits and wrap. */
function reached(rtp, target) {
  return ((rtp - target) | 0) >= 0;
}
