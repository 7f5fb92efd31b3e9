// What benchmarks/latency.py notes on a page, before the page's own modules run: keys, what goes over /ws, and each frame
// that is displayed, with the mark in it (stream/mark.py) and a band of the picture in grey; of some frames the whole
// picture. MARK and BAND are written before this.

const noted = { keys: [], sent: [], told: [], frames: [], bands: [], wholes: [] };
const peers = [];
const clock = () => performance.now();
let newest = 0; // the newest control that was sent
let waiting = () => {};
let drawn = 0; // frames, onto the page's canvas

addEventListener("keydown", (event) => event.repeat || noted.keys.push([event.key, event.timeStamp]), true);

window.WebSocket = class extends WebSocket {
  constructor(...address) {
    super(...address);
    this.addEventListener("message", ({ data }) => typeof data === "string" && hear(JSON.parse(data)));
  }

  send(text) {
    const message = JSON.parse(text);
    if (["keys", "prompt", "shown"].includes(message.type)) {
      noted.sent.push([message.type, message.seq, message.held?.join("") ?? "", message.ms ?? null, clock()]);
      if (message.type !== "shown") newest = Math.max(newest, message.seq);
    }
    super.send(text);
  }
};

function hear({ type, session, fps, chunk_frames }) {
  if (!["welcome", "live", "queued"].includes(type)) return;
  noted.told.push({ type, at: clock(), session, fps, chunk_frames });
}

window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...options) {
    super(...options);
    peers.push(this);
  }
};

// Frames over the WebSocket are drawn onto the page's canvas.
const draw = CanvasRenderingContext2D.prototype.drawImage;
CanvasRenderingContext2D.prototype.drawImage = function (source, ...place) {
  draw.call(this, source, ...place);
  if (this.canvas.id !== "canvas" || !(source instanceof VideoFrame)) return;
  const now = clock();
  note(this.canvas, this.canvas.width, this.canvas.height, [now, now, null, 0, source.timestamp % 2 ** 32, ++drawn]);
};

addEventListener("DOMContentLoaded", () => {
  const video = document.getElementById("video");
  const onframe = (now, frame) => {
    const { presentationTime, expectedDisplayTime, receiveTime, processingDuration, rtpTimestamp, presentedFrames } = frame;
    const decoding = [receiveTime ?? null, 1000 * (processingDuration ?? 0), rtpTimestamp ?? null, presentedFrames];
    // It can be handed over later than it was expected on the screen: then it is not displayed before.
    const displayed = Math.max(presentationTime, expectedDisplayTime);
    note(video, video.videoWidth, video.videoHeight, [presentationTime, displayed, ...decoding]);
    video.requestVideoFrameCallback(onframe);
  };
  video.requestVideoFrameCallback(onframe);
});

const marks = canvas();
const band = canvas();
const whole = canvas();

function canvas() {
  return document.createElement("canvas").getContext("2d", { willReadFrequently: true, alpha: false });
}

function pixels(context, source, from, to) {
  const [width, height] = to;
  if (context.canvas.width !== width) context.canvas.width = width;
  if (context.canvas.height !== height) context.canvas.height = height;
  draw.call(context, source, ...from, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

function note(source, width, height, times) {
  const mark = readMark(source, width);
  noted.frames.push([...(mark ?? [null, null, null]), ...times]);
  const part = [0, BAND.top * height, width, BAND.share * height];
  noted.bands.push(grey(pixels(band, source, part, [BAND.width, BAND.height])));
  if (BAND.every && mark && mark[0] % BAND.every === 0) {
    const rgba = pixels(whole, source, [0, 0, width, height], [width, height]);
    noted.wholes.push({ frame: mark[0], width, height, grey: base64([grey(rgba)]) });
  }
  if (mark && reached(mark[2], newest)) waiting(true);
}

function grey(rgba) {
  const values = new Uint8Array(rgba.length / 4);
  for (let at = 0; at < values.length; at++) values[at] = (rgba[4 * at] + 2 * rgba[4 * at + 1] + rgba[4 * at + 2]) >> 2;
  return values;
}

function base64(arrays) {
  const pieces = [];
  for (const bytes of arrays) for (let at = 0; at < bytes.length; at += 8192) pieces.push(String.fromCharCode(...bytes.subarray(at, at + 8192)));
  return btoa(pieces.join(""));
}

/** [frame, chunk, sequence], or null where there is none. */
function readMark(source, width) {
  const size = width < MARK.wide ? 8 : 16;
  const across = Math.floor(width / size);
  const rows = size * Math.ceil(MARK.bits / across);
  const rgba = pixels(marks, source, [0, 0, width, rows], [width, rows]);
  const bits = Array.from({ length: MARK.bits }, (_, bit) => {
    const [top, left] = [size * Math.floor(bit / across) + size / 4, size * (bit % across) + size / 4];
    let sum = 0;
    for (let y = top; y < top + size / 2; y++) for (let x = left; x < left + size / 2; x++) sum += rgba[4 * (y * width + x) + 1];
    return sum > (MARK.between * size * size) / 4 ? 1 : 0;
  });
  return fields(bits);
}

function fields(bits) {
  const number = (from, count) => bits.slice(from, from + count).reduce((value, bit) => 2 * value + bit, 0);
  const said = MARK.bits - MARK.check;
  if (bits.slice(0, said).reduce(checked, MARK.first) !== number(said, MARK.check)) return null;
  let at = 0;
  return MARK.fields.map((count) => number((at += count) - count, count));
}

function checked(check, bit) {
  const overflows = (check >> (MARK.check - 1)) ^ bit;
  return ((check << 1) & (2 ** MARK.check - 1)) ^ (overflows ? MARK.polynomial : 0);
}

/** Sequence numbers in marks wrap. */
function reached(sequence, target) {
  const span = 2 ** MARK.fields[2];
  return (((sequence - target) % span) + span) % span < span / 2;
}

window.harness = {
  read: readMark,

  /** True once a frame that obeys the newest control is displayed, false after so many seconds without. */
  answered(seconds) {
    return new Promise((resolve) => {
      waiting = resolve;
      setTimeout(resolve, 1000 * seconds, false);
    });
  },

  /** All that was noted since the last time; the bands as base64. */
  pull() {
    const taken = { ...noted, bands: base64(noted.bands) };
    for (const name of Object.keys(noted)) noted[name] = [];
    return taken;
  },

  /** By how many ms the server's clock is ahead of this page's: [at least, at most]. */
  async ahead(tries) {
    let [least, most] = [-Infinity, Infinity];
    for (let n = 0; n < tries; n++) {
      const asked = clock();
      const { now } = await (await fetch("mark?since=999999999")).json();
      [least, most] = [Math.max(least, 1000 * now - clock()), Math.min(most, 1000 * now - asked)];
    }
    return [least, most];
  },

  /** What the receiver counted. */
  async received() {
    const stats = await Promise.all(peers.map((peer) => peer.getStats()));
    return stats.flatMap((each) => [...each.values()]).filter(({ type }) => type === "inbound-rtp").at(-1) ?? null;
  },
};
