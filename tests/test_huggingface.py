"""pipeline/huggingface.py against huggingface_hub itself, which talks to a hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub

from pipeline.huggingface import check_place, parse_name, wanted_files

ROOT = Path(__file__).parent.parent
WAN = {
    "README.md": b"read me",
    "Wan2.1_VAE.pth": b"a vae",
    "models_t5_umt5-xxl-enc-bf16.pth": b"an encoder",
    "google/umt5-xxl/tokenizer.json": b"{}",
    "lingbot_world_fast/config.json": b"{}",
    "lingbot_world_fast/model.safetensors": b"a transformer",
    "high_noise_model/model.safetensors": b"another",
    "examples/walk.mp4": b"a video",
}
SELF_FORCING = {"checkpoints/self_forcing_dmd.pt": b"1", "checkpoints/sid.pt": b"2", "checkpoints/ode.pt": b"3"}
LORA = {
    "adapter_model.safetensors": b"factors",
    "adapter_config.json": b'{"lora_alpha": 32}',
    "other/adapter_config.json": b"{}",
}
RESOLVE = """
import sys
from pipeline.huggingface import resolve
try:
    print(resolve(sys.argv[1], sys.argv[2].split(",")))
except ValueError as error:
    print("ValueError:", error)
"""
EVERYTHING = "transformer,vae,text,tokenizer"


@pytest.fixture(scope="module")
def hub():
    repositories = {
        "some/wan": WAN,
        "some/forcing": SELF_FORCING,
        "some/lora": LORA,
        "some/papers": {"README.md": b"x"},
    }
    hub = FakeHub(repositories)
    yield hub
    hub.close()


def resolve(place, parts, home, url="http://127.0.0.1:9", **more):
    """What resolve() gives or raises, in a process whose huggingface_hub knows only this hub and this cache."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**clean, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **more}
    command = [sys.executable, "-c", RESOLVE, place, parts]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_only_the_files_that_are_needed_are_fetched_and_only_once(hub, tmp_path):
    folder = Path(resolve("some/wan@v1", EVERYTHING, tmp_path, hub.url))
    wanted = {name for name in WAN if not name.startswith(("README", "high", "examples"))}
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} == wanted
    assert folder.name == COMMIT and (folder / "Wan2.1_VAE.pth").read_bytes() == b"a vae"
    hub.fetched.clear()
    assert resolve("some/wan@v1", EVERYTHING, tmp_path, hub.url) == str(folder)
    assert hub.fetched == []
    assert resolve("some/wan@v1", EVERYTHING, tmp_path) == str(folder), "the cache serves without the hub"
    assert resolve("some/wan@v1", EVERYTHING, tmp_path, hub.url, HF_HUB_OFFLINE="1") == str(folder)


def test_what_tells_the_scale_of_a_lora_comes_with_it(hub, tmp_path):
    folder = Path(resolve("some/lora", "transformer", tmp_path, hub.url))
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == {"adapter_model.safetensors", "adapter_config.json"}


def test_parts_alone_come_without_the_transformer(hub, tmp_path):
    folder = Path(resolve("some/wan", "vae,text,tokenizer", tmp_path, hub.url))
    assert (folder / "Wan2.1_VAE.pth").exists() and not (folder / "lingbot_world_fast").exists()


def test_one_file_of_a_repository_may_be_named(hub, tmp_path):
    file = Path(resolve("some/forcing/checkpoints/self_forcing_dmd.pt", "transformer", tmp_path, hub.url))
    assert file.read_bytes() == b"1" and [each.name for each in file.parent.iterdir()] == ["self_forcing_dmd.pt"]
    said = resolve("some/forcing/checkpoints/other.pt", "transformer", tmp_path, hub.url)
    assert said == "ValueError: some/forcing has no file checkpoints/other.pt on the hub"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("some/absent", "there is no some/absent, neither here nor on the hub"),
        ("some/gated", "some/gated is gated: accept its terms on"),
        ("some/wan@v9", "some/wan has no revision v9 on the hub"),
        ("some/papers", "some/papers holds no transformer in a layout that is known: README.md"),
        ("some/forcing", "name the one that is meant: some/forcing/FILE"),
        ("some/..wan", "some/..wan"),
    ],
)
def test_what_cannot_be_had_is_one_clear_sentence(hub, tmp_path, name, says):
    said = resolve(name, "transformer", tmp_path, hub.url)
    assert said.startswith("ValueError: ") and says in said and "\n" not in said


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "offline"])
def test_without_a_hub_and_a_cache_it_says_so(tmp_path, more):
    said = resolve("some/wan", EVERYTHING, tmp_path, **more)
    assert said == "ValueError: the hub cannot be reached, and some/wan is neither a path here nor in the hub's cache"


def test_names_on_the_hub_are_told_from_paths(tmp_path):
    assert parse_name("org/name") == ("org/name", "", None)
    assert parse_name("org/name@v1.0") == ("org/name", "", "v1.0")
    assert parse_name("org/name/a/b.pt@main") == ("org/name", "a/b.pt", "main")
    assert str(parse_name("org/name/a/b.pt@main")) == "org/name/a/b.pt@main"
    for path in ("/abs/path", "./here", "../up/there", "folder", "", "a/../../b"):
        assert parse_name(path) is None
    check_place(str(tmp_path), "--weights")
    check_place("org/name", "--weights")
    with pytest.raises(ValueError, match="there is no nowhere; --parts takes a folder, a file, or a name"):
        check_place("nowhere", "--parts")


def test_a_base_and_its_lora_are_both_wanted():
    files = ["models/longlive_base.pt", "models/lora.pt", "README.md"]
    assert wanted_files(parse_name("a/b"), files, ("transformer",)) == files[:2]
