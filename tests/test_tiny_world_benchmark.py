"""The tiny world's benchmark: its measures are right where the answer is known, and the whole table runs."""

import contextlib
import io
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import (
    machine,
    plot_tiny_world,
    tiny_gallery,
    tiny_long,
    tiny_pictures,
    tiny_probes,
    tiny_returns,
    tiny_rows,
    tiny_sessions,
    tiny_walks,
    tiny_world,
)
from benchmarks import tiny_measures as measures
from benchmarks.tiny_probes import PoseProbe, ProbePlan, Probes, SceneProbe
from benchmarks.tiny_rows import Bench
from benchmarks.tiny_truth import Truth, motion, moved
from benchmarks.tiny_walks import PRESET, Record, poses
from pipeline.engine import Engine
from pipeline.load import load_parts
from pipeline.tiny import scene

COARSENESS = 8
PLAN = ProbePlan(pairs=4, steps=1, batch=2)


class CoarseTruth(Truth):
    """The renderer's pictures with an eighth of the rays along each axis."""

    def _draw(self, poses, scenes, size, phases):
        self.oversample = 1
        pictures = super()._draw(poses, scenes, tuple(side // COARSENESS for side in size), phases)
        return pictures.repeat_interleave(COARSENESS, 2).repeat_interleave(COARSENESS, 3)


@pytest.fixture
def stop():
    with tiny_walks.Stop() as stop:
        yield stop


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Probes that have learnt nothing."""
    torch.manual_seed(0)
    probes = Probes(PoseProbe().eval(), SceneProbe().eval(), torch.device("cpu"), {})
    return Bench(probes, CoarseTruth("cpu"))


def sessions(count: int = 40) -> list[tiny_walks.Walk]:
    return tiny_sessions.plan_sessions(count, seconds=10)


def motions(walk: tiny_walks.Walk) -> torch.Tensor:
    stands = poses(walk)[1:]
    return motion(stands[:-1], stands[1:])


def test_a_perfect_probe_finds_the_renderers_own_frames_obedient():
    flags = []
    for walk in sessions():
        seen = motions(walk)
        flags.append(measures.obedience(seen, seen, seen, torch.ones(len(seen), dtype=torch.bool)))
    found = measures.pooled(flags)
    for name in ("turn", "walk"):
        assert found[name]["keys"] > 50
        assert found[name] == {"obeyed": 1.0, "right": 1.0, "near": 1.0, "keys": found[name]["keys"]}


def test_what_a_probe_sees_is_what_is_held():
    for walk in sessions(5):
        seen = measures.directions(motions(walk))
        for keys, (ahead, aside, turn, _) in zip(walk.keys[1:], seen.tolist(), strict=True):
            assert ahead == ("w" in keys) - ("s" in keys) and aside == ("d" in keys) - ("a" in keys)
            assert turn == ("l" in keys) - ("j" in keys)


def test_a_model_that_turns_the_wrong_way_or_half_as_far_is_found_out():
    true = torch.zeros(6, 4)
    true[2:, 2] = 1.0
    every = torch.ones(6, dtype=torch.bool)

    def turn(seen):
        return measures.pooled([measures.obedience(true, seen, true, every)])["turn"]

    late = true.clone()
    late[2] = 0
    assert turn(-true)["obeyed"] == turn(-true)["right"] == 0
    assert turn(late)["obeyed"] == 1 and turn(late)["right"] == 0.75
    late[3] = 0
    assert turn(late)["obeyed"] == 0
    assert turn(0.5 * true)["right"] == 1 and turn(0.5 * true)["near"] == 0


def test_motion_and_moved_are_each_others_inverse():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    steps = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(motion(before, moved(before, steps)), steps)


@pytest.mark.parametrize("chunks", [47, 100, 240])
def test_a_path_of_any_keys_closes(chunks):
    for seed in range(10):
        path = tiny_walks.closed_path(np.random.default_rng(seed), chunks)
        assert len(path) == 4 * chunks
        pose = tiny_walks.camera.Pose(3.0, 4.0, 1.0, 0.05)
        farthest = 0.0
        for keys in path:
            pose = tiny_walks.camera.step(pose, keys, tiny_walks.PITCH_LIMIT)
            farthest = max(farthest, abs(pose.x - 3) + abs(pose.z - 4))
        assert abs(pose.x - 3) < 1e-9 and abs(pose.z - 4) < 1e-9 and pose.pitch == 0.05
        assert abs(np.sin((pose.yaw - 1.0) / 2)) < 1e-9
        if chunks == 240:
            assert farthest > 1


def test_a_return_is_noted_at_the_very_same_pose():
    for walk in tiny_returns.plan_returns(4, 14):
        stands = poses(walk)
        noted = sorted(walk.full)
        gap = stands[noted[1] + 1] - stands[noted[0] + 1]
        assert gap[:2].abs().max() < 1e-9 and gap[3] == 0 and gap[2].div(2).sin().abs() < 1e-9


def test_the_frechet_distance_of_a_set_from_itself_is_none_and_a_shift_is_its_square():
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert measures.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert measures.frechet_distance(features, features + 2) == pytest.approx(32, rel=1e-5)
    assert measures.frechet_distance(features, 3 * features) == pytest.approx(
        4 * float(torch.cov(features.T).trace() + features.mean(0).square().sum()), rel=1e-5
    )


def test_picture_measures_know_the_same_picture_a_grey_one_and_a_soft_one():
    picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    soft = torch.nn.functional.avg_pool2d(picture, 3, 1, 1)
    assert measures.psnr(picture, picture).item() == 99 and measures.ssim(picture, picture).item() == pytest.approx(1)
    assert measures.psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.1)).item() == pytest.approx(20, abs=1e-3)
    assert measures.ssim(picture, soft).item() < 0.9
    assert measures.sharpness(soft) < 0.3 * measures.sharpness(picture)
    colours = measures.histogram(picture)
    assert measures.histogram_distance(colours, colours) == 0
    assert measures.histogram_distance(colours, measures.histogram(torch.zeros(1, 3, 8, 8))) > 0.9


def test_prompts_are_drawn_over_all_places_hours_and_weathers_in_many_words():
    walks = sessions(200)
    scenes = {walk.scenes[0] for walk in walks} | {walk.scenes[max(walk.scenes)] for walk in walks}
    for attribute, count in ((0, 8), (2, 4), (3, 5)):
        assert {s[attribute] for s in scenes} == set(range(count))
    assert len({walk.spec.prompt for walk in walks}) > 150


def test_a_changing_prompt_names_what_changes_and_nothing_else():
    said = 0
    for walk in sessions(60):
        (at, prompt), (before, after) = *walk.prompts.items(), (walk.scenes[0], walk.scenes[max(walk.scenes)])
        assert before != after and at in walk.scenes
        merged = scene.understand(prompt, before).scene
        said += merged == after
    assert said >= 57  # a chance meeting of two words may be a phrase of its own


def test_a_session_with_a_frozen_picture_is_found_out(bench):
    (walk,) = tiny_long.plan_long(1, 80)
    drawn = bench.truth.small(poses(walk)[1:], tiny_rows.scenes_of(walk, range(20)))
    moving = Record(walk, chunks=20, small=dict(enumerate(drawn)))
    moving.changes = list(measures.as_floats(drawn).diff(dim=0).abs().mean((1, 2, 3)))
    frozen = Record(walk, chunks=20, small=dict(enumerate(drawn)), changes=[torch.tensor(0.0)] * 19)
    assert tiny_long._edges([moving], bench)["frozen"] == 0
    assert tiny_long._edges([frozen], bench)["frozen"] == 1


def test_the_renderers_own_pictures_are_faithful_and_stay_well(bench):
    (walk,) = tiny_long.plan_long(1, 80)
    record = Record(walk, chunks=20)
    chunks = sorted(walk.full)
    full = bench.truth.full(poses(walk)[1:][chunks], tiny_rows.scenes_of(walk, chunks))
    record.full = dict(zip(chunks, full, strict=True))
    series = tiny_long._series([record], bench, 20)
    assert series["psnr_median"] == [99.0] * 20 and series["sharpness_ratio"] == [1.0] * 20
    assert series["colour_distance"] == [0.0] * 4 and len(series["colour_frame"]) == 4


def test_photos_are_pictures_that_the_engine_takes():
    for walk in tiny_pictures.plan_photos(3):
        assert tiny_pictures._read(walk.spec.image).shape == (1, 3, PRESET.height, PRESET.width)


def test_the_correlation_of_a_moved_map_is_highest_where_it_moved_to():
    one = torch.nn.functional.normalize(torch.randn(2, 8, 24, 40, generator=torch.Generator().manual_seed(0)), dim=1)
    down, right = 3, -7
    alike = tiny_probes.correlation(one, one.roll((down, right), (2, 3)))
    best = alike[:, :, 6:18, 12:28].argmax(1)
    rows, columns = tiny_probes.REACH
    assert (best == (down + rows) * (2 * columns + 1) + right + columns).all()
    assert alike[:, :, 6:18, 12:28].amax().item() == pytest.approx(1)


def test_probes_learn_their_own_pictures():
    torch.manual_seed(0)
    truth = CoarseTruth("cpu")
    pairs = tiny_probes.draw_pairs(truth, 6, 0)
    losses = []
    for steps in (1, 16):
        probe = tiny_probes._train("pose", PoseProbe(), tiny_probes._pose_loss, pairs, ProbePlan(steps=steps))
        pictures = torch.cat((pairs.before, pairs.after), dim=1).float() / 255
        losses.append(float((probe.train()(pictures) - pairs.motion).abs().mean()))
    assert losses[1] < 0.8 * losses[0]


def test_probes_are_kept_until_the_renderer_changes(tmp_path, monkeypatch):
    truth = CoarseTruth("cpu")
    made = tiny_probes.find_probes(tmp_path, truth, PLAN)
    monkeypatch.setattr(tiny_probes, "train_probes", lambda truth, plan: pytest.fail("they were kept"))
    kept = tiny_probes.find_probes(tmp_path, truth, PLAN)
    picture = torch.randint(0, 256, (1, 3, 96, 160), dtype=torch.uint8)
    assert torch.equal(kept.motion(picture, picture), made.motion(picture, picture)) and kept.held_out == made.held_out
    monkeypatch.setattr(tiny_probes, "fingerprint", lambda: "another renderer")
    with pytest.raises(pytest.fail.Exception):
        tiny_probes.find_probes(tmp_path, truth, PLAN)


def test_a_run_that_is_stopped_keeps_what_it_has(stop, bench):
    engine = Engine(PRESET, load_parts(PRESET, "random", torch.device("cpu")), slots=1, schedule="turns")
    walks = tiny_long.plan_long(2, 400)
    step = engine.step
    count = iter(range(100))

    def stopped(*arguments):
        stop.asked = next(count) == 2
        return step(*arguments)

    engine.step = stopped
    records = tiny_walks.run(engine, "test", walks, stop)
    assert [record.chunks for record in records] == [3] and len(records[0].changes) == 2
    assert not list(engine._slots)


def test_a_run_that_is_stopped_before_its_judges_have_learnt_says_so(tmp_path, monkeypatch, capsys):
    def interrupted(truth, plan):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_world, "draw_quickly", lambda device: None)
    monkeypatch.setattr(tiny_probes, "train_probes", interrupted)
    assert tiny_world.main(["--device", "cpu", "--probes", str(tmp_path)]) == 130
    assert "nothing to keep" in capsys.readouterr().out


def test_drawing_that_takes_long_tells_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.tiny_truth.REPORT_SECONDS", -1)
    CoarseTruth("cpu").small(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int64))
    assert "of 2 pictures" in capsys.readouterr().out


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> dict:
    """The result of a run that is as small as can be."""
    folder = tmp_path_factory.mktemp("probes")
    printed = io.StringIO()
    few = (
        "--sessions 1 --seconds 5 --long-seeds 2 --long-frames 32 --returns 1 --away 12 --images 1 --photos 1 --clips 1"
    )
    probes = ["--probes", str(folder), "--probe-pairs", "4", "--probe-steps", "1"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(tiny_world, "Truth", CoarseTruth)
        patch.setattr(tiny_world, "draw_quickly", lambda device: None)  # compiling takes longer than all of this
        patch.setattr(tiny_returns, "LEAD_IN", 2)
        assert tiny_world.main(["--device", "cpu", "--live", "live-cpu", "--clips", "1", *few.split(), *probes]) == 0
    return json.loads(printed.getvalue().splitlines()[-1])


def test_the_gallery_shows_every_place_twice_and_the_animation_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_gallery, "CHUNKS", 1)
    monkeypatch.setattr(tiny_gallery, "TOUR_CHUNKS", 1)
    engine = Engine(PRESET, load_parts(PRESET, None, torch.device("cpu")), slots=1, schedule="turns")
    sheet = tiny_gallery.grid(engine, CoarseTruth("cpu"), tries=1)
    assert sheet.size == (4 * PRESET.width, 4 * (PRESET.height + tiny_gallery.LABEL))
    frames = tiny_gallery.tour(engine, 0)
    assert len(frames) == 4 * len(tiny_gallery.TOUR)
    assert tiny_gallery.animate(frames, tmp_path / "walk.webp") < tiny_gallery.LARGEST_ANIMATION
    with Image.open(tmp_path / "walk.webp") as image:
        assert image.n_frames == len(frames)
    monkeypatch.setattr(tiny_gallery, "run", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit, match="130"):
        tiny_gallery.grid(engine, CoarseTruth("cpu"), tries=1)


@pytest.mark.slow
def test_the_whole_table_is_measured(table):
    assert table["commit"] and table["stopped"] is False and 0 <= table["probes"]["turn"] <= 1
    rows = table["rows"]
    assert set(rows) == {
        "weights", "two_cores", "picture_quality", "obeys", "follows", "faithful", "remembers", "first_picture",
        "first_photo", "stays_well",
    }  # fmt: skip
    assert rows["weights"]["mb"] <= 32 and rows["remembers"]["pose_error"] < 1e-9
    assert rows["faithful"]["psnr"]["median"] > 10 and rows["picture_quality"]["vae_psnr"]["mean"] > 15
    assert len(rows["stays_well"]["series"]["frame"]) == 8 and rows["first_photo"]["ended"] == []
    assert set(rows["follows"]["change"]["model"]) == {"place", "thing", "hour", "weather"}


def test_rows_measured_elsewhere_are_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setitem(tiny_world.PARTS, "quality", lambda *_: {"picture_quality": {"clips": 1}})
    machine.keep({"rows": {"stays_well": {"seeds": 20}, "picture_quality": {"clips": 64}}}, "long")
    options = tiny_world._parser().parse_args(["--rows", "quality", "--beside", "long"])
    rows = tiny_world.measure(options, None, None, SimpleNamespace(asked=False))
    assert rows["stays_well"]["seeds"] == 20 and rows["picture_quality"]["clips"] == 1


@pytest.mark.slow
def test_a_result_alone_makes_the_plot(table, tmp_path):
    plot_tiny_world.draw(table, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
