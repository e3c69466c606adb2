"""What the tests of bundles share: a bundle written, its scripts and commands read back."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from gptoss_tune.export.serve.bundle import write_bundle
from gptoss_tune.export.serve.served import Served

RELEASE = {
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 36,
    "intermediate_size": 2880,
    "sliding_window": 128,
    "max_position_embeddings": 131_072,
}
"""Of gpt-oss-120b's ``config.json``, what serving depends on."""


class Bundles:
    """Writes bundles and reads them back."""

    release = RELEASE

    @staticmethod
    def write(served, target, out):
        """The files of a bundle by their names, which are exactly those on disk."""
        names = write_bundle(served, target, out)
        assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == names
        return {name: (out / name).read_text() for name in names}

    @staticmethod
    def words(script):
        """The commands of a script as the shell would split them, without what prepares them."""
        lines = script.replace("\\\n", " ").splitlines()
        assert lines[:2] == ["#!/bin/sh", "set -e"]
        prepares = (": ", "HERE=", "export ", "CDPATH='' cd ", "python3 -c ")
        commands = [line for line in lines[2:] if not line.startswith(prepares)]
        assert commands[-1].startswith("exec "), "a signal would not reach the server"
        return [shlex.split(line.removeprefix("exec ")) for line in commands]

    @staticmethod
    def option(command, name):
        """The value of an option."""
        return command[command.index(name) + 1]

    @staticmethod
    def service(files):
        """The one service of a compose file."""
        (service,) = yaml.safe_load(files["compose.yaml"])["services"].values()
        return service

    @staticmethod
    def mounts(files):
        """Sources of the mounts of a compose file by their targets."""
        return {v["target"]: v["source"] for v in Bundles.service(files)["volumes"]}

    @staticmethod
    def objects(files):
        """The Kubernetes objects of a bundle by their kinds, the server's first."""
        found = {}
        for name in ("kubernetes/server.yaml", "kubernetes/volume.yaml"):
            found |= {one["kind"]: one for one in yaml.safe_load_all(files[name])}
        return found

    @staticmethod
    def flag_mistakes(command, listing):
        """What a server's parser would refuse of a command: its words after the program."""
        found, words = [], list(command)
        while words and not words[0].startswith("--"):
            words.pop(0)
        while words:
            flag, _, value = words.pop(0).partition("=")
            values = [value] if value else []
            while words and not words[0].startswith("--"):
                values.append(words.pop(0))
            if flag not in listing["flags"]:
                found.append(f"{flag}: no such flag")
                continue
            found += [
                f"{flag}: {said}" for said in _refused(listing["flags"][flag], values) if said
            ]
            names = listing.get("names", {}).get(flag, values)
            found += [f"{flag}: no parser '{one}'" for one in values if one not in names]
        return found

    @staticmethod
    def large(**changes):
        """gpt-oss-120b as released: 60.8 GiB, of which 56.8 are experts."""
        facts = {"config": RELEASE, "weights": 65_248_815_744, "expert_weights": 60_993_699_840}
        return Served("large", "openai/gpt-oss-120b", **{**facts, **changes})


def _refused(kind, values):
    """What is wrong with the values of a flag of this kind."""
    if kind["type"] == "flag":
        yield "takes no value" if values else None
    elif not values:
        yield "wants a value"
    elif kind["type"] != "list" and len(values) > 1:
        yield "takes one value"
    for value in values:
        if kind["type"] in ("int", "float"):
            try:
                {"int": int, "float": float}[kind["type"]](value)
            except ValueError:
                yield f"'{value}' is no {kind['type']}"
        if kind["type"] == "choice" and value not in map(str, kind["choices"]):
            yield f"'{value}' is none of {kind['choices']}"


@pytest.fixture(scope="session")
def listings():
    """What was recorded of each server's parser, by the file's name."""
    paths = sorted((Path(__file__).parent / "flags").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


@pytest.fixture(scope="session")
def bundles():
    return Bundles()


@pytest.fixture
def served(merged):
    return Served(name="my-model", path=str(merged), context=4096, gpus=2)
