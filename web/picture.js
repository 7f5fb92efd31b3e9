// The picture, by whichever way there is: WebRTC, direct or through a TURN server; where that finds none, the same
// encoded frames over a WebSocket.

import { Frames } from "./frames.js";
import { Media } from "./media.js";

export class Picture {
  #media;
  #frames;
  #handlers;
  #elements;
  #overSocket;
  #forced;
  #proven = false; // whether WebRTC has brought a picture since the page or the network was new

  /**
   * @param {{ video: HTMLVideoElement, canvas: HTMLCanvasElement }} elements
   * @param {{ frame: Function, lost: (reason: string) => void, blocked: () => void, way: (reason: string|null) => void }}
   *   handlers as those of Media; `way` hears why the picture comes over the WebSocket, null when it comes by WebRTC
   * @param {boolean} overSocket do not try WebRTC
   */
  constructor(elements, handlers, overSocket) {
    this.#elements = elements;
    this.#handlers = handlers;
    this.#media = new Media(elements.video, {
      frame: (...known) => {
        this.#proven = true;
        handlers.frame(...known);
      },
      lost: (reason) => handlers.lost(this.#fallBack(reason)),
      blocked: handlers.blocked,
    });
    this.#frames = new Frames(elements.canvas, { frame: handlers.frame, lost: (reason) => this.#giveUpSocket(reason) });
    this.#overSocket = overSocket && Frames.lack === null;
    this.#forced = this.#overSocket;
    this.#show(this.#overSocket ? "The address asks for it (via=ws)." : null);
  }

  get running() {
    return this.#media.running || this.#frames.running;
  }

  /** The element that shows the picture. */
  get element() {
    return this.#overSocket ? this.#elements.canvas : this.#elements.video;
  }

  set rests(rests) {
    this.#media.rests = this.#frames.rests = rests;
  }

  /**
   * Fetches the picture of a session.
   * @throws {Error} whose message is a sentence for the viewer
   */
  async start({ token, ice_servers }) {
    if (this.#overSocket) {
      const address = new URL("frames", document.baseURI);
      address.protocol = address.protocol.replace("http", "ws");
      return this.#frames.start(address, token);
    }
    const endpoint = new URL("whep", document.baseURI);
    endpoint.searchParams.set("session", "");
    try {
      await this.#media.start(endpoint, token, ice_servers.map(withoutNulls));
    } catch (error) {
      this.#media.stop();
      throw error.refused ? error : new Error(this.#fallBack(error.message));
    }
  }

  stop() {
    this.#media.stop();
    this.#frames.stop();
  }

  play() {
    return this.#media.play();
  }

  /** The network is another one: what was found out about the old one does not count. */
  forget() {
    this.stop();
    this.#proven = false;
    if (!this.#forced) this.#go(false, null);
  }

  /** WebRTC failed: the next try goes over the WebSocket, unless it is known to work. The sentence to show. */
  #fallBack(reason) {
    if (this.#proven) {
      this.#proven = false; // once more, for a network may have changed; then the other way
      return reason;
    }
    if (Frames.lack !== null) return `${reason} Frames over the WebSocket are no way either: ${Frames.lack}.`;
    this.#go(true, reason);
    return reason;
  }

  #giveUpSocket(reason) {
    if (!this.#forced) this.#go(false, null);
    this.#handlers.lost(reason);
  }

  #go(overSocket, reason) {
    this.#overSocket = overSocket;
    this.#show(reason);
  }

  #show(reason) {
    this.#elements.canvas.hidden = !this.#overSocket;
    this.#elements.video.hidden = this.#overSocket;
    this.#handlers.way(reason);
  }
}

/** RTCPeerConnection takes an absent user name, but not null. */
function withoutNulls(server) {
  return Object.fromEntries(Object.entries(server).filter(([, value]) => value !== null));
}
