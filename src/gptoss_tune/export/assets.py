"""What comes along with weights: tokenizer, chat template, generation settings, licence, notice.

A merged model without its chat template is prompted wrongly by every server, and the licence asks
that changes be stated (Apache-2.0, section 4b).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from gptoss_tune.files.atomic import disk_errors, write_text
from gptoss_tune.files.paths import inside
from gptoss_tune.recipe.value_types import is_hub_name
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import Adapter

NOTICE = "NOTICE"
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "generation_config.json",
    "LICENSE*",
    "USAGE_POLICY*",
)
"""Patterns of the files that travel with weights."""


def companions(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that travel with its weights, sorted by name.

    Raises:
        CheckpointError: One of them is a link to a file outside the folder, which would travel too.
    """
    found = {file for pattern in COMPANIONS for file in folder.glob(pattern) if file.is_file()}
    return [inside(folder, file.name, f"{folder}: has") for file in sorted(found)]


def copy_companions(base: Checkpoint, adapters: Sequence[Adapter], out: Path) -> None:
    """Copy the base's companions to ``out`` and state the change in ``NOTICE``.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    with disk_errors(out):
        for file in companions(base.path):
            shutil.copyfile(file, out / file.name)
    text = notice_of(base.path)
    names = (a.config.get("base_model_name_or_path") for a in adapters)
    name = next((name for name in names if name), base.path.name)
    # A local folder is named by its last part: the path of this machine is nobody's business.
    local = Path(name).exists() or not is_hub_name(name)
    public = re.split(r"[\\/]", name.rstrip("\\/"))[-1] if local else name
    write_text(out / NOTICE, text + change_notice(public, adapters))


def notice_of(folder: Path) -> str:
    """Return the notice that a checkpoint came with, to be continued; empty without one."""
    if not (folder / NOTICE).is_file():
        return ""
    file = inside(folder, NOTICE, f"{folder}: has")
    return file.read_text(encoding="utf-8", errors="replace").rstrip() + "\n\n"


def change_notice(base_name: str, adapters: Sequence[Adapter]) -> str:
    """Return the statement of changes that the licence asks for."""
    modules = sorted({module.rpartition(".")[2] for a in adapters for module in a.targets})
    return (
        f"The weights in this folder are those of {base_name}, changed by fine-tuning "
        f"({', '.join(modules)}) with gptoss-tune.\n"
    )
