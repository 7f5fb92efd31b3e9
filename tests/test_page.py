"""The page in a real Chromium; the server is a script and the picture a canvas (tests/studio.js)."""

import itertools
import re
import statistics
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import HOST, WAIT_MS, browser, open_page

__all__ = ["browser"]

pytestmark = pytest.mark.browser
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture
def visit(browser):
    """Opens pages, closes them after the test, and fails it for every fault in the page's modules."""
    pages = []

    def visit_(address="/", **context):
        page, script = open_page(browser, address, **context)
        pages.append(page)
        script.wait(lambda: script.connections and (script.messages or not script.reachable), "the page says hello")
        return page, script

    yield visit_
    faults = [fault for page in pages for fault in page.faults]
    for page in pages:
        page.context.close()
    assert not faults


@pytest.fixture
def live(visit):
    """As `visit`, and waits until the picture is there."""

    def live_(address="/", **context):
        page, script = visit(address, **context)
        script.live()
        wait_for_state(page, "live")
        return page, script

    return live_


def wait_for_state(page, state):
    page.wait_for_function("state => document.documentElement.dataset.state === state", arg=state, timeout=WAIT_MS)


def stats(script, **changes):
    told = {"fps": 16, "chunk_ms": 90, "lead_ms": 0, "viewers": 1, "waiting": 0, "dropped": 0, "late": 0, "chunk": 0}
    script.send("stats", **{**told, "turn_seconds": None, **changes})


def held(script):
    return script.of("keys")[-1]["held"] if script.of("keys") else None


def pressed(page):
    return page.eval_on_selector_all(
        "[data-key][aria-pressed=true]", "all => all.map(one => one.dataset.key).sort().join('')"
    )


def test_the_first_visit_asks_for_a_world_without_a_click(visit):
    page, script = visit()
    hello = script.of("hello")[0]
    assert hello["prompt"] and hello["prompt"] == page.input_value("#prompt")
    assert hello["seed"] is None


def test_the_address_gives_prompt_and_seed(visit):
    _, script = visit("/?prompt=a%20lava%20field&seed=42")
    assert script.of("hello")[0] == {"type": "hello", "version": 1, "prompt": "a lava field", "seed": 42}


def test_the_servers_token_comes_behind_the_address_and_does_not_stay_there(visit):
    page, script = visit("/?prompt=snow#access=a-long-enough-secret")
    assert script.of("hello")[0]["access"] == "a-long-enough-secret"
    assert page.evaluate("location.href").endswith("/?prompt=snow")


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "9007199254740993"])
def test_a_seed_that_cannot_be_is_left_to_the_server(visit, seed):
    _, script = visit(f"/?prompt=snow&seed={seed}")
    assert script.of("hello")[0]["seed"] is None


def test_a_live_session_plays_its_picture_and_shows_seed_and_rate(live):
    page, _ = live()
    assert page.evaluate("studio.requests") == ["POST /whep?session= Bearer secret"]
    assert page.input_value("#seed") == "7"
    page.wait_for_function("parseFloat(document.getElementById('fps').textContent) > 8")


def test_the_page_asks_no_other_host(live):
    page, _ = live()
    assert page.hosts == {HOST.removeprefix("http://")}


def test_a_held_key_is_sent_lights_up_is_repeated_and_let_go(live):
    page, script = live()
    page.keyboard.down("w")
    page.keyboard.down("l")
    script.wait(lambda: held(script) == ["l", "w"], "both keys are sent as held")
    assert pressed(page) == "lw"
    count, before = len(script.of("keys")), len(script.messages)
    script.wait(lambda: len(script.of("keys")) >= count + 5, "held keys are sent again")
    assert {message["type"] for message in script.messages[before:]} == {"keys"}
    gaps = [later - one for one, later in itertools.pairwise(script.times[before:])]
    assert statistics.median(gaps) < 0.33, "three times before the server lets go of them"
    repeats = script.of("keys")[count:]
    assert all(message["held"] == ["l", "w"] for message in repeats)
    assert len({message["seq"] for message in repeats}) == 1
    page.keyboard.up("w")
    page.keyboard.up("l")
    script.wait(lambda: held(script) == [], "no key is held")
    count = len(script.of("keys"))
    page.wait_for_timeout(500)
    assert len(script.of("keys")) == count, "with no key held nothing is repeated"


def test_sequence_numbers_rise_over_keys_prompts_and_restarts(live):
    page, script = live()
    page.keyboard.press("w")
    page.fill("#prompt", "snow")
    page.press("#prompt", "Enter")
    page.click("#again")
    script.wait(lambda: script.of("restart"), "a restart is sent")
    # Each number where it comes first: held keys are sent again under the one that they had.
    numbers = list(dict.fromkeys(message["seq"] for message in script.messages if "seq" in message))
    assert numbers == sorted(numbers) and len(numbers) >= 3, script.messages
    assert script.of("keys")[-1]["seq"] < script.of("restart")[0]["seq"] or held(script) == []


