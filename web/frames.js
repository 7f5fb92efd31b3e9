// The picture over a WebSocket, where WebRTC finds no way: encoded frames, decoded by the browser, onto a canvas.

import { Stall } from "./stall.js";

const HEADER_BYTES = 12; // flags, three bytes of nothing, the time in ticks of 1/90000 s
const KEY = 1;
const CODECS = { VP8: "vp8", H264: "avc1.42e01f" };

export class Frames {
  #canvas;
  #context;
  #handlers;
  #socket = null;
  #decoder = null;
  #config = null;
  #needsKey = true;
  #newest = null; // the decoded frame that waits for the screen
  #shown = 0;
  #stall = new Stall(() => this.#lose("The picture stood still."));

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{ frame: (now: number, frame: object) => void, lost: (reason: string) => void }} handlers as those of Media
   */
  constructor(canvas, handlers) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.#handlers = handlers;
  }

  /** Why this browser cannot decode frames by itself; null where it can. */
  static get lack() {
    if ("VideoDecoder" in window) return null;
    return window.isSecureContext ? "this browser cannot decode them" : "browsers decode them on https or localhost alone";
  }

  get running() {
    return this.#socket !== null;
  }

  set rests(rests) {
    this.#stall.rests = rests;
  }

  /** Asks for the frames of a session. What goes wrong later is told to `lost`. */
  async start(address, token) {
    this.stop();
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.#begin(JSON.parse(data)) : this.#take(data));
    socket.onclose = ({ reason }) => socket === this.#socket && this.#lose(reason || "The picture's connection broke off.");
    this.#stall.begin();
    const codecs = await playable();
    if (socket !== this.#socket) return;
    if (!codecs.length) return this.#lose("This browser decodes neither VP8 nor H.264 by itself: take a newer one.");
    const watch = () => socket.send(JSON.stringify({ type: "watch", token, codecs }));
    if (socket.readyState === WebSocket.OPEN) watch();
    else socket.onopen = watch;
  }

  stop() {
    this.#stall.end();
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#close();
  }

  #lose(reason) {
    this.stop();
    this.#handlers.lost(reason);
  }

  #begin({ config, width, height }) {
    [this.#canvas.width, this.#canvas.height] = [width, height];
    this.#config = { codec: config, optimizeForLatency: true };
    this.#open();
  }

  #open() {
    this.#close();
    this.#needsKey = true;
    const decoder = new VideoDecoder({
      output: (frame) => this.#decoded(frame),
      error: () => decoder === this.#decoder && this.#mend(),
    });
    decoder.configure(this.#config);
    this.#decoder = decoder;
  }

  #close() {
    if (this.#decoder && this.#decoder.state !== "closed") this.#decoder.close();
    this.#decoder = null;
    this.#newest?.close();
    this.#newest = null;
  }

  /** A decoder that broke is of no more use: another one begins with the next key frame. */
  #mend() {
    this.#open();
    this.#say({ type: "key" });
  }

  #take(data) {
    const view = new DataView(data);
    const isKey = (view.getUint8(0) & KEY) !== 0;
    const pts = Number(view.getBigUint64(4));
    if (this.#needsKey && !isKey) return this.#say({ type: "seen", pts }); // of no use, but it has come
    this.#needsKey = false;
    const bytes = new Uint8Array(data, HEADER_BYTES);
    // The time goes through the decoder in ticks: it only compares.
    this.#decoder.decode(new EncodedVideoChunk({ type: isKey ? "key" : "delta", timestamp: pts, data: bytes }));
  }

  #decoded(frame) {
    this.#say({ type: "seen", pts: frame.timestamp });
    this.#stall.beat();
    const waits = this.#newest !== null;
    this.#newest?.close(); // the screen is slower than the world: only the newest is shown
    this.#newest = frame;
    if (!waits) requestAnimationFrame((now) => this.#draw(now));
  }

  #draw(now) {
    const frame = this.#newest;
    if (frame === null) return;
    this.#newest = null;
    this.#context.drawImage(frame, 0, 0, this.#canvas.width, this.#canvas.height);
    this.#shown += 1;
    const rtpTimestamp = frame.timestamp % 2 ** 32;
    frame.close();
    this.#handlers.frame(now, { presentationTime: now, expectedDisplayTime: now, presentedFrames: this.#shown, rtpTimestamp });
  }

  #say(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}

/** The codecs that this browser decodes. */
async function playable() {
  const asked = Object.entries(CODECS).map(async ([name, codec]) => {
    const { supported } = await VideoDecoder.isConfigSupported({ codec }).catch(() => ({ supported: false }));
    return supported ? name : null;
  });
  return (await Promise.all(asked)).filter(Boolean);
}
