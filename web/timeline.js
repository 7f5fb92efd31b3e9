// Where one is in the world's time, in chunks, as far as the server told.

const BACK_SECONDS = 5;

export class Timeline {
  #chunkSeconds = 1;
  #made = 0; // chunks that the world has
  #lead = 0; // those of them that are not on the screen yet

  /** @param {{ chunk_frames: number, fps: number }} welcome */
  begin({ chunk_frames, fps }) {
    this.#chunkSeconds = chunk_frames / fps;
  }

  /** The world has `made` chunks, and `lead` ms of them wait. */
  told(made, lead) {
    this.#made = made;
    this.#lead = lead / 1000 / this.#chunkSeconds;
  }

  /** The chunk that some seconds back lead to; from now on the world is taken to have so many. */
  back() {
    const chunk = Math.max(0, Math.round(this.#made - this.#lead - BACK_SECONDS / this.#chunkSeconds));
    this.told(chunk, 0);
    return chunk;
  }
}
