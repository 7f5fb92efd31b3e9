// A picture of the viewer's on its way: chosen, dropped or pasted, then sent to the server, which makes it ready.

import { MAX_PICTURE_BYTES } from "./messages.js";

/**
 * Hears of pictures that are chosen in `input`, dropped anywhere or pasted.
 * @param {HTMLInputElement} input
 * @param {(file: File) => void} onpicture
 */
export function listen(input, onpicture) {
  input.addEventListener("change", () => {
    take(input.files, onpicture);
    input.value = ""; // or the same one could not be chosen again
  });
  addEventListener("paste", (event) => {
    const { types, files } = event.clipboardData;
    // Words that were copied from a document come with a picture of themselves.
    if (event.target.matches?.("input") && types.includes("text/plain")) return;
    take(files, onpicture);
  });
  addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault(); // without it the browser would leave the page and open the file
    document.documentElement.toggleAttribute("data-dropping", true);
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) still(); // out of the window, not from one element to the next
  });
  addEventListener("drop", (event) => {
    still();
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files, onpicture);
  });
}

function still() {
  document.documentElement.toggleAttribute("data-dropping", false);
}

/** The first picture of several files; else the first file, so that one hears why it is none. */
function take(files, onpicture) {
  const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
  if (file) onpicture(file);
}

/**
 * Sends a picture for a session's world to begin with.
 * @param {File} file
 * @param {{ session: string, token: string }} welcome
 * @returns {Promise<string>} what the message `restart` calls it
 * @throws {Error} whose message is a sentence for the viewer
 */
export async function send(file, { session, token }) {
  if (!file.type.startsWith("image/")) throw new Error(`${file.name} is no picture: choose a PNG, JPEG or WebP.`);
  if (file.size > MAX_PICTURE_BYTES) {
    throw new Error(`This picture has more than ${MAX_PICTURE_BYTES / 2 ** 20} MB: choose a smaller one.`);
  }
  const response = await fetch(new URL(`api/sessions/${session}/image`, document.baseURI), {
    method: "PUT",
    headers: { "Content-Type": file.type, Authorization: `Bearer ${token}` },
    body: file,
  }).catch(() => {
    throw new Error("The picture could not be sent: the server does not answer.");
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(String(answer.detail ?? `The picture was refused (${response.status}).`));
  return answer.image;
}