def test_a_tap_holds_its_key_for_a_whole_chunk(live):
    page, script = live()
    page.evaluate("""() => {
      window.lit = [];
      const key = document.querySelector("[data-key=w]");
      const note = () => lit.push([performance.now(), key.getAttribute("aria-pressed")]);
      new MutationObserver(note).observe(key, { attributes: true, attributeFilter: ["aria-pressed"] });
    }""")
    page.keyboard.press("w")
    page.wait_for_function("lit.length && lit.at(-1)[1] !== 'true'")
    lit = page.evaluate("lit")
    assert lit[0][1] == "true" and lit[-1][0] - lit[0][0] > 150
    script.wait(lambda: held(script) == [], "the tap ends")
    assert ["w"] in [message["held"] for message in script.of("keys")]


def test_two_quick_taps_hold_the_key_once_and_let_it_go(live):
    page, script = live()
    page.keyboard.press("w")
    page.keyboard.press("w")
    script.wait(lambda: pressed(page) == "", "the taps end")
    page.wait_for_timeout(300)
    assert held(script) == [] and pressed(page) == ""


def test_arrow_keys_walk_and_turn(live):
    page, script = live()
    page.keyboard.down("ArrowUp")
    page.keyboard.down("ArrowLeft")
    script.wait(lambda: held(script) == ["j", "w"], "arrows stand for w and j")


def test_typing_a_prompt_never_moves_the_camera(live):
    page, script = live()
    before = len(script.of("keys"))
    page.focus("#prompt")
    page.keyboard.type("wasd ijkl snow")
    assert len(script.of("keys")) == before and pressed(page) == ""
    page.keyboard.press("Enter")
    script.wait(lambda: script.of("prompt"), "the prompt is sent")
    assert script.of("prompt")[0]["text"] == "wasd ijkl snow"
    assert page.evaluate("document.activeElement.id") == "stage"


def test_escape_gives_the_old_prompt_and_the_keys_back(live):
    page, script = live("/?prompt=a%20desert")
    page.focus("#prompt")
    page.keyboard.type("never mind")
    page.keyboard.press("Escape")
    assert page.input_value("#prompt") == "a desert"
    page.keyboard.down("w")
    script.wait(lambda: held(script) == ["w"], "keys walk again")
    assert not script.of("prompt")


def test_enter_on_the_picture_leads_to_the_prompt(live):
    page, _ = live()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_a_shortcut_of_the_browser_is_no_step(live):
    page, script = live()
    before = len(script.of("keys"))
    page.keyboard.press("Control+d")
    page.wait_for_timeout(100)
    assert len(script.of("keys")) == before


@pytest.mark.parametrize("event", ["window.dispatchEvent(new Event('blur'))", "document.dispatchEvent(hidden)"])
def test_keys_are_released_when_the_page_loses_the_keyboard(live, event):
    page, script = live()
    page.keyboard.down("w")
    script.wait(lambda: held(script) == ["w"], "the key is held")
    page.evaluate(event.replace("hidden", "new Event('visibilitychange')"))
    script.wait(lambda: held(script) == [], "the key is released")
    assert pressed(page) == ""


