// All that is written onto the page. It knows elements, and neither sockets nor peers.

const find = (id) => document.getElementById(id);

const NOTICE_MS = 6000;

export class Hud {
  #noticeTimer = 0;
  #action = () => {};

  constructor() {
    find("veil-action").addEventListener("click", () => this.#action());
  }

  /**
   * Covers the picture and says why.
   * @param {"opening"|"waiting"|"lost"|"blocked"} state
   * @param {{ title: string, text?: string, place?: number, action?: [string, () => void] }} what
   */
  veil(state, { title, text = "", place = 0, action = null }) {
    this.#state(state);
    write("veil-title", title);
    write("veil-text", text);
    write("place", String(place));
    find("place").hidden = place === 0;
    find("veil-action").hidden = action === null;
    if (action) [find("veil-action").textContent, this.#action] = action;
  }

  /** Uncovers the picture. */
  live() {
    this.#state("live");
  }

  /** A line for a few seconds: something was refused, copied, understood. */
  notice(text) {
    clearTimeout(this.#noticeTimer);
    write("notice", text);
    this.#noticeTimer = setTimeout(() => write("notice", ""), NOTICE_MS);
  }

  /** How the prompt was understood, which of its words were guessed at, and which were not understood. */
  scene(text, unknownWords, guessedWords) {
    const guessed = guessedWords.map(([word, meaning]) => `took ${word} for ${meaning}`);
    const lost = unknownWords.length ? [`not understood: ${unknownWords.join(", ")}`] : [];
    write("scene", text);
    write("unknown", [...guessed, ...lost].join("; "));
  }

  /** @param {number|null} fps null: not known now */
  rate(fps) {
    write("fps", fps === null ? "–" : fps.toFixed(1));
  }

  /** @param {number|null} ms from a key to the screen */
  latency(ms) {
    find("latency").hidden = ms === null;
    write("latency-ms", ms === null ? "" : String(Math.round(ms)));
  }

  /** How many see a world here at this moment, and how many wait for one. */
  company(viewers, waiting) {
    find("company").hidden = viewers < 2 && waiting === 0;
    write("viewers", String(viewers));
    write("waiting", waiting ? `, ${waiting} waiting` : "");
  }

  /** Whether a prompt is on its way into the picture. */
  pending(pending) {
    find("composer").toggleAttribute("data-pending", pending);
  }

  /** @param {number|null} seed */
  seed(seed) {
    find("seed").hidden = seed === null;
    write("seed-number", String(seed ?? ""));
  }

  /** Lights up the keys that are held; the rest of the page steps back while one walks. */
  held(keys) {
    for (const button of document.querySelectorAll("[data-key]")) {
      button.setAttribute("aria-pressed", String(keys.includes(button.dataset.key)));
    }
    document.documentElement.toggleAttribute("data-walking", keys.length > 0);
  }

  /** @param {(text: string) => void} onpick */
  examples(texts, onpick) {
    const chips = texts.map((text) => {
      const chip = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      chip.addEventListener("click", () => onpick(text));
      return chip;
    });
    find("examples").replaceChildren(...chips);
  }

  #state(state) {
    document.documentElement.dataset.state = state;
    write("state", state);
    find("veil").inert = state === "live";
  }
}

/** Touches the page only when there is something new, so that screen readers do not repeat themselves. */
function write(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}
