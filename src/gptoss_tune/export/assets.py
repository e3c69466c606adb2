"""What comes along with weights: tokenizer, chat template, generation settings, licence, notice.

A merged model without its chat template is prompted wrongly by every server, and the licence asks
that changes be stated (Apache-2.0, section 4b).

A base that lacks one of them gives a result that lacks it, which is told before a merge that takes
an hour and not after. A chat template and generation settings are the same for every gpt-oss and
come with this package; a tokenizer belongs to the base and is asked for.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.response_template import add_response_template
from gptoss_tune.files.atomic import disk_errors, to_json, write_text
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.harmony.vocabulary import CALL, ENDOFTEXT, RETURN, STARTOFTEXT
from gptoss_tune.recipe.schema.value_types import is_hub_name
from gptoss_tune.shipped import shipped

if TYPE_CHECKING:
    from gptoss_tune.weights import Checkpoint
    from gptoss_tune.weights.adapter import Adapter

NOTICE = "NOTICE"
LICENCES = ("LICENSE*", "USAGE_POLICY*")
"""Patterns of the files that say what may be done with weights."""
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    *LICENCES,
)
"""Patterns of the files that travel with weights."""
_WITHOUT_EFFECT = ("LICENSE", "USAGE_POLICY")
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
_OF_THE_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_RELEASED_GENERATION = {
    "bos_token_id": STARTOFTEXT,
    "do_sample": True,
    "eos_token_id": [RETURN, ENDOFTEXT, CALL],
    "pad_token_id": ENDOFTEXT,
}


def companions(folder: Path) -> list[Path]:
    """Return the files of a checkpoint folder that travel with its weights, sorted by name.

    Named chat templates lie in a folder of their own, ``additional_chat_templates/``.

    Raises:
        CheckpointError: One of them is a link to a file outside the folder, which would travel too.
    """
    found = {file for pattern in COMPANIONS for file in folder.glob(pattern) if file.is_file()}
    names = [file.relative_to(folder).as_posix() for file in sorted(found)]
    return [inside(folder, name, f"{folder}: has") for name in names]


def deciding_companions(folder: Path) -> list[str]:
    """Return the names of those companions that change what a server computes."""
    names = (file.relative_to(folder).as_posix() for file in companions(folder))
    return [name for name in names if not name.startswith(_WITHOUT_EFFECT)]


def missing_companions(folder: Path, base: Path | None = None) -> list[str]:
    """Return what a server needs and ``folder`` lacks, by the name of its file.

    Args:
        folder: A checkpoint.
        base: What it was made of: what that lacks as well is not asked for, and of its named chat
            templates each is.
    """
    wanted = {*_OF_THE_TOKENIZER, GENERATION, TEMPLATE}
    named = set[str]()
    if base is not None:
        wanted -= _lacking(base, wanted)
        named = {name for name in deciding_companions(base) if "/" in name}
    return sorted(_lacking(folder, wanted) | {n for n in named if not (folder / n).is_file()})


def _lacking(folder: Path, wanted: set[str]) -> set[str]:
    lacking = {name for name in wanted if not (folder / name).is_file()}
    return lacking - {TEMPLATE} if TEMPLATE in lacking and _has_template(folder) else lacking


def _has_template(folder: Path) -> bool:
    """Return whether transformers finds a chat template: in a file, or with the tokenizer's."""
    if any(folder.glob("*.jinja")):
        return True
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return False
    return bool(read_object(inside(folder, settings.name, f"{folder}: has")).get("chat_template"))


def completed_companions(base: Checkpoint) -> dict[str, bytes]:
    """Return the files that the base lacks and this package has, by name.

    Raises:
        CheckpointError: It lacks files of the tokenizer, which only its source has.
    """
    missing = missing_companions(base.companions)
    tokenizer = [name for name in missing if name in _OF_THE_TOKENIZER]
    if tokenizer:
        raise CheckpointError(
            f"{base.companions}: has no {' and no '.join(tokenizer)}, without which nobody can use "
            "the result; copy the tokenizer's files into the folder from where the base came from "
            "(the release: `hf download openai/gpt-oss-20b --include 'tokenizer*' --local-dir DIR`)"
            "; where another program wrote the weights, `gptoss-tune convert "
            f"{shlex.quote(str(base.companions))} --tokenizer DIR --out NEW` puts them there"
        )
    made = {
        TEMPLATE: lambda: (shipped("data") / "tiny_checkpoint" / TEMPLATE).read_bytes(),
        GENERATION: lambda: to_json(_RELEASED_GENERATION).encode(),
    }
    return {name: made[name]() for name in missing}


def copy_companions(
    base: Checkpoint, adapters: Sequence[Adapter], out: Path, completed: Mapping[str, bytes]
) -> None:
    """Copy the base's companions to ``out``, add the missing, state the change in ``NOTICE``.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    with disk_errors(out):
        for file in companions(base.companions):
            copy = out / file.relative_to(base.companions)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
        for name, content in completed.items():
            (out / name).write_bytes(content)
    add_response_template(out)
    write_notice(base, adapters, out)


def write_notice(base: Checkpoint, adapters: Sequence[Adapter], out: Path) -> None:
    """State in ``NOTICE`` of ``out`` how its weights differ from the base's.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    text = notice_of(base.companions)
    names = (a.config.get("base_model_name_or_path") for a in adapters)
    name = next((name for name in names if name), None) or base.name
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
    if not modules:
        return f"The weights in this folder are those of {base_name}, converted by gptoss-tune.\n"
    return (
        f"The weights in this folder are those of {base_name}, changed by fine-tuning "
        f"({', '.join(modules)}) with gptoss-tune.\n"
    )
