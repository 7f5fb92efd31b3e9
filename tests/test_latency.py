"""benchmarks/latency.py: the parts of a press, what the picture itself says, and a short run in a real Chromium."""

import base64
import io
import itertools
import json
import random

import numpy as np
import pytest
from browser import chromium_path
from PIL import Image
from undisturbed import undisturbed

from benchmarks import latency, plot_latency
from benchmarks.latency_pages import chromium, script
from benchmarks.latency_parts import (
    PARTS,
    Press,
    Shown,
    add_up,
    agreement,
    answer,
    by_frame,
    evenness,
    likeness,
    moments,
    phases,
    presses,
    reached,
    sideways,
    split,
    spread,
    turn,
)
from benchmarks.visitors import served
from stream.mark import Mark, stamp
from stream.trace import FrameTimes

OFFSET = 500.0  # ms: the server's 1.0 s is the page's 500 ms
PRESS = Press("l", 1000.0, 7)
WAY = FrameTimes("a.1", 40, 10, 7, begun=1.61, denoise=0.05, decode=0.06, arrived=1.73, took=1.8, sent=1.804, rtp=9)
SHOWN = Shown(40, 10, 7, presented=1312.0, displayed=1328.0, received=1305.0, decoding=2.0, rtp=9, count=70)


def test_the_parts_of_a_press_are_what_happened_and_add_up_to_the_whole():
    parts = split(PRESS, 1.502, WAY, SHOWN, OFFSET)
    assert tuple(parts) == PARTS
    assert {name: round(ms, 3) for name, ms in parts.items()} == {
        "to_server": 2, "boundary": 108, "denoise": 50, "decode": 60, "hand_over": 10, "queue": 70, "encode": 4,
        "network": 1, "jitter_buffer": 5, "browser_decode": 2, "display": 16,
    }  # fmt: skip
    assert sum(parts.values()) == pytest.approx(SHOWN.displayed - PRESS.at)
    assert add_up([parts], [328.0]) == {"most_off_ms": 0, "negative_parts": {}}


def test_a_clock_that_is_off_shows_as_a_negative_part_and_a_part_that_is_missing_as_a_difference():
    off = split(PRESS, 1.502, WAY, SHOWN, OFFSET - 5)
    assert add_up([off], [328.0]) == {
        "most_off_ms": 0,
        "negative_parts": {"network": {"times": 1, "least_ms": -4}},
    }
    assert add_up([{**off, "queue": 0.0}], [328.0])["most_off_ms"] == 70


def test_what_the_engine_or_the_page_does_not_know_is_in_the_part_beside_it():
    parts = split(PRESS, 1.502, WAY._replace(decode=None), SHOWN._replace(received=None), OFFSET)
    assert (round(parts["decode"], 3), parts["hand_over"]) == (70, 0)
    assert (round(parts["network"], 3), parts["jitter_buffer"]) == (6, 0)
    assert sum(parts.values()) == pytest.approx(328)


def test_a_press_is_known_by_the_first_message_after_it_that_holds_its_key_alone():
    keys = [["l", 100.0], ["x", 150.0], ["j", 200.0]]
    sent = [
        ["keys", 1, "l", None, 100.4],
        ["shown", 1, "", 80.0, 180.0],
        ["keys", 2, "", None, 199.0],
        ["keys", 3, "j", None, 200.3],
        ["keys", 3, "j", None, 400.3],
    ]
    assert presses(keys, sent) == [Press("l", 100.0, 1), Press("j", 200.0, 3)]


def test_presses_come_at_every_part_of_a_chunk_as_often_and_in_no_order():
    found = moments(40, random.Random(1))
    assert [sorted(int(10 * moment) for moment in found[at : at + 10]) for at in range(0, 40, 10)] == [
        list(range(10))
    ] * 4
    assert found != sorted(found) and len(moments(7, random.Random(1))) == 7


def test_the_answer_is_the_first_frame_after_the_press_whose_mark_obeys_it_also_where_numbers_wrap():
    shown = [SHOWN._replace(sequence=sequence, displayed=900.0 + 62.5 * n) for n, sequence in enumerate((6, 6, 6))]
    assert answer(shown, PRESS) is None
    shown += [SHOWN._replace(sequence=None, displayed=1100.0), SHOWN._replace(sequence=9, displayed=1162.0)]
    assert answer(shown, PRESS) == 4
    assert answer([SHOWN._replace(displayed=999.0)], PRESS) is None
    assert reached(3, 2**16 - 2) and not reached(2**16 - 2, 3 + 2**16)


def test_the_way_of_a_frame_is_found_by_session_and_number_whatever_the_run():
    assert by_frame([WAY._replace(run="a.3", frame=2**20 + 4)]) == {("a", 4): WAY._replace(run="a.3", frame=2**20 + 4)}


def test_of_a_chunk_in_parts_the_last_one_says_how_long_all_of_it_was_denoised():
    first, other = WAY._replace(frame=39, denoise=None, decode=None), WAY._replace(chunk=11, frame=41, denoise=None)
    ways = by_frame([first, WAY, other])
    assert ways["a", 39] == first._replace(denoise=0.05) and ways["a", 41].denoise == 0.0


def world(places):
    """Bands (16, 80) of a scene at these places, in pixels to the right."""
    scene = np.random.default_rng(0).normal(size=(16, 400)).cumsum(1)
    return [scene[:, 150 - place : 230 - place] for place in places]


def test_the_picture_itself_tells_with_which_frame_it_turns():
    bands = world([0, 5, 10, 15, 10, 5, 0, -5])
    assert [sideways(one, other) for one, other in itertools.pairwise(bands)] == [5, 5, 5, -5, -5, -5, -5]
    assert turn(bands, 1, 6, direction=-1) == 4
    assert turn(bands, 5, 6, direction=1) is None
    assert turn(world([0, 5, 10, 9, 14]), 1, 4, direction=-1) is None, "one frame alone is no turn"


