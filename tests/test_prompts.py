"""stream/prompts.py: what people type is in no log unless asked for, and no token ever is."""

import json
import re
import signal
import urllib.error
import urllib.parse
import urllib.request

import pytest

from stream.prompts import MASK, REMEMBERED, Prompts

SECRET = "grandmother's orchard \u00fc"


def test_a_prompt_is_taken_out_however_it_is_written():
    prompts = Prompts()
    for prompt in (SECRET, "grandmother", "a", None, ""):
        prompts.note("x", prompt)
    for text in (SECRET, f"KeyError: {SECRET!r}", f"no {SECRET}, a {SECRET}"):
        masked = prompts.masked(text)
        assert MASK in masked and "orchard" not in masked and "grandmother" not in masked
    assert prompts.masked("a cat and a dog") == "a cat and a dog"


def test_only_so_many_prompts_are_remembered():
    prompts = Prompts()
    for number in range(REMEMBERED + 1):
        prompts.note("x", f"prompt-{number:04}")
    assert prompts.masked("prompt-0000 prompt-0001") == f"prompt-0000 {MASK}"


def post(url, body, kind):
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        return error.read()


def say_everything(url):
    """Prompts by every way, good and bad ones, until the engine breaks over one; the tokens that were given."""
    from websockets.sync.client import connect

    made = json.loads(post(f"{url}/api/sessions", json.dumps({"prompt": SECRET}).encode(), "application/json"))
    post(f"{url}/api/sessions", json.dumps({"prompt": SECRET, "seed": -1}).encode(), "application/json")
    for query in (f"prompt={urllib.parse.quote(SECRET)}", f"session={made['token']}"):
        post(f"{url}/whep?{query}", b"no offer", "application/sdp")
    with connect(url.replace("http", "ws") + "/ws") as page:
        page.send(json.dumps({"type": "hello", "version": 1, "prompt": SECRET}))
        token = json.loads(page.recv(timeout=5))["token"]
        page.send(json.dumps({"type": "prompt", "seq": 1, "text": SECRET, "extra": SECRET}))
        page.send(json.dumps({"type": "restart", "seq": 2, "prompt": SECRET}))
        page.send(SECRET)
        page.send(json.dumps({"type": "prompt", "seq": 3, "text": f"blurt {SECRET}"}))
        page.send(json.dumps({"type": "restart", "seq": 4}))
        while "starting again" not in page.recv(timeout=10):
            pass
    return [made["token"], token]


@pytest.mark.parametrize("shown", [False, True])
def test_prompts_are_logged_only_when_asked_for_and_tokens_never(server, shown):
    one = server(log_prompts=shown)
    url = re.search(r"http://\S+", one.line())[0]
    one.line()
    tokens = say_everything(url)
    logged = one.end(signal.SIGINT, seconds=5)
    assert "the engine died" in logged and "RuntimeError" in logged, "the error itself is there"
    assert ("orchard" in logged) == shown
    assert not any(token in logged for token in tokens)
