"""stream/__main__.py: what the command line says to its users, and that Ctrl-C leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from stream.__main__ import _parser, engine_options, main, parse_keys

TESTS = Path(__file__).parent
SERVE_FAKE = """
import sys
from stream.__main__ import _listening, serve
if __name__ == "__main__":
    with _listening("127.0.0.1", 0) as listener:
        sys.exit(serve(listener, "fake_engine:build", {options}))
"""


class Server:
    """A server with the fake engine in a process of its own."""

    def __init__(self, folder, **options):
        script = folder / "serve_fake.py"
        script.write_text(SERVE_FAKE.format(options=options))
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, script],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self):
        return self.process.stdout.readline()

    def children(self):
        """The living processes of this group but the server, as (number, command)."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                    if int(group) == self.process.pid and state != "Z":
                        found.append((int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return found

    def end(self, number, seconds=2.0):
        """Send a signal to the whole group, as a terminal does; what was printed on stderr."""
        os.killpg(self.process.pid, number)
        _, errors = self.process.communicate(timeout=seconds)
        return errors

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def server(tmp_path):
    made = []

    def start(**options):
        made.append(Server(tmp_path, **options))
        return made[-1]

    yield start
    for one in made:
        one.kill()


def all_gone(server, seconds=1.0):
    end = time.monotonic() + seconds
    while server.children() and time.monotonic() < end:
        time.sleep(0.02)
    assert server.children() == []
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_one_signal_ends_a_server_with_a_viewer_within_two_seconds_without_a_word_or_a_process(server, number):
    from websockets.sync.client import connect

    one = server()
    url = re.search(r"http://\S+", one.line())[0]
    assert one.line().startswith(f"Ready: {url}")
    before = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    with connect(url.replace("http", "ws") + "/ws") as page:
        page.send('{"type": "hello", "version": 1, "prompt": "red"}')
        assert '"welcome"' in page.recv(timeout=5)
        assert one.end(number) == ""
        assert "closing" in [*page][-1]
    assert one.process.returncode == 0
    assert all_gone(one)
    assert (set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()) <= before


def test_ctrl_c_ends_a_server_whose_engine_still_loads(server):
    one = server(load_seconds=60)
    url = re.search(r"http://\S+", one.line())[0]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{url}/readyz", timeout=5)
    assert one.end(signal.SIGINT) == ""
    assert all_gone(one)


def test_the_engine_goes_when_the_server_is_killed(server):
    one = server()
    one.line()
    one.line()
    assert one.children()
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait()
    assert all_gone(one, seconds=3)


def test_an_engine_that_cannot_be_built_ends_the_server_with_its_sentence(server):
    one = server(fail="no preset 'tiyn'; there are tiny")
    _, errors = one.process.communicate(timeout=10)
    assert errors == "chunkcast: no preset 'tiyn'; there are tiny\n"
    assert one.process.returncode == 2


def test_a_port_in_use_is_told_at_once(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"chunkcast: port {port} is in use; choose another with --port, or end what uses it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["serve", "--weights", "/nowhere"],
            "there is no /nowhere; --weights takes a folder, a file",
        ),
        (["serve", "--parts", "/nowhere"], "there is no /nowhere; --parts takes a folder, a file"),
        (["generate", "--prompt", "a", "-o", "a.mp4", "--lora", "/no.pt"], "there is no /no.pt; --lora takes"),
        (["generate", "--prompt", "a", "-o", "a.mp4", "--parts", "."], "--parts goes with --weights that are a public"),
        (["serve", "--host", "no such host"], "no address of this machine"),
        (["serve", "--host", "203.0.113.1"], "no address of this machine"),
        (["serve", "--port", "70000"], "from 0 to 65535"),
        (["serve", "--slots", "0"], "--slots is 0"),
        (["serve", "--lead", "0"], "--lead is 0"),
        (["serve", "--ice-server", "http://x"], "must look like stun:"),
        (["generate", "--prompt", " ", "-o", "a.mp4"], "the prompt is empty"),
        (["generate", "--prompt", "a", "--keys", "w", "-o", "a.mp4"], "write keys and frames"),
        (["generate", "--prompt", "a", "--keys", "x-3", "-o", "a.mp4"], "no such key: x"),
        (["generate", "--prompt", "a", "--seed", "-1", "-o", "a.mp4"], "the seed is -1"),
        (["generate", "--prompt", "a", "--image", "/nowhere.png", "-o", "a.mp4"], "there is no file /nowhere.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_users_mistake_is_one_sentence_and_code_2(arguments, says, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_script_of_keys_is_held_frame_by_frame():
    assert parse_keys("w-2,wl-1, none-1") == (frozenset("w"), frozenset("w"), frozenset("wl"), frozenset())
    assert parse_keys("") == ()


def test_the_engine_is_built_with_what_the_command_line_says():
    options = _parser().parse_args(["serve", "--slots", "1", "--weights", "random", "--preset", "tiny"])
    expected = {"preset": "tiny", "weights": "random", "device": "auto", "slots": 1, "schedule": "auto"}
    assert engine_options(options) == expected
    more = ["generate", "--prompt", "a", "-o", "a.mp4", "--parts", "org/wan", "--lora", "b.pt"]
    assert {"parts": "org/wan", "lora": "b.pt"}.items() <= engine_options(_parser().parse_args(more)).items()
