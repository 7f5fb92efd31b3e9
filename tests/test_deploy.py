"""docs/deploy: what its files name exists, and they leave the server the time that it takes to end."""

import configparser
import fnmatch
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from stream import serve, server
from stream.__main__ import _parser

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs" / "deploy"
MAKEFILE = (ROOT / "Makefile").read_text()
DRAIN_SECONDS = server.DRAIN_SECONDS + serve.SHUTDOWN_SECONDS + 1


def unit():
    """The unit's sections; of a key that is given more than once the last value."""
    found = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    found.optionxform = str
    found.read(DEPLOY / "chunkcast.service")
    return found


def instructions():
    """The Dockerfile as (instruction, rest), its continued lines joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line.strip()]


def of(wanted):
    return [rest for name, rest in instructions() if name == wanted]


def parsed(command):
    """What the command line makes of a command of ours."""
    program, *arguments = command
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(program).name in scripts and Path(program).parent.parts[-2:] == (".venv", "bin")
    return _parser().parse_args(arguments)


def test_the_unit_starts_a_server_that_keeps_its_worlds():
    options = parsed(shlex.split(unit()["Service"]["ExecStart"]))
    assert (options.host, str(options.sessions)) == ("127.0.0.1", "${STATE_DIRECTORY}")
    advised = re.findall(r"^#\s+(--[\w-]+ \S+)$", (DEPLOY / "chunkcast.service").read_text(), re.M)
    assert advised and all(_parser().parse_args(["serve", *line.split()]) for line in advised)


def test_the_unit_gives_the_server_the_signal_and_the_time_to_drain_and_no_user_a_restart_loop():
    service = unit()["Service"]
    assert service["KillSignal"] == "SIGTERM" and service["KillMode"] == "mixed"
    assert 2 * DRAIN_SECONDS <= float(service["TimeoutStopSec"]) <= 30
    assert service["Restart"] == "on-failure" and service["RestartPreventExitStatus"] == "2"


def test_the_unit_is_hardened_and_leaves_what_the_server_needs():
    service = unit()["Service"]
    for key in (
        "DynamicUser",
        "NoNewPrivileges",
        "PrivateTmp",
        "ProtectHome",
        "ProtectKernelTunables",
        "PrivateDevices",
    ):
        assert service[key] == "yes", key
    assert service["ProtectSystem"] == "strict" and service["CapabilityBoundingSet"] == ""
    assert service["StateDirectory"] == "chunkcast", "the only folder that it writes"
    families = set(service["RestrictAddressFamilies"].split())
    assert families == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}, "netlink names the interfaces to ICE"
    assert "MemoryDenyWriteExecute" not in service, "torch compiles"


def test_the_images_steps_are_the_makefiles():
    runs = [command for rest in of("RUN") for command in rest.split("&&")]
    targets = [target for command in runs if command.split()[0] == "make" for target in command.split()[1:]]
    assert targets == [".venv/installed"] and "\n$(VENV)/installed:" in MAKEFILE
    assert not [command for command in runs if "pip" in command.split()]
    for name in (rest.partition("=")[0] for rest in of("ARG")):
        assert name in MAKEFILE or name.startswith("PIP_"), name
    torch = dict(rest.split("=", 1) for rest in of("ARG"))["TORCH"]
    assert torch in MAKEFILE, "the version that the Makefile takes without a GPU"


def test_the_image_starts_a_server_as_its_own_user_and_drains_it():
    options = parsed(json.loads(of("ENTRYPOINT")[0]))
    assert options.host == "0.0.0.0" and options.sessions.is_relative_to(of("VOLUME")[0])
    assert of("EXPOSE") == [f"{options.port} {options.udp_ports}/udp"]
    assert of("STOPSIGNAL") == ["SIGTERM"] and of("USER") == ["chunkcast"] and 2 * DRAIN_SECONDS <= 10
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")


@pytest.mark.parametrize("file", ["Dockerfile", "README.md"])
def test_commands_that_are_advised_are_understood(file):
    text = (DEPLOY / file).read_text()
    for line in re.findall(r"docker run .* chunkcast (--.*)$", text, re.M):
        assert _parser().parse_args(["serve", *line.split()])
    for line in re.findall(r"-f (\S+)", text):
        assert (ROOT / line).is_file()
    for argument in re.findall(r"--build-arg (\w+)=", text):
        assert argument in {rest.partition("=")[0] for rest in of("ARG")}


def test_the_image_leaves_out_what_is_not_needed_and_nothing_that_is():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "**/__pycache__"} <= set(ignored)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["tool"]["setuptools"]["packages"], "Makefile", "pyproject.toml", "README.md", "LICENSE"]
    for name in needed:
        path = name.replace(".", "/") if (ROOT / name.replace(".", "/")).is_dir() else name
        assert not any(fnmatch.fnmatch(path, pattern) for pattern in ignored), path
