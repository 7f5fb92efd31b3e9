"""Runs into files: what is saved goes on where the last frame was, a script repeats a run, Ctrl-C leaves both files."""

import json
import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest
from test_sessions import SMALL, small_engine

from pipeline import generate as module
from pipeline.chunk import Session, SessionSpec
from pipeline.cues import Cue
from pipeline.generate import generate, walking_on
from stream.__main__ import _parser, _resumed, main

W, L = frozenset("w"), frozenset("l")
CUES = (Cue(0, W), Cue(20, None, "a desert"), Cue(30, L), Cue(41, frozenset(), "a shore"))


class Pictures(list):
    """Stands for the video file: what is written to it, before a codec."""

    def __call__(self, path, fps, height, width):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def write(self, frames):
        self.extend(frames)


@pytest.fixture
def video(monkeypatch) -> Pictures:
    pictures = Pictures()
    monkeypatch.setattr(module, "VideoFile", pictures)
    return pictures


def spec(**more) -> SessionSpec:
    return SessionSpec("generate", "a meadow", 3, **more)


def cues_from(first: int) -> tuple[Cue, ...]:
    return tuple(cue._replace(frame=cue.frame - first) for cue in CUES if cue.frame >= first)


@pytest.mark.parametrize("cut", [1, 5, 13, 27, 29])
def test_two_runs_show_what_one_shows_wherever_they_are_cut(video, tmp_path, cut):
    generate(small_engine(), spec(), 50, tmp_path / "a.mp4", cues=CUES)
    whole, saved = list(video), tmp_path / "a.session"
    video.clear()
    earlier = tuple(cue for cue in CUES if cue.frame < cut)
    generate(small_engine(), spec(), cut, tmp_path / "a.mp4", cues=earlier, save=saved)
    session = Session.load(saved)
    assert session.frame == cut == len(video)
    generate(small_engine(), session, 50 - cut, tmp_path / "a.mp4", cues=cues_from(cut))
    assert len(video) == 50 and all(map(np.array_equal, video, whole))


def test_a_cue_takes_effect_at_the_chunk_that_makes_its_frame(video, tmp_path):
    generate(small_engine(), spec(), 40, tmp_path / "a.mp4", cues=(Cue(0, W), Cue(14, L)), save=tmp_path / "s")
    assert [(event.chunk, event.keys) for event in Session.load(tmp_path / "s").events] == [(0, W), (2, L)]


def test_keys_of_a_resumed_run_follow_those_that_were_walked(video, tmp_path):
    generate(small_engine(), spec(script=(W,) * 20 + (L,) * 9), 29, tmp_path / "a.mp4")
    generate(small_engine(), spec(script=(W,) * 21), 21, tmp_path / "a.mp4", save=tmp_path / "s")
    session = Session.load(tmp_path / "s")
    generate(small_engine(), walking_on(session, SMALL, (L,) * 8), 8, tmp_path / "a.mp4")
    assert len(video) == 58 and np.array_equal(video[21 + 29], video[21])


def test_ctrl_c_lets_the_chunk_be_finished_and_leaves_two_whole_files(tmp_path):
    done = []

    def press(frames):
        done.append(frames)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    out, saved = tmp_path / "a.mp4", tmp_path / "a.session"
    before = signal.getsignal(signal.SIGINT)
    assert generate(small_engine(), spec(), 500, out, press, save=saved) == 13
    assert signal.getsignal(signal.SIGINT) is before
    with av.open(str(out)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 13
    assert (Session.load(saved).chunk, Session.load(saved).frame) == (2, 13)


def test_ctrl_c_within_a_chunk_waits_for_its_end(tmp_path, monkeypatch):
    engine = small_engine()
    step = engine.step

    def interrupted(names):
        os.kill(os.getpid(), signal.SIGINT)
        return step(names)

    monkeypatch.setattr(engine, "step", interrupted)
    assert generate(engine, spec(), 500, tmp_path / "a.mp4", save=tmp_path / "s") == 5
    assert Session.load(tmp_path / "s").chunk == 1


@pytest.fixture
def saved(tmp_path):
    empty = np.empty((0, 4, 2, 4, 6), np.float32)
    Session("lingbot-world-fast", SessionSpec("generate", "x", 1), 0, 0, (), empty, empty).save(tmp_path / "s")
    return tmp_path / "s"


def test_a_resumed_run_takes_the_sessions_preset(saved):
    options = _parser().parse_args(["generate", "--resume", str(saved), "-o", "a.mp4"])
    assert _resumed(options).chunk == 0 and options.preset == "lingbot-world-fast"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--seed", "3"], "--seed cannot be changed"),
        (["--preset", "lingbot-world-v2-14b"], "leave --preset out"),
        (["--save", "/nowhere/s"], "no folder /nowhere for the session file"),
        (["--resume", "/nowhere"], "there is no session file /nowhere"),
    ],
)
def test_what_a_resumed_run_cannot_have_is_said(saved, arguments, says, capsys):
    assert main(["generate", "--resume", str(saved), *arguments, "-o", "a.mp4"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_run_needs_a_prompt_once(tmp_path, capsys):
    script = tmp_path / "s.json"
    script.write_text(json.dumps([{"frame": 0, "prompt": "a desert", "keys": "w"}]))
    for arguments, says in (
        ([], "there is no prompt: give --prompt"),
        (["--prompt", "x", "--script", str(script)], "both name a prompt"),
        (["--script", str(script), "--keys", "w-3"], "exclude each other"),
        (["--script", "/nowhere"], "there is no script /nowhere"),
    ):
        assert main(["generate", *arguments, "-o", "a.mp4"]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "says"), [(Path.mkdir, "Is a directory"), (lambda out: out.symlink_to("/dev/full"), "No space")]
)
def test_a_file_that_the_disk_does_not_take_is_said_before_anything_is_made(tmp_path, spoil, says):
    engine, made = small_engine(), []
    spoil(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=rf"a\.mp4 cannot be written \({says}.*another name or more room"):
        generate(engine, spec(), 8, tmp_path / "a.mp4", made.append)
    assert not made and not list(engine._slots)
