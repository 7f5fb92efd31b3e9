"""The whole: `chunkcast serve` with the tiny world, and real pages in a real Chromium that look at its pixels."""

import base64
import contextlib
import io
import itertools
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import browser
from PIL import Image

__all__ = ["browser"]

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).parent.parent
SERVE = (sys.executable, "-m", "stream", "serve", "--slots", "2", "--port", "0")
READY_SECONDS = 90
STATE_MS = 20_000
DESERT, FOREST, MEADOW = "a desert with columns at noon", "a forest at night", "a meadow at noon"

# A hidden canvas in the page: one picture as PNG, or `count` successive frames as grey bytes, small.
CAMERA = """
const canvas = document.createElement("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });
const video = document.querySelector("video");
function draw(width, height) {
  [canvas.width, canvas.height] = [width, height];
  context.drawImage(video, 0, 0, width, height);
}
window.picture = () => {
  draw(160, 96);
  return canvas.toDataURL("image/png").split(",")[1];
};
window.frames = (count, width, height) => new Promise((done) => {
  const bytes = [];
  const take = () => {
    draw(width, height);
    const { data } = context.getImageData(0, 0, width, height);
    for (let at = 0; at < data.length; at += 4) bytes.push((data[at] + 2 * data[at + 1] + data[at + 2]) >> 2);
    if (--count > 0) video.requestVideoFrameCallback(take);
    else done(bytes);
  };
  video.requestVideoFrameCallback(take);
});
window.rate = async (seconds) => {
  const count = () => video.getVideoPlaybackQuality().totalVideoFrames;
  const [start, before] = [performance.now(), count()];
  await new Promise((done) => setTimeout(done, 1000 * seconds));
  return (1000 * (count() - before)) / (performance.now() - start);
};
"""


def ready_at(said: str) -> str | None:
    """The address of a server that has said this so far, once it is ready there."""
    told = re.search(r"http://localhost:\d+", said)
    try:
        with urllib.request.urlopen(f"{told[0]}/readyz", timeout=2) as response:
            return told[0] if response.status == 200 else None
    except (TypeError, OSError):  # it has said nothing yet, or is not ready
        return None


