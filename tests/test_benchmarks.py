"""The benchmarks run: a few steps of each, so that a change that breaks one is seen before its figures are needed."""

import json

import numpy as np
import pytest
from aiortc import rtcrtpreceiver

from benchmarks import keeping, load, machine, throughput


@pytest.mark.slow
def test_throughput_measures_one_and_two_sessions_of_the_tiny_world(capsys):
    assert throughput.main(["--chunks", "3", "--frames", "9"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ceilings"]["matrix_tflops"] > 0 and [run["live"] for run in result["runs"]] == [1, 2]
    for run in result["runs"]:
        assert run["seconds_a_chunk"] > 0 and run["share_of_ceilings"] > 0 and run["syncs_a_step"] == 0
    assert 0 < result["runs"][0]["first_frame_seconds"] < result["runs"][0]["clip_seconds"]


def test_closeness_is_none_of_a_clip_to_itself_and_grows_with_the_error():
    latents, frames = np.ones((2, 3), np.float32), np.full((4, 1, 1, 3), 100, np.uint8)
    clip = throughput.Clip(0.0, 0.0, latents, frames)
    assert throughput.closeness(clip, clip) == {
        "latent_error_first": 0, "latent_error": 0, "psnr_first": 88.1, "psnr": 88.1,
    }  # fmt: skip
    off = throughput.closeness(clip._replace(latents=1.1 * latents, frames=frames + 1), clip)
    assert off["latent_error"] == 0.1 and off["psnr"] == 48.1


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
    monkeypatch.setattr(load, "LINE", (5,))
    monkeypatch.setattr(rtcrtpreceiver, "decoder_worker", rtcrtpreceiver.decoder_worker)  # visitors put theirs there
    assert load.main(["--viewers", "1", "--spectators", "1", "--visits", "8", "--seconds", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["limits"]["viewers"] > 1 and result["viewers"][0]["least_fps"] > 10
    assert result["spectators"][0]["least_fps"] > 10
    assert result["line"][0]["line"] == 5 and result["visits"]["at_once"]["a_minute"] > 60
    assert set(result["held"]) == {"viewers", "spectators", "line", "visits_a_minute"}
