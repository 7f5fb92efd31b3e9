// The light of the picture on the wall around it: a dozen pixels, blended over time and stretched behind the video.

const EVERY_MS = 120;
const SHARE = 0.12;

export class Glow {
  #context;
  #last = 0;

  constructor(canvas) {
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  /** Call it with each frame's time in ms and what shows it; most frames cost nothing. */
  update(now, picture) {
    if (now - this.#last < EVERY_MS) return;
    this.#last = now;
    const { canvas } = this.#context;
    this.#context.globalAlpha = SHARE;
    this.#context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  }
}
