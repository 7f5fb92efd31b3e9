"""A real Chromium for the tests, and a scripted server behind the page: no socket, no engine.

`browser` is a pytest fixture: `from browser import browser`. Without Chromium its tests are skipped,
and fail where CI is set: there a missing browser is a fault of the machine, not a choice.
"""

import json
import mimetypes
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST = "http://chunkcast.localhost"
ARGUMENTS = (
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
)
WAIT_MS = 20_000
"""For what comes at once where nothing else keeps the machine busy."""


def chromium_path() -> str:
    """The Chromium to drive; skips the test, or fails it in CI, when there is none."""
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name and (path := shutil.which(name)):
            return path
    reason = "needs Chromium: install it (Debian: apt-get install chromium) or name it with CHROMIUM=/path/to/chromium"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium (playwright's Browser) that lives for the tests of one file."""
    path = chromium_path()
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


class Script:
    """The server's side of one page's WebSocket, as a test plays it.

    `messages` holds what the page sent on all its connections, in order, and `times` when each came, in seconds;
    `connections` how many there were.
    """

    def __init__(self, page) -> None:
        self.page = page
        self.messages: list[dict] = []
        self.times: list[float] = []
        self.connections = 0
        self.welcomes = True
        self.reachable = True
        self._socket = None

    def open(self, socket) -> None:
        self.connections += 1
        self._socket = socket
        socket.on_message(self._take)
        if not self.reachable:
            socket.close(code=1012)

    def send(self, kind: str, **fields) -> None:
        self._socket.send(json.dumps({"type": kind, **fields}))

    def send_text(self, text: str) -> None:
        self._socket.send(text)

    def drop(self) -> None:
        self._socket.close(code=1012)

    def welcome(self, **changes) -> None:
        size = {"width": 320, "height": 192, "fps": 16, "chunk_frames": 4}
        world = {
            "preset": "tiny",
            "keys": list("adijklsw"),
            "image": "optional",
            "watch_token": "link-0123456789",
            **size,
        }
        self.send(
            "welcome", **{"version": 1, "session": "s1", "token": "secret", "ice_servers": [], **world, **changes}
        )

    def live(self, seed: int = 7, prompt: str = "a desert") -> None:
        self.send("live", slot=0, seed=seed, prompt=prompt)

    def of(self, kind: str) -> list[dict]:
        return [message for message in self.messages if message["type"] == kind]

    def wait(self, claim: Callable[[], object], what: str, limit_ms: int = WAIT_MS) -> None:
        """Lets the page run until `claim` holds; AssertionError with `what` after `limit_ms`."""
        for _ in range(limit_ms // 20):
            if claim():
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"{what}; the page sent {self.messages[-5:]}")

    def _take(self, text: str) -> None:
        message = json.loads(text)
        self.messages.append(message)
        self.times.append(time.monotonic())
        if message["type"] == "hello" and self.welcomes:
            self.welcome()


def open_page(browser, address: str = "/", **context) -> tuple[object, Script]:
    """A page of web/ at HOST + `address` whose server is the returned Script; faults of its modules fail the test."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(WAIT_MS)
    script = Script(page)
    page.faults, page.hosts = [], set()
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: page.hosts.add(request.url.split("/")[2]))
    page.route("**/*", _serve_file)
    page.route_web_socket("**/ws", script.open)
    page.add_init_script(path=Path(__file__).with_name("studio.js"))
    page.goto(HOST + address)
    return page, script


def _serve_file(route) -> None:
    name = route.request.url.removeprefix(HOST).split("?")[0].lstrip("/") or "index.html"
    path = ROOT / "web" / name
    if not route.request.url.startswith(HOST) or not path.is_file():
        route.abort()
        return
    route.fulfill(body=path.read_bytes(), content_type=mimetypes.guess_type(name)[0] or "application/octet-stream")
