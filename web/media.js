// The picture: a WHEP request, the peer behind it, and what is known of each frame that reaches the screen.

import { Stall } from "./stall.js";

const GATHERING_MS = 300;
/** Who has not connected so long after the answer will hardly do so later. */
const CONNECT_MS = 4000;
const BROKEN_MS = 1500;
const NO_WAY = "WebRTC found no way for the picture.";

export class Media {
  #video;
  #handlers;
  #peer = null;
  #resource = null;
  #stall = new Stall(() => this.#video.paused || this.#lose("The picture stood still.")); // or it waits for a click

  /**
   * @param {HTMLVideoElement} video
   * @param {{ frame: (now: number, frame: VideoFrameCallbackMetadata) => void, lost: (reason: string) => void,
   *   blocked: () => void }} handlers `blocked`: the browser plays nothing before the viewer has touched the page
   */
  constructor(video, handlers) {
    this.#video = video;
    this.#handlers = handlers;
    const onframe = (now, frame) => {
      // Chromium shows a black frame of its own when a connection is closed: that is no picture.
      if (this.#peer?.connectionState === "connected") {
        this.#stall.beat();
        handlers.frame(now, frame);
      }
      video.requestVideoFrameCallback(onframe);
    };
    video.requestVideoFrameCallback(onframe);
  }

  /** A world that is paused shows no frames, and that is no stall. */
  set rests(rests) {
    this.#stall.rests = rests;
  }

  get running() {
    return this.#peer !== null;
  }

  /**
   * Fetches the picture of the session of this `token` from a WHEP `endpoint`; ends when the answer is in place, before
   * the first frame.
   * @throws {Error} whose message is a sentence for the viewer
   */
  async start(endpoint, token, iceServers) {
    this.stop();
    if (!("RTCPeerConnection" in window)) throw new Error("This browser has no WebRTC.");
    const peer = new RTCPeerConnection({ iceServers });
    this.#peer = peer;
    peer.onconnectionstatechange = () => this.#changed(peer);
    peer.ontrack = ({ track }) => this.#show(track);
    const { receiver } = peer.addTransceiver("video", { direction: "recvonly" });
    if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
    try {
      await this.#negotiate(peer, endpoint, token);
    } catch (error) {
      if (peer === this.#peer) throw error; // one that was given up meanwhile says nothing of the next
    }
  }

  async #negotiate(peer, endpoint, token) {
    await peer.setLocalDescription();
    await gathered(peer);
    const { answer, resource } = await whep(endpoint, token, peer.localDescription.sdp);
    if (peer !== this.#peer) return giveBack(resource);
    this.#resource = resource;
    await peer.setRemoteDescription({ type: "answer", sdp: answer });
    setTimeout(() => peer === this.#peer && peer.connectionState !== "connected" && this.#lose(NO_WAY), CONNECT_MS);
    this.#stall.begin();
  }

  stop() {
    this.#stall.end();
    this.#peer?.close();
    this.#peer = null;
    if (this.#resource) giveBack(this.#resource);
    this.#resource = null;
  }

  async play() {
    try {
      await this.#video.play();
      if (this.#peer) this.#stall.begin();
    } catch (error) {
      if (error.name === "NotAllowedError") this.#handlers.blocked();
      else if (error.name !== "AbortError") throw error; // a newer track took the place of this one
    }
  }

  #changed(peer) {
    if (peer !== this.#peer) return;
    if (peer.connectionState === "failed") this.#lose(NO_WAY);
    if (peer.connectionState !== "disconnected") return;
    // A change of network breaks it for good; the browser alone would hope for half a minute.
    setTimeout(() => {
      if (peer === this.#peer && peer.connectionState !== "connected") this.#lose("The picture's connection broke off.");
    }, BROKEN_MS);
  }

  #show(track) {
    this.#video.srcObject = new MediaStream([track]);
    this.play();
  }

  #lose(reason) {
    this.stop();
    this.#handlers.lost(reason);
  }
}

/** Resolves when all ICE candidates are known, or after GATHERING_MS: those of this machine are there by then. */
function gathered(peer) {
  return new Promise((resolve) => {
    const check = () => peer.iceGatheringState === "complete" && resolve();
    peer.addEventListener("icegatheringstatechange", check);
    setTimeout(resolve, GATHERING_MS);
    check();
  });
}

function giveBack(resource) {
  fetch(resource, { method: "DELETE", keepalive: true }).catch(() => {}); // it may be gone
}

/** The token goes in a header: a proxy in between writes addresses into its log. */
async function whep(endpoint, token, offer) {
  const response = await fetch(endpoint, {
    method: "POST",
    headers: { "Content-Type": "application/sdp", Authorization: `Bearer ${token}` },
    body: offer,
  }).catch(() => {
    throw new Error("The server does not answer.");
  });
  const body = await response.text();
  if (!response.ok) {
    const reason = sentence(body) || `The picture was refused (${response.status}).`;
    throw Object.assign(new Error(reason), { refused: true }); // it is not the network: no other way would do better
  }
  return { answer: body, resource: new URL(response.headers.get("Location"), response.url) };
}

/** What a refusal says: plain text, or the `detail` of a JSON object. */
function sentence(body) {
  try {
    return String(JSON.parse(body).detail ?? "");
  } catch {
    return body.length < 300 ? body : "";
  }
}
