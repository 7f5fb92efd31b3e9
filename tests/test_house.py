"""The house rules that a program can check: who imports whom, and that we live in peace with transformers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("kernels", "pipeline", "stream", "benchmarks")
NETWORK = {"asyncio", "aiortc", "aioice", "fastapi", "starlette", "uvicorn", "websockets"}
FORBIDDEN = {
    "kernels": NETWORK | {"pipeline", "stream", "benchmarks", "av", "transformers"},
    "pipeline": NETWORK | {"stream", "benchmarks"},
    "stream": {"torch", "transformers", "safetensors", "kernels", "benchmarks"},
    "benchmarks": set(),
}
JOINTS = {"stream/__main__.py", "stream/worker.py"}


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, functions included, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, not relative"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong_imports(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    room = name.split("/")[0]
    wrong = [module for module in imports(path) if module.split(".")[0] in FORBIDDEN[room]]
    if room == "stream" and name not in JOINTS:
        allowed = ("pipeline.chunk",)
        wrong += [m for m in imports(path) if m.startswith("pipeline.") and not m.startswith(allowed)]
    return sorted(wrong)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path):
    assert wrong_imports(path) == []


def test_the_import_check_sees_a_wrong_import(tmp_path, monkeypatch):
    bad = tmp_path / "stream" / "bad.py"
    bad.parent.mkdir()
    bad.write_text("def f():\n    from pipeline import engine\n    import torch\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert wrong_imports(bad) == ["pipeline.engine", "torch"]


def test_every_package_file_is_empty():
    assert [path for path in modules() if path.name == "__init__.py" and path.read_text()] == []


def test_the_server_side_runs_without_torch():
    code = "import sys, stream.server, stream.worker; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_transformers_does_not_take_our_kernels_for_the_package_of_that_name():
    code = (
        "from transformers.utils.import_utils import is_kernels_available\n"
        "from transformers import UMT5EncoderModel\n"
        "import kernels.attention, sys\n"
        "sys.exit(is_kernels_available())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
