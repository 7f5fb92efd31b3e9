// Which keys are held, whoever holds them: the keyboard, a finger, or a focused button.

const BY_CODE = {
  KeyW: "w", KeyA: "a", KeyS: "s", KeyD: "d", KeyI: "i", KeyJ: "j", KeyK: "k", KeyL: "l",
  ArrowUp: "w", ArrowDown: "s", ArrowLeft: "j", ArrowRight: "l",
};

export class Keys {
  #holders = new Map(); // "KeyW", "pointer 3" -> { key, since, ending }: what it holds, and the timer that ends it
  #held = "";
  #onchange;

  /** A tap holds its key for at least so many ms: the length of a chunk, or a tap could fall between two. */
  shortest = 0;

  /** @param {(held: string[], at: number) => void} onchange `at` in ms on the clock of performance.now() */
  constructor(onchange) {
    this.#onchange = onchange;
  }

  get held() {
    return [...new Set([...this.#holders.values()].map(({ key }) => key))].sort();
  }

  /** Lets go of everything, as when the page loses sight of the keyboard: no key may stay stuck. */
  release() {
    for (const { ending } of this.#holders.values()) clearTimeout(ending);
    this.#holders.clear();
    this.#changed(performance.now());
  }

  /** Keys are read by their place, so that they lie alike on every keyboard; text fields and shortcuts keep theirs. */
  listenToKeyboard(target) {
    target.addEventListener("keydown", (event) => {
      const key = BY_CODE[event.code];
      if (!key || event.ctrlKey || event.metaKey || event.altKey || isText(event.target)) return;
      event.preventDefault();
      this.#hold(event.code, key, event.timeStamp);
    });
    target.addEventListener("keyup", (event) => {
      if (event.key === "Meta") this.release(); // macOS tells of no other key that was let go while it was down
      else this.#hold(event.code, null, event.timeStamp);
    });
    target.addEventListener("blur", () => this.release());
    document.addEventListener("visibilitychange", () => this.release());
  }

  /** Buttons with `data-key`: a finger holds what it lies on and may slide from one to the next. */
  listenToButtons(group) {
    const follow = (event) => {
      const key = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-key]")?.dataset.key;
      this.#hold(`pointer ${event.pointerId}`, key ?? null, event.timeStamp);
    };
    const release = (event) => this.#hold(`pointer ${event.pointerId}`, null, event.timeStamp);
    group.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      group.setPointerCapture(event.pointerId);
      follow(event);
    });
    group.addEventListener("pointermove", (event) => group.hasPointerCapture(event.pointerId) && follow(event));
    group.addEventListener("lostpointercapture", release);
    group.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch is a held key
    group.addEventListener("keydown", (event) => {
      if (event.code !== "Space" && event.code !== "Enter") return;
      event.preventDefault();
      this.#hold(event.code, event.target.dataset.key ?? null, event.timeStamp);
    });
    group.addEventListener("keyup", (event) => event.code === "Space" && event.preventDefault()); // or a click follows
    group.addEventListener("click", (event) => {
      if (event.detail !== 0) return; // of a pointer, which is seen to; without one, as by voice, a click is a tap
      const key = event.target.closest("[data-key]")?.dataset.key;
      if (!key) return;
      this.#hold("click", key, event.timeStamp);
      this.#hold("click", null, event.timeStamp);
    });
  }

  #hold(holder, key, at) {
    const before = this.#holders.get(holder);
    if (key === null) return this.#letGo(holder, at);
    if (before?.key === key && !before.ending) return; // a keyboard repeats a held key
    clearTimeout(before?.ending);
    this.#holders.set(holder, { key, since: at, ending: 0 });
    this.#changed(at);
  }

  #letGo(holder, at) {
    const held = this.#holders.get(holder);
    if (!held || held.ending) return;
    const end = () => {
      this.#holders.delete(holder);
      this.#changed(performance.now());
    };
    const rest = held.since + this.shortest - at;
    if (rest > 0) held.ending = setTimeout(end, rest);
    else end();
  }

  #changed(at) {
    const held = this.held;
    if (held.join() === this.#held) return;
    this.#held = held.join();
    this.#onchange(held, at);
  }
}

function isText(element) {
  return element instanceof HTMLElement && element.matches("input, textarea, [contenteditable]");
}
