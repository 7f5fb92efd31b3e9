// The page's buttons, fields and shortcuts: which of them was used. What it means is for `does` to know.

const find = (id) => document.getElementById(id);

/**
 * @param {{ ask: (text: string) => void, forgetWords: () => void, begin: (text: string) => void,
 *   forgetSeed: () => void, another: () => void, again: () => void, back: () => void, pause: () => void,
 *   park: () => void, share: () => void, invite: () => void, choose: () => void }} does
 *   `begin`: a world with the seed that was typed; `forget...`: what was typed was not meant
 */
export function listen(does) {
  listenToComposer(does);
  listenToSeed(does);
  listenToShortcuts(does);
  const buttons = { again: does.another, start: does.again, back: does.back, pause: does.pause, "go-on": does.pause };
  for (const [id, act] of Object.entries({ ...buttons, park: does.park, share: does.share, invite: does.invite, picture: does.choose })) {
    find(id).addEventListener("click", ({ detail }) => {
      if (detail > 0) find("stage").focus(); // clicked, not pressed by a key: space is to pause, not to click again
      act();
    });
  }
  find("stage").addEventListener("click", () => find("stage").focus());
}

function listenToComposer({ ask, forgetWords }) {
  const field = find("prompt");
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(field.value);
  });
  field.addEventListener("focus", () => field.select());
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    forgetWords();
    find("stage").focus();
  });
}

function listenToSeed({ begin, forgetSeed }) {
  const field = find("seed");
  field.addEventListener("focus", () => field.select());
  field.addEventListener("blur", () => forgetSeed());
  find("seeding").addEventListener("submit", (event) => {
    event.preventDefault();
    begin(field.value);
  });
}

/** Keys that mean something while nothing else on the page has them. */
function listenToShortcuts({ pause, back }) {
  const type = () => find("prompt").focus();
  const shortcuts = { Enter: type, "/": type, " ": pause, Backspace: back };
  addEventListener("keydown", (event) => {
    const act = shortcuts[event.key];
    const isElsewhere = event.target !== document.body && event.target !== find("stage");
    if (!act || isElsewhere || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
}