def test_two_fingers_hold_two_keys_and_may_slide(live):
    page, script = live(**PHONE)
    cdp = page.context.new_cdp_session(page)

    def touch(kind, **keys):
        points = []
        for number, key in enumerate(keys.values()):
            box = page.locator(f"[data-key={key}]").bounding_box()
            points.append({"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "id": number})
        cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", left="w")
    touch("touchStart", left="w", right="l")
    script.wait(lambda: held(script) == ["l", "w"], "two fingers, two keys")
    touch("touchMove", left="d", right="l")
    script.wait(lambda: held(script) == ["d", "l"], "a finger slides to the next key")
    page.wait_for_timeout(700)
    assert held(script) == ["d", "l"], "a long touch stays a held key"
    touch("touchEnd")
    script.wait(lambda: held(script) == [], "no finger, no key")
    assert page.evaluate("[scrollX, scrollY, visualViewport.scale, String(getSelection())].join()") == "0,0,1,"


def test_a_focused_key_button_is_held_by_space(live):
    page, script = live()
    page.focus("[data-key=a]")
    page.keyboard.down(" ")
    script.wait(lambda: held(script) == ["a"], "space holds the focused key")
    page.keyboard.up(" ")
    script.wait(lambda: held(script) == [], "and lets it go")


def test_the_line_is_shown_live_and_the_page_enters_by_itself(visit):
    page, script = visit()
    script.send("queued", place=2, waiting=3, reason="The world is full.")
    wait_for_state(page, "waiting")
    assert page.inner_text("#place") == "2" and "The world is full." in page.inner_text("#veil-text")
    script.send("queued", place=1, waiting=1, reason="The world is full.")
    page.wait_for_function("document.getElementById('place').textContent === '1'")
    script.live()
    wait_for_state(page, "live")
    assert len(script.of("hello")) == 1


def test_a_lost_server_is_told_and_found_again_with_the_same_wish(live):
    page, script = live("/?prompt=a%20desert")
    page.keyboard.down("w")
    script.reachable = False
    script.drop()
    wait_for_state(page, "lost")
    assert "Trying again by itself" in page.inner_text("#veil-text") and pressed(page) == ""
    script.reachable = True
    script.wait(lambda: len(script.of("hello")) == 2, "the page comes back")
    assert script.of("hello")[1]["prompt"] == "a desert" and script.of("hello")[1]["seed"] == 7
    script.live()
    wait_for_state(page, "live")


def test_the_viewer_need_not_wait_for_the_next_try(live):
    page, script = live()
    script.reachable = False
    script.drop()
    # The next one comes after 3 seconds or more.
    script.wait(lambda: script.connections >= 4, "three tries have failed")
    script.reachable = True
    page.click("#veil-action")
    script.wait(lambda: len(script.of("hello")) == 2, "the page comes back at once", limit_ms=2000)


def test_an_ended_session_says_why_and_begins_again(live):
    page, script = live()
    script.send("ended", reason="The engine was restarted.")
    wait_for_state(page, "lost")
    assert "The engine was restarted." in page.inner_text("#veil-text")
    script.wait(lambda: len(script.of("hello")) == 2, "the page comes back")


def test_a_refused_picture_is_explained_and_asked_for_again(visit):
    page, script = visit()
    page.evaluate("studio.refuse = { status: 503, body: JSON.stringify({ detail: 'All slots are taken.' }) }")
    script.live()
    page.wait_for_function("document.getElementById('veil-text').textContent.includes('All slots are taken.')")
    page.evaluate("studio.refuse = null")
    wait_for_state(page, "live")
    assert len(script.of("hello")) == 1


def test_a_picture_that_stands_still_is_fetched_again(live):
    page, script = live()
    page.evaluate("""{
      const real = window.setTimeout;
      window.setTimeout = (work, ms, ...all) => real(work, ms === 8000 ? 2000 : ms, ...all);
    }""")
    page.wait_for_timeout(200)  # the next frame sets the timer anew
    page.evaluate("studio.drawing = false")
    page.wait_for_function("studio.requests.filter(one => one.startsWith('POST')).length >= 2")
    assert page.evaluate("studio.requests[1]") == "DELETE /whep/1", "the old one is given back first"
    page.evaluate("studio.drawing = true")
    wait_for_state(page, "live")
    assert len(script.of("hello")) == 1


def test_a_refused_first_prompt_can_be_mended(visit):
    page, script = visit()
    script.welcomes = False
    script.drop()
    script.wait(lambda: len(script.of("hello")) == 2, "the page says hello again")
    script.send("error", message="the prompt is too strange")
    page.wait_for_function("document.getElementById('veil-text').textContent === 'the prompt is too strange'")
    page.fill("#prompt", "snow")
    page.press("#prompt", "Enter")
    script.wait(lambda: script.of("hello")[-1]["prompt"] == "snow", "hello goes out again with the new prompt")


def test_a_first_prompt_that_is_mended_brings_the_secrets_of_the_first_one(visit):
    page, script = visit("/#access=opensesame-123456")
    script.welcomes = False
    script.drop()
    script.wait(lambda: len(script.of("hello")) == 2, "the page comes back")
    script.send("error", message="the prompt is too strange")
    page.fill("#prompt", "snow")
    page.press("#prompt", "Enter")
    script.wait(lambda: script.of("hello")[-1]["prompt"] == "snow", "hello goes out again")
    mended = script.of("hello")[-1]
    assert (mended["access"], mended["token"]) == ("opensesame-123456", "secret")


def test_the_time_from_key_to_screen_is_reported_and_shown(live):
    page, script = live()
    page.wait_for_function("studio.rtp !== undefined")
    page.keyboard.down("w")
    script.wait(lambda: held(script) == ["w"], "the key is sent")
    seq = script.of("keys")[-1]["seq"]
    script.send("applied", seq=seq, chunk=3, frame=12, rtp=(page.evaluate("studio.rtp") + 9000) % 2**32)
    script.wait(lambda: script.of("shown"), "the frame is reported")
    shown = script.of("shown")[0]
    assert shown["seq"] == seq and 0 < shown["ms"] < 3000
    assert page.inner_text("#latency-ms") == str(round(shown["ms"]))


def test_without_a_timestamp_no_time_is_made_up(live):
    page, script = live()
    page.keyboard.down("w")
    script.wait(lambda: held(script) == ["w"], "the key is sent")
    script.send("applied", seq=script.of("keys")[-1]["seq"], chunk=3, frame=12, rtp=None)
    page.wait_for_timeout(400)
    assert not script.of("shown") and page.is_hidden("#latency")


def test_rtp_timestamps_may_wrap_between_key_and_frame(visit):
    page, _ = visit()
    shown = page.evaluate(
        """async () => {
          const { Latency } = await import("./latency.js");
          const shown = [];
          const latency = new Latency((seq, ms) => shown.push([seq, ms]));
          latency.sent(1, 1000);
          latency.applied(1, 100);
          latency.presented(2 ** 32 - 3000, 1050);
          latency.presented(2700, 1100);
          latency.sent(2, 1200);
          latency.presented(8100, 1300);
          latency.applied(2, 5400);
          return shown;
        }"""
    )
    assert shown == [[1, 100], [2, 100]]


def test_what_was_understood_is_shown_as_text_and_never_as_markup(live):
    page, script = live()
    script.send("scene", text="desert, dusk", unknown_words=["<img src=x onerror=alert(1)>", "dragon"])
    page.wait_for_function("document.getElementById('scene').textContent === 'desert, dusk'")
    assert page.inner_text("#unknown").endswith("not understood: <img src=x onerror=alert(1)>, dragon")
    assert page.locator("#understood img").count() == 0


def test_a_word_that_was_guessed_at_is_shown_with_what_it_was_taken_for(live):
    page, script = live()
    script.send("scene", text="pines", unknown_words=["dragon"], guessed_words=[["sequoia", "pines"]])
    page.wait_for_function("document.getElementById('scene').textContent === 'pines'")
    assert page.inner_text("#unknown").endswith("took sequoia for pines; not understood: dragon")


def test_an_example_is_one_click_away(live):
    page, script = live()
    page.focus("#prompt")
    chip = page.locator("#examples button").nth(1)
    chip.click()
    script.wait(lambda: script.of("prompt"), "the example is sent")
    assert script.of("prompt")[0]["text"] == page.input_value("#prompt") == chip.text_content()


def test_an_empty_prompt_is_not_sent_and_told(live):
    page, script = live()
    page.fill("#prompt", "   ")
    page.press("#prompt", "Enter")
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('Say in a few words')")
    assert not script.of("prompt")


def test_a_new_world_keeps_the_words_and_the_peer_and_changes_the_seed(live):
    page, script = live("/?prompt=a%20desert")
    page.click("#again")
    script.wait(lambda: script.of("restart"), "a restart is sent")
    restart = script.of("restart")[0]
    assert restart["prompt"] == "a desert" and restart["seed"] != 7
    script.live(seed=restart["seed"])
    page.wait_for_function("seed => document.getElementById('seed').value === seed", arg=str(restart["seed"]))
    assert page.evaluate("studio.requests.length") == 1
    assert restart["image"] == "none"


def pause(page, script):
    """Space pauses, and the server says so."""
    page.keyboard.press(" ")
    script.wait(lambda: script.of("pause"), "space pauses")
    script.send("paused", seq=script.of("pause")[0]["seq"], chunk=41)
    page.wait_for_function("document.getElementById('state').textContent === 'paused'")


def test_the_buttons_and_keys_of_time_pause_go_back_begin_again_and_park(live):
    page, script = live()
    pause(page, script)
    page.click("#go-on")
    script.wait(lambda: script.of("unpause"), "the button on the picture goes on")
    page.click("#pause")
    script.wait(lambda: len(script.of("pause")) == 2, "a button pauses")
    assert page.evaluate("document.activeElement.id") == "stage", "the next space is not to press it again"
    assert page.is_hidden("#go-on") and page.inner_text("#state") == "live"
    stats(script, chunk=40, lead_ms=500)  # a chunk plays 0.25 s
    page.wait_for_function("document.getElementById('company').hidden")
    page.keyboard.press("Backspace")
    page.focus("#back")
    page.keyboard.press("Enter")
    script.wait(lambda: len(script.of("rewind")) == 2, "a key and a button go back")
    assert [message["chunk"] for message in script.of("rewind")] == [18, 0]
    page.click("#start")
    script.wait(lambda: script.of("restart"), "the world begins again")
    assert "seed" not in script.of("restart")[0] and "image" not in script.of("restart")[0]
    page.fill("#seed", "-3")
    page.press("#seed", "Enter")
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('A seed is a whole number')")
    page.fill("#seed", "1234")
    page.press("#seed", "Enter")
    script.wait(lambda: len(script.of("restart")) == 2, "a seed that was typed begins its world")
    assert script.of("restart")[1]["seed"] == 1234
    page.click("#park")
    script.wait(lambda: script.of("park"), "the world is parked")
    script.send("parked", reason="You parked this world.", by_itself=None)
    page.click("#veil-other")
    page.wait_for_function("studio.requests.at(-1) === 'DELETE /api/sessions/s1 Bearer secret'")
    page.click("#veil-action")
    script.wait(lambda: len(script.of("hello")) == 2, "another world begins")
    assert "token" not in script.of("hello")[1]


def test_a_paused_world_goes_on_when_the_server_goes_back_and_stands_when_it_refuses_to(live):
    page, script = live()
    pause(page, script)
    page.keyboard.press("Backspace")
    script.wait(lambda: script.of("rewind"), "it shall go back")
    script.send("error", message="the world remembers 4 chunks", seq=script.of("rewind")[0]["seq"])
    page.wait_for_function("document.getElementById('notice').textContent.includes('remembers 4 chunks')")
    assert page.inner_text("#state") == "paused"
    page.keyboard.press("Backspace")
    script.wait(lambda: len(script.of("rewind")) == 2, "once more")
    script.send("received", seq=script.of("rewind")[1]["seq"])
    page.wait_for_function("document.getElementById('state').textContent === 'live'")


def test_what_others_wait_for_is_said_until_the_viewer_does_something(live):
    page, script = live()
    script.send("asked", seconds=30)
    page.wait_for_timeout(6500)  # other notices are gone by then
    assert "press a key within 30 seconds" in page.inner_text("#notice")
    page.keyboard.press("w")
    page.wait_for_function("document.getElementById('notice').textContent === ''")


def test_a_key_on_the_page_that_is_clicked_without_a_pointer_is_a_tap(live):
    page, script = live()
    page.eval_on_selector("[data-key=w]", "key => key.click()")
    script.wait(lambda: len(script.of("keys")) >= 3 and held(script) == [], "it is let go again")
    assert ["w"] in [message["held"] for message in script.of("keys")]


def test_no_key_stays_down_that_is_let_go_while_a_shortcut_is_pressed(live):
    page, script = live()
    page.keyboard.down("w")
    script.wait(lambda: held(script) == ["w"], "it is held")
    page.evaluate("dispatchEvent(new KeyboardEvent('keyup', { code: 'MetaLeft', key: 'Meta' }))")
    script.wait(lambda: held(script) == [], "macOS tells of no other key")


def test_a_link_that_cannot_be_copied_is_shown_and_without_a_world_there_is_none(live):
    page, script = live()
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: { writeText: async () => { throw 1; } } })")
    page.click("#invite")
    page.wait_for_function("document.getElementById('notice').textContent.includes('#watch=link-0123456789')")
    script.reachable = False
    script.drop()
    wait_for_state(page, "lost")
    page.eval_on_selector("#invite", "button => button.click()")
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('There is no world to watch')")