@contextlib.contextmanager
def served():
    """A service that is ready: its address, and what it said. It is ended as a user would end it, with Ctrl-C."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(SERVE, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            limit = time.monotonic() + READY_SECONDS
            while (address := ready_at(said := Path(log.name).read_text())) is None:
                if process.poll() is not None or time.monotonic() > limit:
                    pytest.fail(f"the service is not ready after {READY_SECONDS} s; it said: {said[-2000:]}")
                time.sleep(0.2)
            yield address, Path(log.name).read_text()
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


@pytest.fixture(scope="module")
def world():
    """The address of a service for two viewers: one that measures itself while others take the cores lets in fewer."""
    for _ in range(4):
        with served() as (address, said):
            if "2 viewers at once" in said:
                yield address
                return
    pytest.fail(f"this machine is too slow, or too busy, for two viewers: {said[-2000:]}")


@pytest.fixture
def visit(browser, world):
    """Opens pages of the service with a prompt; those still open after the test are closed."""
    pages = []

    def visit_(prompt):
        page = browser.new_context(viewport={"width": 640, "height": 420}).new_page()
        pages.append(page)
        page.goto(f"{world}/?seed=5&prompt={prompt.replace(' ', '+')}")
        return page

    yield visit_
    for page in pages:
        page.context.close()


def wait_for_state(page, state: str) -> None:
    page.wait_for_selector(f"html[data-state={state}]", state="attached", timeout=STATE_MS)


def wait_until_live(page) -> None:
    wait_for_state(page, "live")
    page.evaluate(CAMERA)


def picture(page) -> np.ndarray:
    """What the page shows now: (96, 160, 3), 0 to 255."""
    png = base64.b64decode(page.evaluate("picture()"))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float32)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def frames(page, count: int, width: int = 160, height: int = 48) -> np.ndarray:
    """The next `count` frames on the page in grey: (count, height, width)."""
    values = page.evaluate(f"frames({count}, {width}, {height})")
    return np.asarray(values, np.float32).reshape(count, height, width)


def sideways(before: np.ndarray, after: np.ndarray, reach: int = 20) -> int:
    """By how many columns the picture moved, positive to the right: the best of the cross-correlations of columns."""

    def agreement(shift: int) -> float:
        width = before.shape[1]
        one = before[:, max(0, -shift) : width - max(0, shift)]
        other = after[:, max(0, shift) : width - max(0, -shift)]
        one, other = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
        return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum() + 1e-6))

    return max(range(-reach, reach + 1), key=lambda shift: (agreement(shift), -abs(shift)))


def shifts(page, count: int = 24) -> np.ndarray:
    seen = frames(page, count)
    return np.array([sideways(before, after) for before, after in itertools.pairwise(seen)])


def test_the_measure_of_sideways_movement_finds_known_shifts():
    scene = np.random.default_rng(0).normal(size=(48, 220)).cumsum(1).astype(np.float32)
    for shift in (-9, -1, 0, 4):
        assert sideways(scene[:, 30:190], scene[:, 30 - shift : 190 - shift]) == shift


def test_two_viewers_see_their_own_worlds_move_at_full_rate(visit):
    first, second = visit(DESERT), visit(FOREST)
    for page in (first, second):
        wait_until_live(page)
    for _ in range(6):  # other programs may take the cores for a moment; a world that is too slow fails each time
        for page in (first, second):
            page.evaluate("void (window.measured = rate(5))")
        rates = [page.evaluate("measured") for page in (first, second)]
        if min(rates) >= 15:
            break
    assert min(rates) >= 15, rates
    assert difference(picture(first), picture(second)) > 10
    for page, prompt in ((first, DESERT), (second, FOREST)):
        assert page.input_value("#prompt") == prompt
        assert page.inner_text("#scene")


def test_holding_l_turns_right_so_that_the_picture_moves_left(visit):
    page = visit(DESERT)
    wait_until_live(page)
    assert abs(np.median(shifts(page, 12))) <= 1, "nothing is held, nothing turns"
    page.keyboard.down("l")
    page.wait_for_selector("#latency:not([hidden])", state="attached", timeout=STATE_MS)  # a frame that obeys was shown
    for _ in range(3):  # a busy machine may spoil one
        turning = shifts(page)
        if turns_right := np.median(turning) <= -2 and (turning < 0).mean() > 0.6:
            break
    page.keyboard.up("l")
    assert turns_right, turning
    assert any(abs(np.median(shifts(page, 12))) <= 1 for _ in range(4)), "let go, it stands"
    assert page.locator("#latency:not([hidden])").count()  # known; a page this small has no room for it
    assert 0 < float(page.text_content("#latency-ms")) < 3000


def test_a_new_prompt_changes_the_picture_of_the_same_session(visit):
    page = visit(DESERT)
    wait_until_live(page)
    page.wait_for_timeout(1000)
    before = picture(page)
    page.wait_for_timeout(1000)
    still = difference(before, picture(page))
    page.fill("#prompt", FOREST)
    page.press("#prompt", "Enter")
    for _ in range(100):
        page.wait_for_timeout(100)
        if (changed := difference(before, picture(page))) > max(10, 3 * still):
            break
    assert changed > max(10, 3 * still)
    assert page.evaluate("document.documentElement.dataset.state") == "live"


def test_a_third_viewer_waits_in_line_and_takes_the_place_of_one_who_leaves(visit):
    first, second = visit(DESERT), visit(FOREST)
    for page in (first, second):
        wait_until_live(page)
    third = visit(MEADOW)
    wait_for_state(third, "waiting")
    assert third.inner_text("#place") == "1"
    first.close()
    wait_until_live(third)
    assert difference(picture(third), picture(second)) > 10
