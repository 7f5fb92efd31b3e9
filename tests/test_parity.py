import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import parity

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.safetensors"))


def changed(path, to, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, to, {"config": json.dumps(parity.read(path).config)})
    return to


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_golden_data_holds(path, capsys):
    assert parity.main([str(path)]) == 0
    assert "ok" in capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_small_error_in_any_output_fails(path, tmp_path):
    def nudge(tensors):
        for name in [name for name in tensors if name.startswith("out.")]:
            tensors[name] = tensors[name] * 1.0003

    assert parity.main([str(changed(path, tmp_path / path.name, nudge))]) == 1


def test_not_a_number_fails(tmp_path):
    def spoil(tensors):
        tensors["weights.norm.weight"][0] = torch.nan

    assert parity.main([str(changed(DATA / "umt5.safetensors", tmp_path / "nan.safetensors", spoil))]) == 1


def test_one_bad_file_among_good_ones_fails(tmp_path):
    bad = changed(
        DATA / "umt5.safetensors", tmp_path / "bad.safetensors", lambda tensors: tensors["out.hidden"].mul_(2)
    )
    assert parity.main([str(bad), str(DATA / "umt5.safetensors")]) == 1


def test_another_shape_is_an_infinite_error():
    assert parity.relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")


def test_a_file_that_is_no_golden_data_gets_a_sentence_and_status_two(tmp_path, capsys):
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(1)}, plain)
    kind = tmp_path / "kind.safetensors"
    save_file({"x": torch.zeros(1)}, kind, {"config": '{"kind": "song"}'})
    for path, words in ((text, "cannot be read"), (plain, "metadata key 'config'"), (kind, "dit, vae, umt5, camera")):
        assert parity.main([str(path)]) == 2
        assert words in capsys.readouterr().err
    assert parity.main([str(tmp_path / "nowhere")]) == 2


def test_golden_data_without_a_tensor_or_size_it_needs_gets_status_two(tmp_path, capsys):
    path = changed(DATA / "camera.safetensors", tmp_path / "short.safetensors", lambda tensors: tensors.pop("in.poses"))
    assert parity.main([str(path)]) == 2
    assert "lacks 'poses'" in capsys.readouterr().err
