"""The wheel: what `pip install .` puts on a machine, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "pipeline", "stream", "web")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built in a copy of the tree so that no stale build folder of a developer has a say."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, copy)
        elif path.name in (*PACKAGES, "tests", "benchmarks", "docs"):
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=copy, check=True, capture_output=True)
    return next(out.glob("chunkcast-*.whl"))


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_of_the_tests(wheel):
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    wanted = {path.relative_to(ROOT).as_posix() for path in files if path.is_file() and "__pycache__" not in path.parts}
    assert {"web/index.html", "web/favicon.svg", "pipeline/tiny/weights/vae.safetensors"} <= wanted
    assert {name for name in names(wheel) if ".dist-info/" not in name} == wanted


def test_the_wheel_carries_the_licence_and_the_command(wheel):
    info = {name.partition(".dist-info/")[2]: name for name in names(wheel) if ".dist-info/" in name}
    assert "licenses/LICENSE" in info
    commands = zipfile.ZipFile(wheel).read(info["entry_points.txt"]).decode()
    assert "chunkcast = stream.__main__:main" in commands


def test_the_unpacked_wheel_runs_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    code = (
        f"import sys; sys.path[:0] = [{str(site)!r}]\n"
        "import stream.__main__ as command, stream.server, web\n"
        f"assert all(module.__file__.startswith({str(site)!r}) for module in (command, stream.server, web))\n"
        "sys.exit(command.main(['presets']))"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], cwd=elsewhere, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\ntiny " in ran.stdout
