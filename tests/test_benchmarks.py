"""The benchmarks run: a few steps of each, so that a change that breaks one is seen before its figures are needed."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from aiortc import rtcrtpreceiver
from undisturbed import undisturbed

from benchmarks import (
    attention,
    context_pass,
    growth,
    keeping,
    key_to_frame,
    lead,
    load,
    machine,
    plot_growth,
    soak,
    start,
    throughput,
    train_step,
    vae,
)
from benchmarks.visitors import engine_of
from kernels.conv import Plane, Tile
from pipeline.presets import find_preset


def result_of(main, arguments, capsys):
    """The JSON line of a benchmark that went well."""
    assert main(arguments.split()) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_throughput_measures_one_and_two_sessions_of_the_tiny_world(capsys):
    result = undisturbed(
        lambda: result_of(throughput.main, "--chunks 3 --frames 9", capsys),
        lambda result: all(run["pass"]["share_of_floor"] < 1.2 for run in result["runs"]),
    )
    assert result["ceilings"]["matrix_tflops"] > 0 and [run["live"] for run in result["runs"]] == [1, 2]
    for run in result["runs"]:
        assert run["seconds_a_chunk"] > 0 and run["share_of_ceilings"] > 0 and run["syncs_a_step"] == 0
        assert run["pass"]["rows"] == 2 and 0 < run["pass"]["share_of_floor"] < 1.2
    assert 0 < result["runs"][0]["first_frame_seconds"] < result["runs"][0]["clip_seconds"]


def test_closeness_is_none_of_a_clip_to_itself_and_grows_with_the_error():
    latents, frames = np.ones((2, 3), np.float32), np.full((4, 1, 1, 3), 100, np.uint8)
    clip = throughput.Clip(0.0, 0.0, 0.0, latents, frames)
    assert throughput.closeness(clip, clip) == {
        "latent_error_first": 0, "latent_error": 0, "psnr_first": 88.1, "psnr": 88.1,
    }  # fmt: skip
    off = throughput.closeness(clip._replace(latents=1.1 * latents, frames=frames + 1), clip)
    assert off["latent_error"] == 0.1 and off["psnr"] == 48.1


def test_a_way_is_read_from_words_and_says_what_is_not_as_it_comes():
    way = throughput.Way.parse("precision=fp8 schedule=turns vae=rows overlap=no eager=yes")
    assert way == throughput.Way("fp8", True, "turns", "rows", "no", "auto", "exact", False)
    assert str(way) == "fp8 eager, turns, vae rows, overlap no" and str(throughput.Way()) == "bf16, auto"
    assert str(throughput.Way.parse("context=reuse graphs=yes")) == "bf16, auto, context reuse, graphs"
    with pytest.raises(ValueError, match="no speed in a way; there are precision, eager"):
        throughput.Way.parse("speed=high")


def test_what_cannot_run_here_is_a_row_of_the_table_and_the_others_are_measured(capsys):
    ways = ["--way", "schedule=turns vae=bf16", "--way", "schedule=turns"]
    assert throughput.main(["--slots", "1", "--chunks", "2", "--frames", "5", *ways]) == 0
    failed, run = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert "always exact" in failed["failed"] and run["seconds_a_chunk"] > 0


def test_growth_measures_each_point_beside_its_floor(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "LIVE", (1,))
    arguments = ["--chunks", "1", "--lines", "live"]

    def look():
        assert growth.main(arguments) == 0
        *_, line, last = capsys.readouterr().out.splitlines()
        return line, json.loads(last)

    def below_it(found) -> bool:
        return all(0 < point["floor_seconds"] < point["seconds_a_chunk"] for point in found[1]["points"])

    line, result = undisturbed(look, below_it)
    assert [point["at"] for point in result["points"]] == ["1 in turns"] and below_it((line, result))
    assert line.endswith("1.00 times (1.00)")
    plot_growth.draw(result, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_growth_looks_at_windows_viewers_and_sizes_that_a_preset_can_have():
    found = list(growth.points(find_preset("lingbot-world-v2-1.3b"), ["window", "live", "size"]))
    assert [point.preset.window for point in found if point.line == "window"] == [18, 36, 72]
    assert [point.at for point in found if point.line == "size"] == ["416x240", "832x480", "1248x720"]
    assert [(point.live, point.schedule) for point in found if point.line == "live"] == [
        (1, "turns"), (2, "turns"), (3, "turns"), (2, "batch"), (3, "batch"),
    ]  # fmt: skip


def test_a_step_of_the_training_is_timed_and_its_operators_are_named(capsys):
    assert train_step.main(["--size", "small", "--kinds", "alone", "--repeats", "1"]) == 0
    step = json.loads(capsys.readouterr().out.splitlines()[-1])["steps"]["alone"]
    assert step["ms"] > 0 and any("mm" in name for name in step["kernels"])


def test_attention_is_measured_by_length_up_to_the_window(capsys):
    assert attention.main(["--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["keys"] for row in result["rows"]] == [60 * chunks for chunks in (1, 2, 4, 8)] + [4]
    assert all(row["taken"] == "sdpa" and row["backends"]["sdpa"]["tflops"] > 0 for row in result["rows"])


def test_the_context_pass_benchmark_finds_a_first_chunk_alike_and_later_ones_near(capsys, monkeypatch):
    monkeypatch.setattr(context_pass, "PROMPTS", context_pass.PROMPTS[:1])
    assert context_pass.main(["--chunks", "3"]) == 0
    first, second, third = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert first["latent_error"] == 0 < second["latent_error"] < 0.5 and third["chunks"] == [3, 3]
    assert first["from_renderer_reuse"] == first["from_renderer_exact"]


def test_start_counts_from_the_process_to_ready(capsys):
    assert start.main(["--starts", "1", "--slots", "1", "--device", "cpu"]) == 0
    (one,) = json.loads(capsys.readouterr().out.splitlines()[-1])["starts"]
    assert 0 < one["imported_seconds"] < one["loaded_seconds"] < one["ready_seconds"] and one["copy_seconds"] > 0


def test_a_result_names_its_commit_and_machine():
    facts = machine.facts()
    assert facts["cores"] >= 1 and facts["torch"] and facts["cpu"] and facts["commit"]


def test_keeping_measures_what_a_resume_needs_and_the_whole_history(capsys):
    assert keeping.main(["--chunks", "9"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["needed"]["chunks"] < result["all"]["chunks"] == 9
    assert all(cost["bytes"] > 0 and cost["resume_ms"] > 0 for cost in (result["needed"], result["all"]))


def test_load_counts_viewers_those_who_watch_the_line_and_visits(capsys, monkeypatch):
    monkeypatch.setattr(load, "KEPT_SECONDS", 0.1)
    monkeypatch.setattr(load, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(load, "VISITS_A_MINUTE", 6000)
    monkeypatch.setattr(load, "LINE", (5,))
    monkeypatch.setattr(rtcrtpreceiver, "decoder_worker", rtcrtpreceiver.decoder_worker)  # visitors put theirs there

    def slowest(result):
        return min(result["viewers"][0]["least_fps"], result["spectators"][0]["least_fps"])

    result = undisturbed(
        lambda: result_of(load.main, "--viewers 1 --spectators 1 --visits 8 --seconds 1", capsys),
        lambda result: slowest(result) > 10 and result["visits"]["at_once"]["a_minute"] > 60,
    )
    assert result["limits"]["viewers"] > 1 and slowest(result) > 10
    assert result["line"][0]["line"] == 5 and result["visits"]["at_once"]["a_minute"] > 60
    assert set(result["held"]) == {"viewers", "spectators", "line", "visits_a_minute"}


def test_a_soak_is_looked_at_by_two_through_the_death_of_an_engine(capsys):
    minutes = iter(("0.1", "0.3", "0.6"))  # an engine may take a while to start on a busy machine

    def look():
        soak.main(["--synthetic", "--minutes", next(minutes)])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    def is_well(result):
        has_recovered = result["recovery_s"] and result["verdict"]["recovery within 8 s"]
        return has_recovered and min(result["frames"].values()) > 30 and result["keys"] > 5

    result = undisturbed(look, is_well, tries=3)
    assert min(result["frames"].values()) > 30 and result["keys"] > 5
    assert 0 < result["recovery_s"] < 8 and result["verdict"]["recovery within 8 s"]
    assert result["faults_in_log"] == [] and result["connections_broken"] == []


def record(gaps=(), mb=(100.0,) * 8, files=(20,) * 8, killed=None):
    shown = soak.Shown("stays", gaps=list(gaps))
    made = soak.Record(0.0, {"stays": shown}, killed=killed, ended=60.0)
    pairs = enumerate(zip(mb, files, strict=False))
    made.samples["server"] = [{"at": float(n), "pid": 1, "mb": m, "files": f, "threads": 5} for n, (m, f) in pairs]
    return made


def broken(made, log=""):
    return [goal for goal, met in soak.summary(made, log)["verdict"].items() if not met]


def test_the_verdict_of_a_soak_names_what_was_not_met():
    assert broken(record()) == []
    assert broken(record([(20.0, 0.9), (33.2, 3.0)], killed=30.0)) == []
    assert broken(record([(20.0, 1.1)])) == ["no freeze over 1 s but for the kill"]
    assert broken(record([(39.2, 9.0)], killed=30.0)) == ["recovery within 8 s"]
    assert broken(record(killed=30.0)) == ["recovery within 8 s"]
    assert broken(record(mb=range(100, 140, 5))) == ["memory flat"]
    assert broken(record(files=range(20, 36, 2))) == ["files flat"]
    assert broken(record(), "WARNING x: a\nERROR y: b") == ["no errors in the log"]


def test_an_engine_s_memory_is_told_once_its_histories_are_full():
    filling = [100.0 + 5 * min(n, 20) for n in range(40)]
    assert soak.summary(record(mb=filling, files=(20,) * 40), "")["verdict"]["memory flat"] is False
    made = record()
    made.samples["engine"] = [
        {"at": 5.0 * n, "pid": 2, "mb": mb, "files": 9, "threads": 5} for n, mb in enumerate(filling)
    ]
    made.full_after = 70.0
    assert broken(made) == []
    made.full_after = 500.0
    found = soak.summary(made, "")
    assert found["verdict"]["memory flat"] is None and found["held"]["engine"] == [{"minutes": 3.25}]
    made.samples["server"][-1]["mb"] = 300.0
    assert soak.summary(made, "")["verdict"]["memory flat"] is False


def test_the_lead_is_measured_from_the_key_to_the_frame(capsys, monkeypatch):
    monkeypatch.setattr(lead, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(rtcrtpreceiver, "decoder_worker", rtcrtpreceiver.decoder_worker)  # visitors put theirs there
    (run,) = undisturbed(
        lambda: result_of(lead.main, "--synthetic --leads 5 --viewers 1 --seconds 2", capsys)["runs"],
        # A few keys may all have come just before a chunk is begun, and so are answered at once.
        lambda runs: runs[0]["presses"] and 20 < runs[0]["p50_ms"] < 1000 and runs[0]["least_fps"] > 10,
    )
    assert run["presses"] >= 1 and 20 < run["p50_ms"] < 1000 and run["least_fps"] > 10


def test_evenness_counts_a_picture_that_stands():
    found = lead.evenness([[0.0, 1 / 16, 2 / 16, 0.625]], 60.0)
    assert found["stood_a_minute"] == 1 and found["stood_seconds_a_minute"] == 0.438 and found["longest_gap_ms"] == 500


@pytest.fixture
def stage():
    """A warm engine of synthetic frames, to be looked at."""
    made = key_to_frame.Stage("benchmarks.synthetic:build", {"slots": 2}, 0.02)
    try:
        made.start()
        yield made
    finally:
        made.worker.stop()


def test_a_key_is_answered_after_half_a_chunk_and_its_making(monkeypatch, stage):
    monkeypatch.setattr(key_to_frame, "SETTLE_CHUNKS", 3)
    found = undisturbed(
        lambda: stage.look(2, 2.0, None),
        lambda found: found["presses"] >= 8 and found["least_fps"] > 14 and 60 < found["ready_ms"]["p50"] < 300,
    )
    assert found["presses"] >= 8 and found["least_fps"] > 14
    assert 60 < found["ready_ms"]["p50"] < 300 and found["ready_ms"]["p50"] < found["shown_ms"]["p50"] + 1


def test_the_engine_is_found_beside_a_child_that_has_just_ended():
    ended, living = subprocess.Popen("true"), subprocess.Popen(["sleep", "60"])
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it stays a child until somebody asks how it ended
        assert engine_of(os.getpid()) not in (ended.pid, os.getpid())
    finally:
        living.kill()
        ended.wait(), living.wait()


@pytest.mark.parametrize("tile", [Tile(16, 32), Tile(16, 16)])
def test_a_row_convolutions_rate_comes_with_its_error_against_an_ordinary_convolution(tile):
    torch.manual_seed(0)
    said = vae._row_rate(Plane(5, 7), torch.randn(32, 32, 3, 3, 3) / 30, tile)
    rate, error = said.rstrip(")").split(" (error ")
    assert float(rate) >= 0 and 0 < float(error) < 0.01
