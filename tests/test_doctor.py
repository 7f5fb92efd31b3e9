import re
import shutil
from functools import partial

import public_checkpoint
import pytest

from pipeline import doctor, presets, tensors
from pipeline import huggingface as hub
from pipeline.checkpoint import plan_text_encoder, plan_vae
from pipeline.tiny.load import WEIGHTS
from stream.__main__ import main
from stream.codec import missing_encoders

CODECS = {"VP8": None, "H264": None}
NO_CODECS = {"VP8": "no libvpx", "H264": "no libx264"}


def examine(preset=None, weights=None, parts=None, lora=None, codecs=CODECS):
    return doctor.examine(preset, weights, parts, lora, codecs)


def states(report, heading):
    (found,) = (findings for name, findings in report.sections.items() if name.startswith(heading))
    return {finding.subject: finding.state for finding in found}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A small checkpoint whose preset the doctor knows; reading a tensor of it is an error."""

    def write(layout):
        made = public_checkpoint.write(tmp_path, layout)
        monkeypatch.setitem(presets.PRESETS, made.preset.name, made.preset)
        return made

    def read(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(tensors, "_read", read)
    monkeypatch.setattr(tensors, "_itself", read)
    monkeypatch.setattr(doctor, "plan_vae", partial(plan_vae, config=public_checkpoint.VAE))
    monkeypatch.setattr(doctor, "plan_text_encoder", partial(plan_text_encoder, sizes=public_checkpoint.UMT5))
    return write


def test_without_a_question_it_describes_the_machine():
    report = examine()
    assert report.fine
    assert [*report.sections] == ["This machine", "Attention", "Linears", "Codecs"]
    assert states(report, "Attention")["sdpa"] == doctor.OK
    assert str(report).endswith("All that was asked for is fine.")


def test_one_codec_is_enough_and_none_is_a_failure():
    one = examine(codecs={"VP8": None, "H264": "no libx264"})
    assert one.fine and states(one, "Codecs") == {"VP8": doctor.OK, "H264": doctor.LACK}
    none = examine(codecs=NO_CODECS)
    assert not none.fine and "NO  H264" in str(none) and "no libx264" in str(none)


@pytest.mark.parametrize("layout", ["lingbot-world-fast", "v2-1.3b", "longlive", "diffusers"])
def test_a_whole_checkpoint_is_fine_and_only_its_headers_are_read(written, layout):
    made = written(layout)
    places = [None if place is None else str(place) for place in (made.weights, made.parts, made.lora)]
    report = examine(made.preset.name, *places)
    assert report.fine, str(report)
    found = states(report, "Weights")
    assert found == dict.fromkeys(("transformer", "VAE", "text encoder", "tokenizer"), doctor.OK)
    assert "float32" in str(report) and " tensors, " in str(report)


def test_each_missing_part_is_named(written):
    made = written("v2-1.3b")
    report = examine(made.preset.name, str(made.weights))
    assert not report.fine
    assert states(report, "Weights") == {
        "transformer": doctor.OK,
        "VAE": doctor.BAD,
        "text encoder": doctor.BAD,
        "tokenizer": doctor.BAD,
    }
    assert "--parts names a folder that has it" in str(report) and "3 to mend" in str(report)


def test_without_a_preset_it_says_which_ones_the_weights_are(written):
    made = written("v2-14b")
    report = examine(weights=str(made.weights))
    assert f"its tensors are those of {made.preset.name}" in str(report)


def test_another_presets_weights_do_not_fit(written):
    made = written("v2-14b")
    report = examine("wan2.1-1.3b-longlive", str(made.weights))
    assert states(report, "Weights")["transformer"] == doctor.BAD
    assert "missing: blocks.10." in str(report)
    assert max(map(len, str(report).splitlines())) < 600


@pytest.mark.parametrize(
    ("gigabytes", "one", "two"),
    [(16, doctor.BAD, doctor.LACK), (32, doctor.OK, doctor.LACK), (141, doctor.OK, doctor.OK)],
)
def test_it_says_what_fits_the_gpu(monkeypatch, gigabytes, one, two):
    monkeypatch.setattr(doctor, "gpu_bytes", lambda: gigabytes * 10**9)
    report = examine("wan2.1-1.3b-longlive")
    assert states(report, "Memory") == {"1 slot": one, "2 slots": two}
    assert report.fine == (one == doctor.OK)


def test_what_fits_depends_on_the_precisions(monkeypatch):
    monkeypatch.setattr(doctor, "gpu_bytes", lambda: 80 * 10**9)
    whole = examine("lingbot-world-v2-14b")
    less = doctor.examine("lingbot-world-v2-14b", None, None, None, CODECS, "fp8", "fp16")
    assert states(whole, "Memory")["1 slot"] == doctor.BAD and states(less, "Memory")["1 slot"] == doctor.OK
    with pytest.raises(ValueError, match="this preset's own is always exact"):
        doctor.examine("tiny", None, None, None, CODECS, vae_precision="fp16")


def test_what_fits_depends_on_how_keys_and_values_lie(monkeypatch):
    monkeypatch.setattr(doctor, "gpu_bytes", lambda: 84 * 10**9)
    arguments = ("lingbot-world-v2-14b", None, None, None, CODECS, "fp8", "fp16")
    plain, packed, fp8 = (
        states(doctor.examine(*arguments, **options), "Memory")["2 slots"]
        for options in ({}, {"cache": "fp8"}, {"attention": "fp8"})
    )
    assert (plain, packed, fp8) == (doctor.LACK, doctor.OK, doctor.OK)
    with pytest.raises(ValueError, match="no attention 'fp4'; it is one of auto, fp8, "):
        doctor.examine(*arguments, attention="fp4")


def test_without_a_gpu_the_need_is_told_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(doctor, "gpu_bytes", lambda: None)
    report = examine("lingbot-world-v2-1.3b")
    assert report.fine and "there is no GPU here to compare with" in str(report)


def test_the_tiny_world_and_random_weights_need_no_files(tmp_path):
    assert examine("tiny").fine and examine("wan2.1-1.3b-longlive", "random").fine
    assert not examine("tiny", str(tmp_path)).fine


def test_a_name_on_the_hub_is_looked_up_and_not_fetched(monkeypatch):
    files = ["transformers/model-00001-of-00008.safetensors", "Wan2.1_VAE.pth", "google/umt5-xxl/spiece.model"]
    monkeypatch.setattr(hub, "cached", lambda name: None)
    monkeypatch.setattr(hub, "listed", lambda name: files)
    report = examine("lingbot-world-v2-14b", "some/world")
    assert states(report, "Weights")["transformer"] == doctor.OK
    assert states(report, "Weights")["text encoder"] == doctor.BAD
    monkeypatch.setattr(hub, "listed", lambda name: None)
    assert "the hub cannot be reached" in str(examine("lingbot-world-v2-14b", "some/world"))


def test_each_of_the_places_on_the_hub_is_looked_up(monkeypatch, written):
    made = written("longlive")
    known = {"some/parts": ["Wan2.1_VAE.pth", "models_t5.pth", "google/umt5-xxl/spiece.model"]}

    def listed(name):
        if name.repository not in known:
            raise ValueError(f"there is no {name.repository} on the hub")
        return known[name.repository]

    monkeypatch.setattr(hub, "cached", lambda name: None)
    monkeypatch.setattr(hub, "listed", listed)
    here = examine(made.preset.name, str(made.weights), "some/parts", str(made.lora))
    assert states(here, "Weights")["VAE"] == doctor.OK, str(here)
    for places in (("some/parts", "some/mistyped", None), (str(made.weights), None, "some/mistyped")):
        report = examine(made.preset.name, *places)
        assert not report.fine and "there is no some/mistyped" in str(report)


@pytest.mark.parametrize("spoilt", [b"", b"version https://git-lfs.github.com/spec/v1"])
def test_weights_of_the_tiny_world_that_cannot_be_read_are_named(tmp_path, spoilt):
    shutil.copytree(WEIGHTS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "vae.safetensors").write_bytes(spoilt)
    report = examine("tiny", str(tmp_path))
    assert states(report, "Weights")["vae.safetensors"] == doctor.BAD and "make it again" in str(report)


def test_the_exit_code_says_whether_all_is_fine(capsys, tmp_path):
    assert main(["doctor"]) == 0
    assert main(["doctor", "--weights", str(tmp_path), "--preset", "wan2.1-1.3b-longlive"]) == 1
    assert "holds no transformer" in capsys.readouterr().out
    assert main(["doctor", "--preset", "nothing"]) == 2
    assert main(["doctor", "--parts", str(tmp_path)]) == 2
    assert main(["doctor", "--weights", "/nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_the_encoders_of_this_build_are_asked_for_by_name():
    assert missing_encoders().keys() == {"VP8", "H264"}


@pytest.mark.parametrize("option", [["--cache", "fp8"], ["--attention", "fp8"], ["--precision", "fp8"]])
def test_the_command_says_what_fits_with_its_options(capsys, option):
    told = []
    for options in ([], option):
        main(["doctor", "--preset", "wan2.1-1.3b-longlive", *options])
        told.append(re.search(r"2 slots +([\d.]+) GB", capsys.readouterr().out)[1])
    assert float(told[1]) < float(told[0])