def test_a_picture_is_compared_with_the_one_that_was_sent_below_the_mark():
    sent = np.random.default_rng(0).integers(0, 250, (192, 320, 3), np.uint8)
    seen = (sent.astype(int) @ (1, 2, 1) >> 2).astype(np.uint8)
    seen[:16] = 0
    assert likeness(seen, sent.tobytes()) > 90
    assert likeness(seen + 5, sent.tobytes()) == pytest.approx(34.15, abs=0.01)


def test_frames_and_gaps_are_counted_over_all_the_time_and_freezes_as_webrtc_does():
    steady = np.arange(0, 1000, 62.5)
    shown = [SHOWN._replace(displayed=at, count=n) for n, at in enumerate([*steady, *(steady + 1300.0)])]
    found = evenness(shown, 16, 4.0)
    assert found["frames_a_second"] == 8.0 and found["gap_ms"]["p50"] == 62.5 and found["not_told"] == 0
    assert (found["freezes"], found["freeze_seconds"], found["longest_gap_ms"]) == (1, 0.36, 362.5)
    assert evenness(shown[:4] + shown[9:], 16, 4.0) == {**found, "not_told": 5}, "a busy page is no freeze"
    assert evenness([], 16, 4.0)["frames_a_second"] == 0.0


def test_spreads_and_phases_and_agreement_say_what_they_count():
    assert spread(range(101)) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "mean": 50.0} and spread([]) is None
    assert phases([10.01, 10.07, 10.2, 10.3, 9.0], [10.0, 10.25], 0.25) == [2, 1, 0, 1]
    assert agreement([0, 1, -2, None]) == {"presses": 4, "told": 3, "same_frame": 1, "within_a_frame": 2}


READ = """async (address) => {
  const image = new Image();
  image.src = address;
  await image.decode();
  return harness.read(image, image.width);
}"""


@pytest.mark.browser
async def test_the_pages_reader_reads_what_the_server_writes_and_nothing_where_nothing_is():
    chromium_path()
    async with chromium() as browser:
        page = await browser.new_page()
        await page.add_init_script(script())
        await page.goto("data:text/html,<video id=video></video>")
        for size in ((256, 256), (320, 192), (832, 480)):
            image = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
            assert await page.evaluate(READ, as_address(image)) is None
            stamp(image, Mark(1_000_000, 50_000, 40_000))
            assert await page.evaluate(READ, as_address(image)) == [1_000_000, 50_000, 40_000], size


def as_address(image):
    """The image as a data: URL."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture(scope="module")
def marked():
    """The address of a server of synthetic frames with marks, for one viewer at once."""
    chromium_path()
    with served(["benchmarks.synthetic", "--slots", "1", "--mark"]) as (address, _):
        yield address


def is_undisturbed(run):
    """Whether nothing else kept the machine so busy meanwhile that frames were late or lost."""
    checks = run["checks"]
    is_exact = checks["page_itself_off_ms"]["p99"] < 20 and checks["marks_unread"] == 0
    agrees = checks["picture_agrees"]
    return is_exact and agrees["within_a_frame"] == agrees["told"] >= 3 and run["pages"][0]["frames_a_second"] > 8


@pytest.mark.browser
@pytest.mark.slow
def test_a_short_run_measures_presses_whose_parts_add_up_and_counts_a_page_in_line_as_zero(
    marked, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(latency, "LINE_SECONDS", 0.5)

    def look():
        assert latency.main(f"--url {marked} --viewers 2 --presses 3 --opens 0 --prompts 1".split()) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    result = undisturbed(look, lambda result: is_undisturbed(result["viewers"]["2"]), tries=3)
    run = result["viewers"]["2"]
    assert is_undisturbed(run), run
    assert (run["presses"], run["unanswered"], len(run["ms"])) == (3, 0, 3)
    assert run["checks"]["most_off_ms"] < 0.1
    assert 0 < run["key_to_pixel_ms"]["p50"] < 2000 and (len(run["pages"]), run["not_live"]) == (1, 1)
    assert run["frames_a_second_of_all"] == pytest.approx(run["pages"][0]["frames_a_second"] / 2, abs=0.01)
    assert run["pages"][0]["way"] == "webrtc" and result["prompt"]["ms"]["p50"] > 0 and result["commit"]
    plot_latency.draw(result, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 10_000


@pytest.mark.browser
def test_a_run_through_a_bad_link_shows_its_delay(marked, capsys):
    line = f"--url {marked} --viewers 1 --presses 1 --netem delay=60,jitter=5,loss=1,rate=1500"

    def look():
        assert latency.main(line.split()) == 0
        [link] = json.loads(capsys.readouterr().out.splitlines()[-1])["links"]
        return link, link["viewers"]["1"]

    def network(run):
        return run["pages"][0]["way"] != "webrtc" or run["parts_ms"]["network"]["p50"] > 45

    def is_well(found):
        _, run = found
        has_seen = run["packets"]["passed"] > 50 and "psnr_db" in run["pages"][0]
        if not has_seen or run["unanswered"]:
            return False
        # A server that is held up after a frame has left takes its time of leaving for later than it was.
        return run["pages"][0]["psnr_db"]["p50"] > 15 and network(run)

    link, run = undisturbed(look, is_well)
    assert link["link"]["delay"] == 60 and run["packets"]["passed"] > 50
    assert run["parts_ms"]["to_server"]["p50"] > 50
    assert run["pages"][0]["psnr_db"]["p50"] > 15
    assert network(run), run["parts_ms"]