PICTURE = """kind => {
  const transfer = new DataTransfer();
  const type = { png: "image/png", txt: "text/plain" }[kind];
  transfer.items.add(new File(["not looked at here"], `a.${kind}`, { type }));
  return transfer;
}"""


def test_a_picture_is_chosen_dropped_or_pasted_and_a_world_begins_with_it(live):
    page, script = live()
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"bytes"})
    script.wait(lambda: script.of("restart"), "a chosen picture")
    assert page.evaluate("studio.requests.at(-1)") == "PUT /api/sessions/s1/image Bearer secret"
    assert script.of("restart")[0]["image"] == "0123456789abcdef"
    script.send("received", seq=script.of("restart")[0]["seq"])
    page.wait_for_function("document.getElementById('notice').textContent.includes('begins with your picture')")
    page.evaluate(f"dispatchEvent(new DragEvent('drop', {{ dataTransfer: ({PICTURE})('png'), cancelable: true }}))")
    script.wait(lambda: len(script.of("restart")) == 2, "a dropped picture")
    page.evaluate(f"dispatchEvent(new ClipboardEvent('paste', {{ clipboardData: ({PICTURE})('png') }}))")
    script.wait(lambda: len(script.of("restart")) == 3, "a pasted picture")
    paste = f"""const data = ({PICTURE})('png'); data.setData("text/plain", "snow");
        const event = new ClipboardEvent('paste', {{ clipboardData: data, bubbles: true }});
        document.getElementById('prompt').dispatchEvent(event)"""
    page.evaluate(f"() => {{ {paste} }}")
    page.evaluate("studio.refuse = { status: 400, body: JSON.stringify({ detail: 'the image is damaged' }) }")
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"bytes"})
    page.wait_for_function("document.getElementById('notice').textContent === 'the image is damaged'")
    page.evaluate(f"dispatchEvent(new DragEvent('drop', {{ dataTransfer: ({PICTURE})('txt'), cancelable: true }}))")
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('a.txt is no picture')")
    assert len(script.of("restart")) == 3 and page.evaluate("document.documentElement.dataset.state") == "live"


