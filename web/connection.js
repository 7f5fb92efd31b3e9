// The life of the WebSocket: opens, hands on what comes, and opens again by itself after a failure.

import { parse } from "./messages.js";

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 15_000;

export class Connection {
  #url;
  #handlers;
  #socket = null;
  #failures = 0;
  #timer = 0;
  #wanted = false;

  /**
   * @param {string} url of /ws
   * @param {{ opened: () => void, message: (message: object) => void, lost: () => void }} handlers
   *   `opened` must say hello; after `lost` the next try comes by itself
   */
  constructor(url, handlers) {
    this.#url = url;
    this.#handlers = handlers;
  }

  /** True from open() on until close(), also while it waits for another try. */
  get wanted() {
    return this.#wanted;
  }

  open() {
    this.close();
    this.#wanted = true;
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.onopen = () => this.#handlers.opened();
    socket.onmessage = ({ data }) => this.#handlers.message(parse(data));
    socket.onclose = () => this.#lost(socket);
  }

  /** True when `text` is on its way; false while there is no connection. */
  send(text) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(text);
    return true;
  }

  /** All went well to the end (a picture, a place in line): the next failure is again the first. */
  settled() {
    this.#failures = 0;
  }

  /** Ends the connection without another try. */
  close() {
    clearTimeout(this.#timer);
    this.#wanted = false;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  /** Gives this connection up and tries again after the back-off. */
  retry() {
    this.close();
    this.#wanted = true;
    const delay = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures);
    const jittered = delay * (0.75 + Math.random() / 2); // or all pages return at once after a restart
    this.#failures += 1;
    this.#timer = setTimeout(() => this.open(), jittered);
    this.#handlers.lost();
  }

  #lost(socket) {
    if (socket === this.#socket) this.retry();
  }
}
