"""What the tests of bundles share: a bundle written, its scripts and commands read back."""

import shlex

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
        prepares = (": ", "HERE=", "export ", "python3 -c ")
        return [shlex.split(line) for line in lines[2:] if not line.startswith(prepares)]

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
    def objects(files):
        """The Kubernetes objects of a bundle by their kinds, the server's first."""
        found = {}
        for name in ("kubernetes/server.yaml", "kubernetes/volume.yaml"):
            found |= {one["kind"]: one for one in yaml.safe_load_all(files[name])}
        return found

    @staticmethod
    def large(**changes):
        """gpt-oss-120b as released: 60.8 GiB, of which 56.8 are experts."""
        facts = {"config": RELEASE, "weights": 65_248_815_744, "expert_weights": 60_993_699_840}
        return Served("large", "openai/gpt-oss-120b", **{**facts, **changes})


@pytest.fixture(scope="session")
def bundles():
    return Bundles()


@pytest.fixture
def served(merged):
    return Served(name="my-model", path=str(merged), context=4096, gpus=2)