def test_a_picture_takes_no_old_words_along_but_those_that_were_written_for_it(live):
    page, script = live("/?prompt=a%20desert")
    choose = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"bytes"}
    page.set_input_files("#file", choose)
    script.wait(lambda: script.of("restart"), "a world that needs words has those of before")
    script.welcome(names_pictures=True)
    page.set_input_files("#file", choose)
    script.wait(lambda: len(script.of("restart")) == 2, "one that knows pictures has none")
    script.live(prompt="")
    page.wait_for_function("document.getElementById('prompt').value === ''")
    script.send("scene", text="a shore by day, clear", unknown_words=[])
    page.wait_for_function("document.getElementById('scene').textContent === 'a shore by day, clear'")
    page.fill("#prompt", "at night")
    page.set_input_files("#file", choose)
    script.wait(lambda: len(script.of("restart")) == 3, "what was written is sent along")
    page.focus("#prompt")
    page.keyboard.press("Escape")
    assert page.input_value("#prompt") == ""
    page.click("#again")
    script.wait(lambda: len(script.of("restart")) == 4, "another world is one of what the picture showed")
    prompts = [message["prompt"] for message in script.of("restart")]
    assert prompts == ["a desert", "", "at night", "a shore by day, clear"]


def test_a_world_that_needs_a_picture_asks_for_it_and_the_line_can_be_left(visit):
    page, script = visit()
    script.send("queued", place=1, waiting=1, reason="It begins with a picture.", needs_picture=True)
    page.wait_for_function("document.getElementById('veil-action').textContent === 'Choose a picture'")
    with page.expect_file_chooser() as chooser:
        page.click("#veil-action")
    chooser.value.set_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"bytes"})
    script.wait(lambda: script.of("restart"), "it is sent")
    script.send("queued", place=1, waiting=1, reason="All places are taken.")
    page.click("#veil-other")
    script.wait(lambda: script.of("leave"), "the line is left")
    script.send("ended", reason="You left.")
    page.wait_for_function("document.getElementById('veil-title').textContent === 'You have left the line'")
    page.wait_for_timeout(1000)
    assert len(script.of("hello")) == 1, "it does not come back by itself"


