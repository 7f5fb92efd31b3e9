// The light of the picture on the wall around it: a dozen pixels, blended over time and stretched behind the video.

const EVERY_MS = 120;
const SHARE = 0.12;

export class Glow {
  #video;
  #context;
  #last = 0;

  constructor(canvas, video) {
    this.#video = video;
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  /** Call it with each frame's time in ms; most frames cost nothing. */
  update(now) {
    if (now - this.#last < EVERY_MS) return;
    this.#last = now;
    const { canvas } = this.#context;
    this.#context.globalAlpha = SHARE;
    this.#context.drawImage(this.#video, 0, 0, canvas.width, canvas.height);
  }
}
