"""stream/limits.py: the table of limits is that of the code, and holds them all."""

import importlib

import pytest

from stream import limits

MODULES = ("__main__", "api", "archive", "doors", "frames", "hub", "protocol", "server", "upload", "webrtc", "whep")


def test_the_table_is_that_of_the_code(capsys):
    assert limits.main(["--check"]) == 0, capsys.readouterr().err


def test_a_limit_that_changes_makes_the_table_stale(monkeypatch, capsys):
    monkeypatch.setattr("stream.hub.MAX_WAITING", 7)
    assert limits.main(["--check"]) == 1
    assert capsys.readouterr().err == "limits.md is stale: run python -m stream.limits --write\n"


@pytest.mark.parametrize("module", MODULES)
def test_every_maximum_of_the_service_is_in_the_table(module):
    names = vars(importlib.import_module(f"stream.{module}"))
    # Where a module takes a constant from another, one of the two is in the table.
    told = {name.rpartition(".")[2] for name in limits.constants()}
    assert {name for name in names if name.startswith("MAX_")} <= told