def test_a_world_without_a_camera_shows_no_keys_and_one_without_pictures_no_button(visit):
    page, script = visit()
    script.welcome(keys=[], image="none")
    script.live()
    wait_for_state(page, "live")
    assert page.is_hidden("#walk") and page.is_hidden("#look") and page.is_hidden("#picture")
    page.keyboard.press("w")
    page.wait_for_timeout(100)
    assert not script.of("keys")


def test_a_paused_world_that_is_come_back_to_says_how_it_goes_on(visit):
    page, script = visit()
    page.evaluate("studio.drawing = false")
    script.live()
    script.send("paused", seq=4, chunk=7)
    page.wait_for_function("document.getElementById('veil-title').textContent === 'Your world stands still'")
    page.click("#veil-action")
    script.wait(lambda: script.of("unpause"), "it goes on")
    page.evaluate("studio.drawing = true")
    wait_for_state(page, "live")


def test_share_copies_a_link_that_leads_to_this_world(live):
    page, _ = live("/?prompt=a%20desert", permissions=["clipboard-read", "clipboard-write"])
    page.click("#share")
    page.wait_for_function("document.getElementById('notice').textContent.includes('copied')")
    link = urlsplit(page.evaluate("navigator.clipboard.readText()"))
    assert parse_qs(link.query) == {"prompt": ["a desert"], "seed": ["7"]}


