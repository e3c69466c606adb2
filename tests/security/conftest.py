"""A base, an adapter and a recipe to poison, and the question every test asks of a command.

``refused`` runs commands as a user would and asserts: exit code 2, the file and the reason in one
message without a traceback, nothing executed, nothing written but below the places allowed.
"""

import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptoss_tune.testing.tiny import tiny_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    out = tmp_path_factory.mktemp("security") / "base"
    return tiny_checkpoint(out, layers=1, experts=2, max_shard_size=200_000)


@pytest.fixture
def place(tmp_path):
    """The folder in which everything of a test lies; the current directory is inside it."""
    here = tmp_path / "here"
    here.mkdir()
    before = Path.cwd()
    os.chdir(here)
    yield tmp_path
    os.chdir(before)


@pytest.fixture
def base(original, place):
    """A copy of the base; its files are hard links, so replace them, never write into them."""
    copy = place / "base"
    copy.mkdir()
    for file in original.iterdir():
        os.link(file, copy / file.name)
    return copy


@pytest.fixture
def adapter(base, place):
    """The smallest adapter of that base, without PEFT."""
    folder = place / "adapter"
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "target_parameters": None,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {
        f"{key}.lora_A.weight": torch.ones(2, 64),
        f"{key}.lora_B.weight": torch.ones(256, 2),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def rows(place):
    path = place / "rows.jsonl"
    message = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    path.write_text(json.dumps({"messages": message}) + "\n")
    return path


@pytest.fixture
def recipe(base, rows, place):
    path = place / "recipe.yaml"
    path.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        "lora: {rank: 2, target_parameters: [down_proj]}\n"
        f"data: {{train: {rows}, max_length: 128}}\n"
        f"train: {{output_dir: {place / 'run'}, max_steps: 1, activation_checkpointing: none}}\n"
    )
    return path


@pytest.fixture
def canary(place):
    """A folder that code of an artefact would make; see ``poison``."""
    return place / "canary"


@pytest.fixture
def poison(canary):
    """Pickle bytes that make the canary when they are read, as ``torch.save`` would write them."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    raw = pickle.dumps(Evil())
    pickle.loads(raw)  # the control: it does
    assert canary.is_dir()
    canary.rmdir()
    return raw


class Tools:
    """What makers of artefacts do again and again."""

    @staticmethod
    def replace(path, content):
        """Replace a file, which may be a hard link, by bytes, text or JSON."""
        path.unlink(missing_ok=True)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    def edit(self, path, **changes):
        self.replace(path, {**json.loads(path.read_text()), **changes})

    @staticmethod
    def shard(base, tensor="model.layers.0.mlp.router.weight"):
        return base / json.loads((base / INDEX).read_text())["weight_map"][tensor]


@pytest.fixture(scope="session")
def tools():
    return Tools()


def listing(root):
    """Every path below ``root`` with what would change if it were written to."""
    found = {}
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(parent) / name
            about = path.lstat()
            is_folder = path.is_dir() and not path.is_symlink()
            found[str(path)] = (
                about.st_mode,
                None if is_folder else (about.st_size, about.st_mtime_ns),
            )
    return found


@pytest.fixture
def refused(place, canary, capfd, monkeypatch):
    """Return a function that runs a command and asserts that it is refused, and how."""

    def run(command, reason, *, file=None, may_write=(), code=2):
        before = listing(place)
        monkeypatch.setattr(sys, "argv", ["gptoss-tune", *map(str, command)])
        capfd.readouterr()
        from gptoss_tune.cli import main

        with pytest.raises(SystemExit) as ended:
            main()
        shown = capfd.readouterr()
        message = shown.err
        assert ended.value.code == code, message
        assert "Traceback" not in message and "\x1b" not in shown.out + message
        assert re.search(reason, message), f"{reason!r} is not in: {message}"
        assert file is None or str(file) in message, f"{file} is not named in: {message}"
        assert not canary.exists(), "code of the artefact was executed"
        allowed = tuple(str(place / name) for name in may_write)
        after = {
            p: v for p, v in listing(place).items() if not allowed or not p.startswith(allowed)
        }
        before = {p: v for p, v in before.items() if not allowed or not p.startswith(allowed)}
        assert after == before, "something outside was written"
        return message

    monkeypatch.setenv("XDG_CACHE_HOME", str(place.parent / f"{place.name}-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield run
    shutil.rmtree(place.parent / f"{place.name}-cache", ignore_errors=True)
