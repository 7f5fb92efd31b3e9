"""stream/__main__.py: what the command line says to its users, and that Ctrl-C leaves nothing behind."""

import contextlib
import datetime
import json
import os
import re
import signal
import socket
import ssl
import time
import urllib.request

import pytest
from conftest import shared_memory
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stream.__main__ import _parser, engine_options, main, media_options
from stream.ice import Reach
from stream.protocol import IceServer
from stream.webrtc import Media


def all_gone(server, seconds=5.0):
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
    before = shared_memory()
    with connect(url.replace("http", "ws") + "/ws") as page:
        page.send('{"type": "hello", "version": 1, "prompt": "red"}')
        assert '"welcome"' in page.recv(timeout=5)
        assert one.end(number) == ""
        last = json.loads([*page][-1])
        assert last["type"] == "ended" and "closing" in last["reason"] and "keeps no worlds" in last["reason"]
    assert one.process.returncode == 0
    assert all_gone(one)
    assert shared_memory() <= before


def test_sigterm_parks_a_world_as_it_is_for_the_next_server_within_five_seconds(server, tmp_path):
    from websockets.sync.client import connect

    kept = tmp_path / "kept"
    one = server(sessions=kept)
    url = re.search(r"http://\S+", one.line())[0].replace("http", "ws") + "/ws"
    one.line()
    with connect(url) as page:
        page.send('{"type": "hello", "version": 1, "prompt": "red"}')
        token = json.loads(page.recv(timeout=5))["token"]
        while '"scene"' not in page.recv(timeout=5):
            pass
        assert one.end(signal.SIGTERM, seconds=5) == ""
        assert one.process.returncode == 0
        last = json.loads([*page][-1])
        assert (last["type"], last["reason"], last["by_itself"]) == ("parked", "The server is closing.", True)
    assert all_gone(one)
    assert len(list(kept.iterdir())) == 1
    two = server(sessions=kept)
    url = re.search(r"http://\S+", two.line())[0].replace("http", "ws") + "/ws"
    two.line()
    with connect(url) as page:
        page.send(json.dumps({"type": "hello", "version": 1, "prompt": "blue", "token": token}))
        assert json.loads(page.recv(timeout=5))["token"] == token
        assert any('"live"' in message and '"red"' in message for message in page)


def test_ctrl_c_ends_a_server_whose_engine_still_loads(server):
    one = server(load_seconds=60)
    url = re.search(r"http://\S+", one.line())[0]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{url}/readyz", timeout=5)
    assert one.end(signal.SIGINT) == ""
    assert all_gone(one)


@contextlib.contextmanager
def page_of(url, prompt):
    """A page whose world has begun."""
    from websockets.sync.client import connect

    with connect(url.replace("http", "ws") + "/ws") as page:
        page.send(json.dumps({"type": "hello", "version": 1, "prompt": prompt}))
        while '"live"' not in page.recv(timeout=5):
            pass
        yield page


@pytest.mark.parametrize("prompt", ["red", "hang", "seize"])
def test_the_engine_goes_when_the_server_is_killed_whatever_it_does(server, prompt):
    before = shared_memory()
    one = server()
    url = re.search(r"http://\S+", one.line())[0]
    one.line()
    with page_of(url, prompt):
        time.sleep(0.3)
        assert one.children()
        os.kill(one.process.pid, signal.SIGKILL)
        one.process.wait()
        assert all_gone(one)
    assert shared_memory() <= before