def test_an_invitation_leads_to_a_page_that_watches_and_steers_nothing(visit, live):
    page, _ = live(permissions=["clipboard-read", "clipboard-write"])
    page.click("#invite")
    page.wait_for_function("document.getElementById('notice').textContent.includes('sees what you see')")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == f"{HOST}/#watch=link-0123456789"
    guest, script = visit(link.removeprefix(HOST))
    assert script.messages == [{"type": "spectate", "version": 1, "token": "link-0123456789"}]
    script.welcome(keys=[], image="none", spectates=True, watch_token=None, token="guests-own")
    script.live()
    wait_for_state(guest, "live")
    assert guest.evaluate("studio.requests") == ["POST /whep?session= Bearer guests-own"]
    assert guest.inner_text("#state") == "watching"
    for control in ("#deck", "#world", "#walk", "#prompt", "#examples"):
        assert guest.is_hidden(control), control
    for key in ("w", " ", "Backspace", "Enter"):
        guest.keyboard.press(key)
    script.send("paused", seq=3, chunk=9)
    guest.wait_for_function("document.getElementById('state').textContent === 'paused'")
    assert guest.is_hidden("#go-on")
    guest.wait_for_timeout(100)
    assert len(script.messages) == 1
    assert guest.evaluate("sessionStorage.length") == 0, "the token is no world of one's own to come back to"
    script.send("ended", reason="The walk that you watch is over.")
    wait_for_state(guest, "lost")
    assert "The walk that you watch is over." in guest.inner_text("#veil-text")
    script.wait(lambda: len(script.of("spectate")) == 2, "it looks again by itself")
    script.send("ended", reason="There is no one to watch here.")
    guest.click("#veil-other")
    script.wait(lambda: script.of("hello"), "and one may walk oneself")


def test_a_refusal_of_the_server_is_shown(live):
    page, script = live()
    script.send("error", message="no such key: x", seq=3)
    page.wait_for_function("document.getElementById('notice').textContent === 'no such key: x'")
    assert page.evaluate("document.documentElement.dataset.state") == "live"


def test_an_unknown_message_is_a_fault_and_not_passed_over(browser):
    page, script = open_page(browser)
    script.wait(lambda: script.messages, "the page says hello")
    script.send("surprise")
    script.wait(lambda: page.faults, "the page throws")
    page.context.close()
    assert re.search("no such message from the server", page.faults[0])


def test_leaving_the_page_gives_the_slot_back_at_once(live):
    page, script = live()
    page.evaluate("window.dispatchEvent(new PageTransitionEvent('pagehide'))")
    script.wait(lambda: script.of("leave"), "the page says that it leaves")
    assert page.evaluate("studio.requests.at(-1)") == "DELETE /whep/1"


def test_a_page_that_is_loaded_again_goes_on_with_the_world_that_was_walked_in(live):
    page, script = live()
    page.keyboard.press("w")
    script.wait(lambda: ["w"] in [message["held"] for message in script.of("keys")], "the viewer walks")
    page.evaluate("window.dispatchEvent(new PageTransitionEvent('pagehide'))")
    script.wait(lambda: script.of("park"), "the place is given back and the world is kept")
    page.reload()
    script.wait(lambda: len(script.of("hello")) == 2, "the page is there again")
    assert not script.of("leave")
    assert script.of("hello")[1]["token"] == "secret"


def test_a_newcomer_is_told_what_to_do_until_they_do_it(live):
    page, _ = live()
    hint = "document.getElementById('notice').textContent"
    page.wait_for_function(f"{hint} === 'Hold W A S D to walk, I J K L to look around. Write what you want to see.'")
    page.keyboard.press("l")
    page.wait_for_function(f"{hint} === ''")
    phone, _ = live(**PHONE)
    phone.wait_for_function(f"{hint} === 'Hold the arrows to walk and look around. Write what you want to see.'")


def test_words_find_their_world_also_where_none_is_live(live):
    page, script = live()
    page.keyboard.press("w")
    page.click("#park")
    script.wait(lambda: script.of("park"), "the world is parked")
    script.send("parked", reason="You parked this world.", by_itself=None)
    wait_for_state(page, "parked")
    assert page.evaluate("document.activeElement.id") == "veil-action"
    page.fill("#prompt", "snow")
    page.press("#prompt", "Enter")
    page.wait_for_function("document.getElementById('notice').textContent.startsWith('Go on with your world first')")
    page.click("#veil-other")
    wait_for_state(page, "left")
    page.press("#prompt", "Enter")
    script.wait(lambda: len(script.of("hello")) == 2, "words begin another world")
    assert script.of("hello")[1]["prompt"] == "snow"


WIDE = [(640, 360), (844, 390), (805, 500), (1110, 600), (1231, 700), (1280, 720), (1440, 900), (3840, 2160)]
SIZES = [(360, 640), (390, 844), (768, 1024), *WIDE]


def test_no_control_leaves_the_screen_or_covers_another(visit):
    page, script = visit()
    script.live(seed=4294967295)
    script.send("scene", text="desert, columns, dusk", unknown_words=["dragon"])
    wait_for_state(page, "live")
    page.evaluate("document.getElementById('latency').hidden = false")
    for size in SIZES:
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for turn, shown in ((None, ""), (59, "0:59")):
            stats(script, viewers=2, waiting=3, turn_seconds=turn)
            page.wait_for_function(f"document.getElementById('turn-left').textContent === '{shown}'")
            page.wait_for_function("!document.getElementById('company').hidden")
            check_boxes(page, size)


