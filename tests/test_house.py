"""The house rules that a program can check: who imports whom, and that we live in peace with transformers."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("kernels", "pipeline", "stream", "benchmarks")
NETWORK = {"asyncio", "aiortc", "aioice", "fastapi", "starlette", "uvicorn", "websockets", "http", "httpx", "requests"}
FORBIDDEN = {
    "pipeline": NETWORK | {"stream", "benchmarks", "tests", "web"},
    "stream": {"torch", "transformers", "safetensors", "kernels", "benchmarks", "tests"},
    "benchmarks": {"tests"},
}
KERNELS_LIVE_ON = {"torch", "flash_attn", "cudnn", "triton", "kernels"}
READS_AND_WRITES_FILES = {"pipeline/video_file.py"}
SEEN_BY_STREAM = ("pipeline.chunk", "pipeline.video_file")
JOINTS = {"stream/__main__.py", "stream/worker.py"}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "prometheus_client": "prometheus-client",
    "flash_attn": "flash-attn",
    "cudnn": "nvidia-cudnn-frontend",
    "huggingface_hub": "huggingface-hub",
}
COMES_WITH = {"starlette": "fastapi", "aioice": "aiortc", "triton": "torch"}


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, functions and TYPE_CHECKING included, as dotted names.

    `from a import b` is a.b, since b may be a module; import_module("a.b") counts too.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, not relative"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and (name := imported_by_name(node)):
            found.add(name)
    return found


def imported_by_name(call: ast.Call) -> str | None:
    """The module of import_module("...") and __import__("..."), when it is written out."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    written_out = call.args and isinstance(call.args[0], ast.Constant)
    return call.args[0].value if function in ("import_module", "__import__") and written_out else None


def is_within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def wrong_imports(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    room = name.split("/")[0]
    return sorted(module for module in imports(path) if is_wrong(module, name, room))


def is_wrong(module: str, name: str, room: str) -> bool:
    """Whether a file of that name in that room must not import the module."""
    root = module.split(".")[0]
    if room == "kernels":
        return root not in KERNELS_LIVE_ON | (sys.stdlib_module_names - NETWORK)
    if room == "stream" and root == "pipeline":
        return name not in JOINTS and not any(is_within(module, seen) for seen in SEEN_BY_STREAM)
    if room == "pipeline" and root == "av":
        return name not in READS_AND_WRITES_FILES
    return root in FORBIDDEN[room]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path):
    assert wrong_imports(path) == []


@pytest.mark.parametrize(
    ("room", "line", "wrong"),
    [
        ("stream", "def f():\n    from pipeline import engine\n    import torch", ["pipeline.engine", "torch"]),
        ("stream", "import pipeline", ["pipeline"]),
        ("stream", "from pipeline import *", ["pipeline.*"]),
        ("stream", "import pipeline.chunks", ["pipeline.chunks"]),
        ("stream", "import importlib\nimportlib.import_module('pipeline.engine')", ["pipeline.engine"]),
        ("stream", "import typing\nif typing.TYPE_CHECKING:\n    import torch", ["torch"]),
        ("stream", "import pipeline.chunk\nfrom pipeline import chunk\nfrom pipeline.chunk import Chunk", []),
        ("pipeline", "import asyncio, av.video", ["asyncio", "av.video"]),
        ("pipeline", "from stream import pacer\nimport torch", ["stream.pacer"]),
        ("kernels", "import math, numpy, torch\nfrom pipeline.chunk import Chunk", ["numpy", "pipeline.chunk.Chunk"]),
        ("benchmarks", "from tests.browser import page\nimport stream.server", ["tests.browser.page"]),
    ],
)
def test_the_import_check_sees_a_wrong_import(tmp_path, monkeypatch, room, line, wrong):
    file = tmp_path / room / "some.py"
    file.parent.mkdir()
    file.write_text(line)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert wrong_imports(file) == wrong


def test_every_import_of_a_shipped_module_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    brought = project["dependencies"] + [one for name in ("cuda", "hopper", "cluster") for one in extras[name]]
    declared = {re.match(r"[\w-]+", one)[0] for one in brought}
    shipped = [path for path in modules() if path.relative_to(ROOT).parts[0] != "benchmarks"]
    roots = {module.split(".")[0] for path in shipped for module in imports(path)}
    outside = {COMES_WITH.get(root, root) for root in roots - sys.stdlib_module_names - {*ROOMS, "web"}}
    assert {DISTRIBUTIONS.get(root, root) for root in outside} <= declared


def test_every_package_file_is_empty():
    assert [path for path in modules() if path.name == "__init__.py" and path.read_text()] == []


def test_the_server_side_runs_without_torch():
    code = "import sys, stream.__main__, stream.server, stream.worker; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_transformers_does_not_take_our_kernels_for_the_package_of_that_name():
    code = (
        "from transformers.utils.import_utils import is_kernels_available\n"
        "from transformers import UMT5EncoderModel\n"
        "import kernels.attention, sys\n"
        "sys.exit(is_kernels_available())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
