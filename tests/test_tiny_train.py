import json
import math
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.presets import find_preset
from pipeline.tiny import train_jointly, train_vae
from pipeline.tiny.load import FILES, load_tiny, make_tiny, take_over
from pipeline.tiny.muon import orthogonal
from pipeline.tiny.plan import PLANS
from pipeline.tiny.train import MINUTES, main, to_be_judged
from pipeline.tiny.train_transformer import Objective, _steady
from pipeline.tiny.train_vae import picture_loss
from pipeline.tiny.trainee import Progress, Stop, Trainee, update_together
from pipeline.tiny.vae import CRISP_LAYERS
from pipeline.transformer import Transformer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple:
    """The folder of a few seconds' training on the CPU, and what was printed."""
    folder = tmp_path_factory.mktemp("run")
    assert main(arguments(folder, "0.01")) == 0
    return folder, json.loads((folder / "result.json").read_text())


def arguments(folder, minutes: str) -> list[str]:
    lengths = [word for flag in MINUTES.values() for word in (flag, minutes)]
    return ["--out", str(folder), "--size", "small", "--device", "cpu", *lengths]


def test_a_short_run_makes_weights_that_load_and_run(run):
    folder, _ = run
    world = load_tiny("cpu", folder / "weights")
    rows = world.text.encode("a desert at night").rows
    assert len(world.transformer.embed_text(rows[None])) == world.transformer.config.layers
    assert world.vae.decoder().decode(torch.zeros(32, 1, 12, 20)).shape == (3, 4, 192, 320)


def test_weights_of_before_there_were_layers_at_full_resolution_load_and_are_begun_with(run, tmp_path):
    folder, _ = run
    shutil.copytree(folder / "weights", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / FILES[1])
    later = sorted(name for name in tensors if name.startswith("decode_latent.crisp"))
    save_file({name: value for name, value in tensors.items() if name not in later}, tmp_path / FILES[1])
    latent, before = torch.randn(32, 1, 12, 20), load_tiny("cpu", tmp_path).vae
    assert before.decode_latent.crisp is None and len(later) == 2 * CRISP_LAYERS
    world = make_tiny()
    assert sorted(take_over(world, tmp_path)) == later
    torch.testing.assert_close(world.vae.decoder().decode(latent), before.decoder().decode(latent))


SHARES = (train_vae.EDGE_SHARE, train_jointly.EDGE_SHARE)


def test_an_edge_whose_place_is_in_doubt_is_better_drawn_hard_than_as_a_slope():
    def cost(pixels: float, share: float) -> float:
        return float(sum(picture_loss(edge(162, pixels), edge(at, 1), share) for at in (161, 163)))

    assert all(cost(1, share) < 0.8 * cost(4, share) for share in SHARES)
    assert cost(4, 0.0) == pytest.approx(cost(1, 0.0)), "which is why the rest of the loss does not do"


def test_stripes_do_not_pass_for_an_edge_of_the_same_energy():
    def energy(pictures: torch.Tensor) -> float:
        return float(pictures[0, 0, 0, 0, 0].diff().square().sum())

    hard, slope = edge(162, 1), edge(162, 8)
    stripes = 0.077 * (-1.0) ** torch.arange(320) * ((torch.arange(320) - 162).abs() <= 8)
    assert energy(slope + stripes) == pytest.approx(energy(hard), rel=0.15) and energy(slope) < 0.3 * energy(hard)
    for share in SHARES:
        assert picture_loss(slope + stripes, hard, share) > 1.1 * picture_loss(slope, hard, share)


def edge(at: float, pixels: float) -> torch.Tensor:
    """From dark to light within so many pixels."""
    return ((torch.arange(320) - at) / pixels).clamp(-0.5, 0.5).expand(1, 1, 3, 4, 192, 320)


def test_a_run_says_how_it_was_made_and_what_it_reached(run):
    _, result = run
    assert result["command"].startswith("chunkcast train tiny --out")
    assert result["device"] == "cpu"
    assert all(result[f"{part}_steps"] > 0 for part in ("vae", "recogniser", "transformer", "joint"))
    assert math.isfinite(result["held_out_error_without_history"]) and math.isfinite(result["vae_psnr_mean"])


def test_a_finished_run_goes_on_where_it_ended(run, capsys):
    folder, before = run
    more = before["recogniser_minutes"] + 0.03
    assert main([*arguments(folder, "0"), MINUTES["recogniser"], str(more)]) == 0
    after = json.loads((folder / "result.json").read_text())
    assert after["recogniser_steps"] > before["recogniser_steps"]
    assert after["joint_steps"] == before["joint_steps"], "a part whose time is over rests"
    assert "going on after" in capsys.readouterr().out


def test_a_part_that_is_trained_on_has_those_after_it_begin_anew(run, tmp_path):
    folder, before = run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    more = before["transformer_minutes"] + 0.03
    assert main([*arguments(tmp_path, "0"), MINUTES["transformer"], str(more)]) == 0
    after = json.loads((tmp_path / "result.json").read_text())
    assert after["vae_steps"] == before["vae_steps"] and after["transformer_steps"] > before["transformer_steps"]
    assert after["joint_steps"] == 0, "what was learnt beside another transformer is gone"


