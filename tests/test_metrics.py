"""stream/metrics.py: what is exported, what it counts, and that the dashboard shows just that."""

import asyncio
import json
import os
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Player, hear, say, serving, watch
from test_hub import Drawer, FakeWorker, Page, chunk, open_hub

from stream import protocol, worker
from stream.metrics import REFUSALS, Metrics, resident_bytes
from stream.pacer import Paced

DASHBOARD = Path(__file__).parent.parent / "docs" / "grafana.json"


@pytest.fixture
def hub(clock):
    return open_hub(FakeWorker(), clock, Drawer())


def samples(text):
    families = text_string_to_metric_families(text.decode() if isinstance(text, bytes) else text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def expressions(panels):
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_the_dashboard_names_no_metric_that_is_not_exported_and_shows_all_that_are():
    board = json.loads(DASHBOARD.read_text())
    text = " ".join(expressions(board["panels"]))
    shown = set(re.findall(r"chunkcast_\w+", text))
    metrics = Metrics()
    metrics.stage.labels("total").observe(1)
    metrics.memory.labels("server").set(1)
    families = list(text_string_to_metric_families(metrics.text().decode()))
    exported = {sample.name for family in families for sample in family.samples}
    assert shown <= exported, shown - exported
    names = {family.name for family in families if not family.name.endswith("_created")}
    assert {name for name in names if not any(each.startswith(name) for each in shown)} == set()
    asked = set(re.findall(r"chunkcast_\w+", json.dumps(board["templating"])))
    assert asked <= exported, asked - exported


def test_the_panels_of_the_dashboard_have_names_and_places_of_their_own():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) and all(panel["title"] for panel in panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        across, down = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in across for y in down}
        assert not cells & taken and across.stop <= 24, panel["title"]
        taken |= cells
        names = [target["refId"] for target in panel.get("targets", ())]
        assert len(names) == len(set(names)), panel["title"]


def test_a_refusal_has_one_of_the_known_reasons():
    metrics = Metrics()
    assert all(samples(metrics.text())["chunkcast_refusals_total", reason] == 0 for reason in REFUSALS)
    with pytest.raises(AssertionError, match="no such refusal"):
        metrics.refuse("whatever a client says")


def test_memory_is_that_of_the_process_and_none_where_there_is_none():
    assert 10**7 < resident_bytes(os.getpid()) < 10**11
    assert resident_bytes(None) == resident_bytes(2**22 + 1) == 0


def test_the_time_from_a_control_to_the_frame_that_obeys_it_is_counted_once_for_each(hub, clock):
    page = Page(hub)
    for seq in (1, 1, 2):
        page.says(protocol.Keys(seq=seq, held=("w",)))
        clock.advance(0.1)
    page.says(protocol.Shown(seq=1, ms=5))
    hub.sent(page.viewer, Paced(None, 0, 0, 2, page.run), 0)
    page.says(protocol.Keys(seq=2, held=("w",)))
    clock.advance(9)
    hub.sent(page.viewer, Paced(None, 1, 0, 2, page.run), 0)
    counted = samples(hub.metrics.text())
    assert counted["chunkcast_control_to_send_seconds_count",] == 2
    assert counted["chunkcast_control_to_send_seconds_sum",] == pytest.approx(0.3 + 0.1)
    assert counted["chunkcast_control_to_screen_seconds_count",] == 1


def test_frames_and_both_moves_of_a_clock_are_counted(hub, clock):
    page = Page(hub)
    hub.happen(chunk(page.run))
    page.viewer.pacer.pop()
    clock.advance(1)
    page.viewer.pacer.pop()
    clock.advance(1)
    hub.tick()
    counted = samples(hub.metrics.text())
    assert counted["chunkcast_frames_made_total",] == 4 and counted["chunkcast_clock_moves_total",] == 1
    assert counted["chunkcast_chunks_late_total",] == 0


def test_a_death_and_a_restart_of_the_engine_are_counted(hub):
    world = hub.world
    assert samples(hub.metrics.text())["chunkcast_engine_restarts_total",] == 0
    hub.happen(worker.Died("it fell", True))
    hub.happen(worker.Ready(world, 1, 1))
    counted = samples(hub.metrics.text())
    assert counted["chunkcast_engine_deaths_total",] == counted["chunkcast_engine_restarts_total",] == 1


async def test_a_served_picture_is_in_the_metrics_and_so_is_who_was_refused():
    player = Player()
    async with serving() as client, client.page() as page:
        await watch(client, player, (await hear(page, "welcome"))["token"])
        await say(page, type="keys", seq=1, held=["w"])
        await hear(page, "applied")
        await client.post("/whep", "no offer")
        await hear(page, "stats")
        names = ("frames_sent_total", "encoded_bytes_total", "bitrate_target", "control_to_send_seconds_count")
        async with asyncio.timeout(10):  # some are counted now and then
            counted = samples((await client.http.get("/metrics")).text)
            while lacks := [name for name in names if not counted[f"chunkcast_{name}",] > 0]:
                print("nothing counted of", *lacks)
                await asyncio.sleep(0.1)
                counted = samples((await client.http.get("/metrics")).text)
        assert counted["chunkcast_pictures",] == 1 and counted["chunkcast_refusals_total", "request"] == 1
        assert counted["chunkcast_resident_bytes", "engine"] > 10**7 < counted["chunkcast_resident_bytes", "server"]
        assert counted["chunkcast_chunk_seconds_count", "total"] > 0
    await player.connection.close()