def check_boxes(page, size):
    boxes = page.eval_on_selector_all(
        "header > *, .key, .line",
        "all => all.map(one => [one.className || one.id, one.getBoundingClientRect().toJSON()])",
    )
    for name, box in boxes:
        assert box["left"] >= 0 and box["top"] >= 0, (size, name, box)
        assert box["right"] <= size[0] and box["bottom"] <= size[1], (size, name, box)
    for index, (name, one) in enumerate(boxes):
        for other_name, other in boxes[index + 1 :]:
            apart = one["right"] <= other["left"] or other["right"] <= one["left"]
            apart = apart or one["bottom"] <= other["top"] or other["bottom"] <= one["top"]
            assert apart, (size, name, one, other_name, other)


def test_after_a_broken_connection_the_page_comes_back_with_its_token_and_counts_on(live):
    page, script = live()
    script.drop()
    script.wait(lambda: len(script.of("hello")) == 2, "the page comes back")
    assert "token" not in script.of("hello")[0] and script.of("hello")[1]["token"] == "secret"
    script.send("queued", place=1, waiting=1, reason="The engine starts again.", restoring=True, wait_seconds=100)
    wait_for_state(page, "waiting")
    assert page.inner_text("#veil-title") == "Restoring your world"
    assert "about 2 minutes" in page.inner_text("#veil-text")
    script.live()
    wait_for_state(page, "live")


def test_when_the_network_is_another_one_the_page_comes_back_with_its_token_and_a_new_offer(live):
    page, script = live()
    page.context.set_offline(True)
    page.context.set_offline(False)
    script.wait(lambda: len(script.of("hello")) == 2, "it opens another connection at once", limit_ms=3000)
    assert script.of("hello")[1]["token"] == "secret"
    script.live()
    page.wait_for_function("studio.requests.map(one => one.split(' ')[0]).join() === 'POST,DELETE,POST'")
    wait_for_state(page, "live")


def test_a_live_page_that_hears_nothing_for_a_while_opens_another_connection(live):
    page, script = live()
    stats(script)
    page.wait_for_timeout(200)
    page.evaluate("{ const real = performance.now.bind(performance); performance.now = () => real() + 7000; }")
    script.wait(lambda: len(script.of("hello")) == 2, "the page comes back")
    assert script.of("hello")[1]["token"] == "secret"


def test_an_ended_session_is_not_come_back_to(live):
    _, script = live()
    script.send("ended", reason="You left.")
    script.wait(lambda: len(script.of("hello")) == 2, "the page begins again")
    assert "token" not in script.of("hello")[1]


def test_who_is_turned_away_at_the_door_keeps_the_world_that_is_kept(live):
    _, script = live()
    script.welcomes = False
    script.drop()
    script.wait(lambda: len(script.of("hello")) == 2, "the page comes back")
    script.send("ended", reason="The server is closing.")
    script.wait(lambda: len(script.of("hello")) == 3, "and once more")
    assert script.of("hello")[2]["token"] == "secret"


def test_a_server_that_asks_for_its_token_is_not_asked_again_by_itself(visit):
    page, script = visit()
    script.send("ended", reason="This server asks for a token.", needs_access=True)
    wait_for_state(page, "left")
    assert "#access=" in page.inner_text("#veil-text")
    page.wait_for_timeout(1000)
    assert len(script.of("hello")) == 1
    page.click("#veil-action")
    script.wait(lambda: len(script.of("hello")) == 2, "the page tries again")


def test_a_parked_world_waits_for_a_click_and_goes_on_with_its_token(live):
    page, script = live()
    script.send("asked", seconds=30)
    page.wait_for_function("document.getElementById('notice').textContent.includes('press a key within 30 seconds')")
    script.send("parked", reason="Nothing was steered for a while.", by_itself=None)
    page.wait_for_function("document.getElementById('veil-title').textContent === 'Your world is kept'")
    page.wait_for_timeout(1200)
    assert len(script.of("hello")) == 1, "it does not come back by itself"
    page.click("#veil-action")
    script.wait(lambda: len(script.of("hello")) == 2, "the page goes on")
    assert script.of("hello")[1]["token"] == "secret"


def test_a_world_that_a_server_parked_for_its_own_sake_comes_back_by_itself(live):
    _, script = live()
    script.send("parked", reason="The server is closing.", by_itself=True)
    script.wait(lambda: len(script.of("hello")) == 2, "the page comes back")
    assert script.of("hello")[1]["token"] == "secret"