def test_other_latents_have_the_transformer_learn_for_all_its_minutes_again(run, tmp_path):
    folder, before = run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    more = [MINUTES["VAE"], str(before["vae_minutes"] + 0.03), MINUTES["transformer"], "0.01"]
    assert main([*arguments(tmp_path, "0"), *more]) == 0
    after = json.loads((tmp_path / "result.json").read_text())
    assert after["vae_steps"] > before["vae_steps"] and after["transformer_steps"] > before["transformer_steps"]


def test_a_run_that_is_stopped_leaves_the_weights_of_before(run, tmp_path, monkeypatch, capsys):
    folder, _ = run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def stopped(*parts):
        parts[-1].asked = True
        return {}

    monkeypatch.setattr("pipeline.tiny.train.train_vae", stopped)
    assert main(arguments(tmp_path, "0")) == 130
    assert "the same command goes on" in capsys.readouterr().out
    for name in (*(f"weights/{file}" for file in FILES), "result.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_an_end_and_is_given_back_after_it(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        signal.raise_signal(number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_what_is_learnt_is_kept_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tiny.trainee.SAVE_SECONDS", 0.0)
    trainee = Trainee(torch.nn.Linear(3, 1), 1e-2, tmp_path / "layer.pt")
    with Stop() as stop:
        Progress("layer", 1.0, stop, trainee).step(torch.zeros(()))
    assert (tmp_path / "layer.pt").exists()


def test_a_checkpoint_of_another_device_goes_on_by_this_ones_rules(tmp_path):
    trainee = muon_trainee(tmp_path)
    muon_step(trainee, torch.randn(4, 8), torch.zeros(4, 8))
    trainee.save(1.0)
    state = torch.load(trainee.path, weights_only=True)
    state["optimizers"][0]["param_groups"][0] |= {"capturable": True, "lr": torch.tensor(0.5)}
    torch.save(state, trainee.path)
    group = muon_trainee(tmp_path)._optimizers[0].param_groups[0]
    assert group["capturable"] is False and group["lr"] == 0.0


def test_a_checkpoint_of_another_version_is_refused_in_a_sentence(tmp_path):
    Trainee(torch.nn.Linear(3, 1), 1e-2, tmp_path / "layer.pt").save(1.0)
    for other, matrices in ((torch.nn.Linear(4, 1), False), (torch.nn.Linear(3, 1), True)):
        with pytest.raises(ValueError, match=r"--begin-with .*weights"):
            Trainee(other, 1e-2, tmp_path / "layer.pt", matrices=[other.weight] if matrices else [])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((MINUTES["VAE"], "ten"), "'ten' are no minutes"),
        (("--alone-share", "half"), "'half' is no share"),
    ],
)
def test_a_number_that_is_none_is_refused_by_what_would_be_one(capsys, given, says):
    with pytest.raises(SystemExit):
        main(list(given))
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--device", "--draw-device"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_trained(option, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    given = {"--device": "cuda", "--draw-device": "cuda:1"}[option]
    with pytest.raises(ValueError, match=r"torch sees no"):
        main(["--out", str(tmp_path / "run"), option, given])
    assert not (tmp_path / "run").exists()


