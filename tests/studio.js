// Runs in the page before its modules: answers WHEP and /api from within, with a canvas in place of an engine,
// so that the page's tests need neither server nor network. The test speaks through window.studio.

const canvas = Object.assign(document.createElement("canvas"), { width: 320, height: 192 });
const context = canvas.getContext("2d");
const peers = [];

window.studio = {
  canvas,
  context,
  refuse: null, // { status, body } instead of the next answers
  requests: [],
  rtp: undefined, // of the newest frame on the screen
  drawing: true,
  breakPeers: () => peers.splice(0).forEach((peer) => peer.close()),
};

let drawn = 0;
function draw() {
  if (!window.studio.drawing) return;
  drawn += 1;
  context.fillStyle = `hsl(${drawn % 360} 40% 40%)`;
  context.fillRect(0, 0, 320, 192);
  context.fillStyle = "white";
  context.fillRect((drawn * 4) % 320, 40, 12, 112);
}
window.studio.timer = setInterval(draw, 1000 / 16);

async function answer(offer) {
  const peer = new RTCPeerConnection();
  peers.push(peer);
  const stream = canvas.captureStream();
  await peer.setRemoteDescription({ type: "offer", sdp: offer });
  peer.addTrack(stream.getVideoTracks()[0], stream);
  await peer.setLocalDescription();
  await new Promise((done) => {
    const check = () => peer.iceGatheringState === "complete" && done();
    peer.addEventListener("icegatheringstatechange", check);
    setTimeout(done, 150); // host candidates are there by then
    check();
  });
  return peer.localDescription.sdp;
}

function answerApi(method, url, authorization) {
  window.studio.requests.push(`${method} ${url.pathname} ${authorization}`);
  if (window.studio.refuse) return new Response(window.studio.refuse.body, { status: window.studio.refuse.status });
  return method === "DELETE" ? new Response(null, { status: 204 }) : Response.json({ image: "0123456789abcdef" });
}

const realFetch = window.fetch;
window.fetch = async (input, init = {}) => {
  const url = new URL(input, document.baseURI);
  const method = init.method ?? "GET";
  if (url.pathname.includes("/api/")) return answerApi(method, url, init.headers.Authorization);
  if (!url.pathname.includes("/whep")) return realFetch(input, init);
  const authorization = init.headers?.Authorization ?? "";
  window.studio.requests.push(`${method} ${url.pathname}${url.search} ${authorization}`.trim());
  if (method === "DELETE") return new Response(null, { status: 200 });
  if (window.studio.refuse) return new Response(window.studio.refuse.body, { status: window.studio.refuse.status });
  const response = new Response(await answer(init.body), { status: 201, headers: { Location: "whep/1" } });
  Object.defineProperty(response, "url", { value: url.href });
  return response;
};

const realCallback = HTMLVideoElement.prototype.requestVideoFrameCallback;
HTMLVideoElement.prototype.requestVideoFrameCallback = function (callback) {
  return realCallback.call(this, (now, frame) => {
    window.studio.rtp = frame.rtpTimestamp;
    callback(now, frame);
  });
};
