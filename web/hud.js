// All that is written onto the page. It knows elements, and neither sockets nor peers.

const find = (id) => document.getElementById(id);

const NAME = "chunkcast";
const NOTICE_MS = 6000;
const TURN_NEAR_SECONDS = 20;

/** What a state is called on the page. */
const WORDS = {
  opening: "opening",
  waiting: "in line",
  lost: "out of reach",
  blocked: "ready",
  parked: "kept",
  left: "left",
  live: "live",
};
/** Where nothing goes on without a click. */
const WAITS_FOR_A_CLICK = ["blocked", "parked", "left"];

export class Hud {
  #noticeTimer = 0;
  #actions = {};
  #hints = false;
  #known = false; // whether the viewer has done anything yet

  constructor() {
    for (const id of ["veil-action", "veil-other"]) find(id).addEventListener("click", () => this.#actions[id]());
  }

  /**
   * Covers the picture and says why.
   * @param {"opening"|"waiting"|"lost"|"blocked"|"parked"|"left"} state
   * @param {{ title: string, text?: string, place?: number, action?: Choice, other?: Choice }} what
   *   Choice is [string, () => void]
   */
  veil(state, { title, text = "", place = 0, action = null, other = null }) {
    this.#state(state);
    write("veil-title", title);
    write("veil-text", text);
    write("place", String(place));
    find("place").hidden = place === 0;
    document.title = place === 0 ? NAME : `${place} in line · ${NAME}`; // seen while one waits in another tab
    for (const [id, choice] of [["veil-action", action], ["veil-other", other]]) {
      find(id).hidden = choice === null;
      if (choice) [find(id).textContent, this.#actions[id]] = choice;
    }
    // Whoever walks by keyboard goes on by keyboard; whoever writes is left alone.
    if (WAITS_FOR_A_CLICK.includes(state) && !find("composer").contains(document.activeElement)) find("veil-action").focus();
  }

  /** Uncovers the picture. */
  live() {
    this.#state("live");
    document.title = NAME;
    if (find("veil").contains(document.activeElement)) this.focusWorld();
  }

  /** Says what one can do here, until one does it. */
  hint() {
    if (this.#known) return;
    const keys = matchMedia("(pointer: coarse)").matches ? "the arrows to walk and look around" : "W A S D to walk, I J K L to look around";
    const walk = find("walk").hidden ? "" : `Hold ${keys}. `;
    this.ask(`${walk}Write what you want to see.`);
  }

  endHint() {
    this.#known = true;
    if (this.#hints) this.notice("");
  }

  /** A line that stays until the viewer does something. */
  ask(text) {
    this.notice(text, true);
    this.#hints = true;
  }

  /** A line for a few seconds, or until the next one: something was refused, copied, is on its way. */
  notice(text, stays = false) {
    this.#hints = false;
    clearTimeout(this.#noticeTimer);
    write("notice", text);
    if (!stays) this.#noticeTimer = setTimeout(() => write("notice", ""), NOTICE_MS);
  }

  /** @param {string|null} reason why the picture comes over the WebSocket; null: it does not */
  way(reason) {
    find("way").hidden = reason === null;
    find("way").title = reason === null ? "" : `The picture comes over the WebSocket. ${reason}`;
  }

  /** @param {boolean} paused the world stands, and the button makes it go on */
  paused(paused) {
    const word = paused ? "Go on" : "Pause";
    const button = find("pause");
    button.setAttribute("aria-label", word);
    button.title = `${word} (Space)`;
    button.querySelector("use").setAttribute("href", paused ? "#icon-play" : "#icon-pause");
    find("go-on").hidden = !paused;
    document.documentElement.toggleAttribute("data-paused", paused);
    this.#tellState();
  }

  /** @param {number|null} seconds that are left of the viewer's turn; null: no one else waits for it */
  turn(seconds) {
    find("turn").hidden = seconds === null;
    find("turn").toggleAttribute("data-near", seconds !== null && seconds <= TURN_NEAR_SECONDS);
    write("turn-left", seconds === null ? "" : `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`);
  }

  /** What the world takes, and its shape: keys that move its camera, a picture to begin with. */
  offers({ keys, image, width, height, watch_token }) {
    for (const group of document.querySelectorAll(".keys")) group.hidden = keys.length === 0;
    find("picture").hidden = image === "none";
    find("invite").hidden = !watch_token;
    find("stage").style.setProperty("--shape", `${width} / ${height}`);
  }

  /** This page watches, and shows nothing that steers. @param {() => void} onwalk a world of one's own is wished for */
  watches(onwalk) {
    document.documentElement.toggleAttribute("data-watches", true);
    find("walk-yourself").hidden = false;
    find("walk-yourself").addEventListener("click", onwalk);
  }

  /** The keyboard walks, and types nothing. */
  focusWorld() {
    find("stage").focus();
  }

  /** What is written in the line for words. */
  get written() {
    return find("prompt").value.trim();
  }

  /** Writes the words of the world into their line. */
  write(prompt) {
    find("prompt").value = prompt;
  }

  /** As write(), unless someone is writing there. */
  offerWords(prompt) {
    if (document.activeElement !== find("prompt")) this.write(prompt);
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
    find("seeding").hidden = seed === null;
    if (document.activeElement !== find("seed")) find("seed").value = String(seed ?? "");
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

  #tellState() {
    const { state, paused, watches } = document.documentElement.dataset;
    const live = paused !== undefined ? "paused" : watches !== undefined ? "watching" : WORDS.live;
    write("state", state === "live" ? live : state === "waiting" && watches !== undefined ? "waiting" : WORDS[state]);
  }

  #state(state) {
    document.documentElement.dataset.state = state;
    this.#tellState();
    find("veil").inert = state === "live";
    // What only a live world can do cannot be reached while there is none.
    for (const id of ["start", "back", "pause", "park", "again", "seed"]) find(id).disabled = state !== "live";
  }
}

/** Touches the page only when there is something new, so that screen readers do not repeat themselves. */
function write(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}