def test_a_part_of_no_minutes_leaves_what_the_run_began_with(run, tmp_path):
    folder, _ = run
    begun = [*arguments(tmp_path, "0"), MINUTES["joint training"], "0.01", "--begin-with", str(folder / "weights")]
    assert main(begun) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [result[f"{part}_steps"] for part in ("vae", "transformer", "joint", "recogniser")] == [0, 0, 1, 0]
    one, other = (load_tiny("cpu", each / "weights").vae.encode_pictures.state_dict() for each in (folder, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_begins_with_the_weights_of_another(run, tmp_path, monkeypatch):
    folder, _ = run
    for part in ("train_vae", "train_jointly", "vae_measured", "transformer_measured", "train_recogniser"):
        monkeypatch.setattr(f"pipeline.tiny.train.{part}", lambda *_: {})  # the transformer is what is compared
    begun = [*arguments(tmp_path, "0.01"), "--begin-with", str(folder / "weights")]
    assert main(begun) == 0
    one, other = (load_tiny("cpu", each / "weights").transformer.state_dict() for each in (folder, tmp_path))
    assert all((one[name] - other[name]).abs().max() < 0.05 for name in one)


def test_what_does_not_fit_begins_anew_and_is_named(run, tmp_path):
    folder, _ = run
    tensors = load_file(folder / "weights" / FILES[0])
    kept, changed, lost = "head.head.bias", "world_map.layers.0.bias", "blocks.0.norm3.weight"
    tensors[changed] = torch.zeros(7)
    del tensors[lost]
    for name in FILES:
        shutil.copy(folder / "weights" / name, tmp_path / name)
    save_file(tensors, tmp_path / FILES[0])
    world = make_tiny()
    assert sorted(take_over(world, tmp_path)) == [lost, changed]
    torch.testing.assert_close(world.transformer.state_dict()[kept], tensors[kept].float())


def test_recording_a_step_changes_nothing_before_the_rate_is_set(tmp_path):
    def state(trainee):
        return torch.cat((trainee.module.weight, trainee.average.weight)).detach().clone()

    def update(trainee):
        trainee.update(trainee.module(torch.ones(1, 3)).sum())

    first = Trainee(torch.nn.Linear(3, 1), 1e-2, tmp_path / "layer.pt")
    begun = state(first)
    update(first)
    assert torch.equal(state(first), begun)
    for _ in range(3):
        first.prepare(share=0.1)
        update(first)
    assert not torch.equal(state(first), begun)
    first.save(1.0)
    again = Trainee(torch.nn.Linear(3, 1), 1e-2, tmp_path / "layer.pt")
    update(again)
    assert torch.equal(state(again), state(first)), "nor where a run goes on"


def test_muons_updates_turn_every_direction_alike_whatever_the_gradient():
    torch.manual_seed(0)
    for shape in ((3, 64, 64), (2, 32, 128), (2, 128, 32)):
        u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        steep = u * torch.logspace(0, -1, v.shape[1]) @ v
        turned = orthogonal(steep)
        values = torch.linalg.svdvals(turned)
        assert turned.shape == shape and values.min() > 0.5 and values.max() < 1.3
        assert (turned - u @ v).square().mean() < 0.1 * (u @ v).square().mean()


def test_a_layer_learns_by_muon_and_goes_on_from_its_checkpoint(tmp_path):
    torch.manual_seed(0)
    x, wanted = torch.randn(64, 8), torch.randn(64, 8)
    trainee = muon_trainee(tmp_path)
    losses = [muon_step(trainee, x, wanted) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    trainee.save(1.0)
    again = muon_trainee(tmp_path)
    assert [muon_step(again, x, wanted) for _ in range(3)] == [muon_step(trainee, x, wanted) for _ in range(3)]
    with pytest.raises(ValueError, match="with other layers or optimizers"):
        Trainee(torch.nn.Linear(8, 8), 1e-2, tmp_path / "layer.pt")


def muon_trainee(folder):
    layer = torch.nn.Linear(8, 8)
    return Trainee(layer, 1e-2, folder / "layer.pt", matrices=[layer.weight])


def muon_step(trainee, x, wanted):
    loss = (trainee.module(x) - wanted).square().mean()
    trainee.prepare(share=0.1)
    trainee.update(loss)
    return loss.item()


def test_a_loss_reaches_those_who_learn_from_it_and_no_one_else(tmp_path):
    learner, judge = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)
    trainee = Trainee(learner, 1e-2, tmp_path / "learner.pt")
    update_together(judge(learner(torch.ones(1, 3))).sum(), trainee)
    assert learner.weight.grad is not None and judge.weight.grad is None


def test_pictures_in_which_a_prompt_fades_in_are_not_learnt_alone():
    scenes = torch.tensor([[[0, 0, 0, 0]] * 2 + [[1, 0, 0, 0]] * 3, [[2, 0, 0, 0]] * 5])
    assert _steady(scenes).tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("alone", [False, True], ids=["with a past", "alone"])
def test_the_loss_of_one_batch_falls(tmp_path, alone):
    torch.manual_seed(0)
    preset = find_preset("tiny")
    preset = replace(preset, transformer=replace(preset.transformer, layers=2))
    objective = Objective(make_tiny()._replace(transformer=Transformer(preset.transformer)), preset)
    trainee = Trainee(objective, 1e-3, tmp_path / "transformer.pt")
    batch = torch.randn(1, 2, 32, 12, 20), torch.rand(1, 2, 2, 4, dtype=torch.float64), torch.zeros(1, 2, 4).long()
    losses = []
    for _ in range(25):
        loss = objective.loss_alone(*batch) if alone else objective.loss(*batch, dreams=0)
        trainee.prepare(share=0.1)
        trainee.update(loss)
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize(
    ("flag", "value", "says"), [("--alone-share", "1.5", "it is from 0 to 1"), ("--minutes", "-1", "a number from 0")]
)
def test_a_share_beyond_the_whole_and_time_that_runs_backwards_are_refused(tmp_path, capsys, flag, value, says):
    with pytest.raises(SystemExit):
        main([*arguments(tmp_path, "0.01"), f"{flag}={value}"])
    assert says in capsys.readouterr().err


def test_only_a_whole_training_is_judged_at_its_end(tmp_path):
    assert to_be_judged(["--out", str(tmp_path)]) == tmp_path / "weights"
    assert to_be_judged(["--out", str(tmp_path), "--no-benchmark"]) is None
    assert to_be_judged(arguments(tmp_path, "1")) is None


def test_a_missing_part_is_named(run, tmp_path):
    with pytest.raises(ValueError, match=FILES[0]):
        load_tiny("cpu", tmp_path)


def test_the_plans_that_are_offered_are_complete():
    assert set(PLANS) == {"full", "small"}
