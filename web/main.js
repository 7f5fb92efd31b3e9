// Joins the parts: what the viewer does goes to the server, what the server says goes to the picture and the page.

import * as controls from "./controls.js";
import { Connection } from "./connection.js";
import { Hud } from "./hud.js";
import { Keys } from "./keys.js";
import { Latency } from "./latency.js";
import { MAX_PROMPT_CHARACTERS } from "./messages.js";
import { Screen } from "./screen.js";
import { Server } from "./server.js";
import { Session } from "./session.js";
import { Timeline } from "./timeline.js";
import * as upload from "./upload.js";
import { Viewer } from "./viewer.js";
import { EXAMPLES } from "./wish.js";

const LOOK_MS = 500;

const find = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);

const hud = new Hud();
const session = new Session(parameters);
const timeline = new Timeline();
const connection = new Connection(socketAddress(), {
  opened: () => server.greet(),
  message: (message) => server.take(message),
  lost: () => server.lose(),
});
const latency = new Latency((seq, ms) => viewer.saw(seq, ms));
const keys = new Keys((held, at) => viewer.hold(held, at));
const screen = new Screen({ session, connection, hud, keys, latency }, parameters.get("via") === "ws");
const viewer = new Viewer({ session, connection, hud, latency, screen, timeline });
const choosePicture = () => find("file").click();
const server = new Server({ session, connection, hud, keys, latency, screen, timeline, viewer, choosePicture });

function socketAddress() {
  const address = new URL("ws", document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  return address.href;
}

function listenToViewer() {
  keys.listenToKeyboard(window);
  for (const group of document.querySelectorAll(".keys")) keys.listenToButtons(group);
  controls.listen({
    ask: (text) => viewer.ask(text),
    forgetWords: () => viewer.forgetWords(),
    begin: (text) => viewer.beginWithSeed(text),
    forgetSeed: () => viewer.forgetSeed(),
    another: () => viewer.beginAnother(),
    again: () => viewer.beginAgain(),
    back: () => viewer.goBack(),
    pause: () => viewer.togglePause(),
    park: () => viewer.park(),
    share: () => viewer.share(),
    invite: () => viewer.invite(),
    choose: choosePicture,
  });
  upload.listen(find("file"), (file) => viewer.beginWithPicture(file));
}

function listenToPage() {
  addEventListener("online", () => viewer.changeNetwork());
  addEventListener("pageshow", (event) => event.persisted && connection.open());
  addEventListener("pagehide", () => viewer.leavePage());
  addEventListener("hashchange", () => location.reload()); // a link to watch, opened in this tab
}

find("prompt").maxLength = MAX_PROMPT_CHARACTERS;
hud.write(session.prompt);
hud.examples(EXAMPLES, (text) => viewer.ask(text));
if (session.watch === null) listenToViewer();
else hud.watches(() => viewer.walk());
listenToPage();
setInterval(() => {
  screen.tellRate();
  server.checkSilence();
}, LOOK_MS);
hud.focusWorld();
connection.open();
