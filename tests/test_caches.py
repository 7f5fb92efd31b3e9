"""Compiled code is kept where the user's caches are, and nothing fails where it cannot be."""

import os
from pathlib import Path

import pytest

from kernels.caches import keep_on_disk

TORCH, TRITON, FLASH, ENABLED = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED",
)


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch, tmp_path):
    for name in (TORCH, TRITON, FLASH, ENABLED):
        monkeypatch.setenv(name, "")  # so that it is restored, whatever is set meanwhile
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_all_compilers_keep_their_code_in_the_users_cache_folder(tmp_path):
    assert keep_on_disk() == tmp_path / "chunkcast" / "compiled" == Path(os.environ[TORCH])
    assert Path(os.environ[FLASH]).is_dir() and Path(os.environ[FLASH]).is_relative_to(os.environ[TORCH])
    assert os.environ[ENABLED] == "1"
    assert Path(os.environ[TRITON]).is_relative_to(os.environ[TORCH])


def test_what_the_user_has_set_stays(monkeypatch, tmp_path):
    own = {TORCH: str(tmp_path / "t"), TRITON: str(tmp_path / "r"), FLASH: str(tmp_path / "f"), ENABLED: "0"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert keep_on_disk() == tmp_path / "t"
    assert {name: os.environ[name] for name in own} == own


def test_where_no_folder_can_be_made_flash_attention_is_not_told_to_keep_anything(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_on_disk()
    assert os.environ[ENABLED] == "0"