def test_an_engine_that_cannot_be_built_ends_the_server_with_its_sentence(server):
    one = server(fail="no preset 'tiyn'; there are tiny")
    _, errors = one.process.communicate(timeout=30)
    assert errors == "chunkcast: no preset 'tiyn'; there are tiny\n"
    assert one.process.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--version"], "chunkcast "), (["train", "--help"], "{tiny}"), (["serve", "-h"], "8080")]
)
def test_what_is_asked_of_the_command_line_itself_is_told(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0 and says in capsys.readouterr().out


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
        (["serve", "--lead", "-1"], "--lead is -1"),
        (["watch", "localhost", "--prompt", "a", "-o", "a.mp4"], "it must look like http://localhost:8080"),
        (["watch", "http://x", "--prompt", " ", "-o", "a.mp4"], "the prompt is empty"),
        (["watch", "http://x", "-o", "a.mp4"], "the prompt is empty"),
        (["generate", "-o", "a.mp4"], "there is no prompt: give --prompt"),
        (["watch", "http://x", "--prompt", "a", "--keys", "q-3", "-o", "a.mp4"], "no such key: q"),
        (["watch", "http://x", "--prompt", "a", "--frames", "0", "-o", "a.mp4"], "--frames is 0"),
        (["watch", "http://x", "--prompt", "a", "-o", "a.gif"], "a.gif is no video file's name"),
        (["serve", "--turn", "0"], "--turn is 0.0; it must be more than 0 seconds"),
        (["serve", "--idle", "nan"], "--idle is nan; it must be more than 0 minutes"),
        (["serve", "--token", "short"], "the server's token must be 16 to 256 ASCII characters"),
        (["serve", "--token", "a" * 20, "--token-file", "x"], "two ways to say the same"),
        (["serve", "--token-file", "/nowhere"], "/nowhere cannot be read; --token-file takes a text file"),
        (["serve", "--connections-per-address", "1"], "1 connections per address are too few"),
        (["serve", "--sessions", "/dev/null/x"], "--sessions /dev/null/x cannot be made"),
        (["serve", "--context", "0"], "--context is 0"),
        (["generate", "--prompt", "a", "--context", "-3", "-o", "a.mp4"], "--context is -3"),
        (["generate", "--prompt", "a", "--context", "9", "-o", "a.mp4"], "the preset tiny has a window of its own"),
        (["serve", "--ice-server", "http://x"], "must look like stun:"),
        (["serve", "--ice-server", "turn:x"], "needs a user and a secret"),
        (["serve", "--public-ip", "here"], "the public address is 'here'"),
        (["serve", "--udp-ports", "1-2-3"], "such as 40000-40100"),
        (["serve", "--playout-delay", "200"], "like 0-200"),
        (["serve", "--min-bitrate", "5000"], "the lower one first"),
        (["serve", "--allow-origin", "example.org"], "like https://example.org"),
        (["serve", "--certfile", "/a.pem"], "belong together"),
        (["serve", "--keyfile", "/a.pem"], "belong together"),
        (["serve", "--certfile", "/a.pem", "--keyfile", "/b.pem"], "there is no file /a.pem"),
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


def write_certificate(folder):
    """A certificate for this machine that no one else signed, and its key; the two files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    (folder / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    no_password = serialization.NoEncryption()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_with_a_certificate_the_page_is_served_by_https(server, tmp_path):
    one = server(tls=write_certificate(tmp_path))
    url = re.search(r"https://\S+", one.line())[0]
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    assert urllib.request.urlopen(f"{url}/healthz", timeout=5, context=trusting).read() == b"ok\n"
    assert one.line().startswith(f"Ready: {url}")
    assert one.line() == "Picture: VP8 preferred, 100 to 4000 kbit/s, playout delay 0-200 ms\n"


def test_files_that_are_no_certificate_are_told_in_one_sentence(tmp_path, capsys):
    certificate, key = write_certificate(tmp_path)
    assert main(["serve", "--certfile", key, "--keyfile", certificate]) == 2
    error = capsys.readouterr().err
    assert "no certificate and its unencrypted key" in error and error.count("\n") == 1


def test_all_addresses_are_those_of_both_families(server):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    one = server(host="::")
    port = re.search(r"localhost:(\d+)", one.line())[1]
    for host in ("127.0.0.1", "[::1]"):
        assert urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=5).read() == b"ok\n"


def test_the_picture_is_sent_as_the_command_line_says(tmp_path):
    (tmp_path / "secret").write_text("s3cret\n")
    line = "serve --codec H264 --min-bitrate 200 --max-bitrate 900 --playout-delay off --udp-ports 40000-40009"
    line += (
        f" --public-ip 203.0.113.7 --ice-server stun:example.org --ice-server turn:example.org,me,@{tmp_path}/secret"
    )
    options = _parser().parse_args(line.split())
    turn = IceServer(urls=("turn:example.org",), username="me", credential="s3cret")
    servers = (IceServer(urls=("stun:example.org",)), turn)
    reach = Reach(None, "203.0.113.7", range(40000, 40010))
    assert media_options(options, "0.0.0.0") == Media("H264", 200_000, 900_000, None, servers, reach)
    assert media_options(options, "127.0.0.1").reach.address is None
    assert media_options(options, "192.0.2.1").reach.address == "192.0.2.1"
    assert media_options(_parser().parse_args(["serve"]), "127.0.0.1") == Media()
    assert [_parser().parse_args(line).mark for line in (["serve"], ["serve", "--mark"])] == [False, True]


def test_the_engine_is_built_with_what_the_command_line_says():
    options = _parser().parse_args(["serve", "--slots", "1", "--weights", "random", "--preset", "tiny"])
    expected = {"preset": "tiny", "weights": "random", "device": "auto", "slots": 1, "schedule": "auto"}
    assert engine_options(options) == expected
    options = _parser().parse_args(["generate", "--prompt", "a", "--context", "30", "-o", "a.mp4"])
    assert engine_options(options)["context"] == 30
    assert engine_options(_parser().parse_args(["serve", "--precision", "fp8"]))["precision"] == "fp8"
    assert engine_options(_parser().parse_args(["serve", "--vae-precision", "rows"]))["vae_precision"] == "rows"
    assert engine_options(_parser().parse_args(["serve", "--attention", "cudnn"]))["attention"] == "cudnn"
    assert engine_options(_parser().parse_args(["serve", "--context-pass", "reuse"]))["context_pass"] == "reuse"
    assert engine_options(_parser().parse_args(["serve", "--cache", "fp8"]))["cache"] == "fp8"
    assert engine_options(_parser().parse_args(["serve", "--graphs"]))["graphs"] is True
    more = ["generate", "--prompt", "a", "-o", "a.mp4", "--parts", "org/wan", "--lora", "b.pt"]
    assert {"parts": "org/wan", "lora": "b.pt"}.items() <= engine_options(_parser().parse_args(more)).items()
