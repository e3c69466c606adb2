"""The demo: tiny gpt-oss -> recipe -> adapter -> merged file -> answers, on one screen.

Every step runs what a user would run, in the way a user would run it: the training is a real
``accelerate launch``, and the model is judged through plain transformers, which knows nothing of
this package. The base is random, so whatever the merged file answers it has learnt here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.recipe import DataSection, load_recipe
from gptoss_tune.run.environment import peak_memory_bytes
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.shipped import shipped
from gptoss_tune.terminal import next_commands

if TYPE_CHECKING:
    from gptoss_tune.harmony.render import Example

_ROOM_FOR_ANSWER = 48
_SAME_LOGITS = 0.01
"""Of the largest logit: how far the median row of a right merge may be off."""
_LEARNT = 0.8
_LEFT_BY_DEMO = ("base", "run", "merged", ".merged.incomplete", ".merged.incomplete.lock")


@dataclass(frozen=True)
class Judgement:
    """How a model does on the training rows.

    Attributes:
        loss: Mean cross-entropy over the trained tokens, in nats.
        exact: Share of prompts answered with the row's final text, word for word.
        answers: The final channel of each answer; empty where there is none.
        logits: ``[N, V]`` fp32, the logits at the last prompt token of each row.
    """

    loss: float
    exact: float
    answers: list[str]
    logits: Any


def run_demo(folder: Path, console: Console, changes: Sequence[str] = ()) -> bool:
    """Run the demo in ``folder``, which is made anew, and print its table.

    Args:
        folder: Where to work.
        console: Where to print.
        changes: ``key=value`` for the recipe; ``data.train`` in place of the demo's rows.

    Returns:
        Whether the merged file gives the adapter's logits, and, with the recipe as it is, the model
        learnt at least 80 % of its answers.

    Raises:
        MachineError: The training process failed.
        RecipeError: ``folder`` holds something that no demo left there.
    """
    from gptoss_tune.train.distributed.device import steady_threads

    with steady_threads():
        return _demo(folder, console, changes)


def _demo(folder: Path, console: Console, changes: Sequence[str]) -> bool:
    started = time.monotonic()
    _clear(folder)
    base, run, merged = folder / "base", RunFolder(folder / "run"), folder / "merged"
    recipe_path = shipped("recipes") / "tiny" / "qlora.yaml"
    overrides = [
        f"model.name_or_path={base}",
        f"train.output_dir={run.path}",
        *changes,
    ]
    if not any(change.startswith("data.train=") for change in changes):
        overrides.append(f"data.train={shipped('data') / 'tiny' / 'train.jsonl'}")
    recipe = load_recipe(recipe_path, overrides)
    console.rule("1 of 4  a tiny random gpt-oss in the released layout")
    _write_base(base, console)
    examples, texts = _rows(recipe.data, base)
    before = _judge("the base", _plain(base), examples, texts, console)
    console.rule("2 of 4  fine-tuning, experts resident in MXFP4")
    trained_s = _launch(recipe_path, overrides, console)
    console.rule("3 of 4  merging into bf16 safetensors")
    merged_s = _merge(run.adapter, merged, console)
    console.rule("4 of 4  reloading with plain transformers")
    tuned = _plain(base, run.adapter)
    adapted = _judge("base and adapter", tuned, examples, texts, console)
    after = _judge("the merged file", _plain(merged), examples, texts, console)
    _show_answers(examples, texts, before, after, console)
    typical, largest, scale = _difference(adapted, after)
    rows = [
        ("loss on the training rows", f"{before.loss:.2f}", f"{after.loss:.2f}"),
        ("answered word for word", f"{before.exact:.0%}", f"{after.exact:.0%}"),
        ("bytes of weights", _mb(base), _mb(merged)),
    ]
    facts = [
        (f"merged beside adapter, logits up to {scale:.1f}", f"differ by {typical:.3f}"),
        ("... at most, where bf16 tips a router's choice", f"{largest:.3f}"),
        ("adapter", _mb(run.adapter)),
        ("training", f"{trained_s:.0f} s"),
        ("merge", f"{merged_s:.1f} s"),
        ("whole demo", f"{time.monotonic() - started:.0f} s"),
        ("peak memory", f"{peak_memory_bytes(children=True) / 2**30:.1f} GiB"),
        ("the run on one page", str(run.report)),
    ]
    _print_tables(rows, facts, console)
    if changes:
        console.print("with a change of yours the demo asks only that the merge is right")
    _print_next(run.path, merged, len(texts), console)
    return _holds(before, adapted, after, learns=not changes)


def _print_next(run: Path, merged: Path, rows: int, console: Console) -> None:
    own = ["train", "gpt-oss-20b/qlora", "data.train=my.jsonl", "data.eval=null"]
    commands = [
        (["gptoss-tune", "report", str(run), "--open"], "the run on one page"),
        (["gptoss-tune", "chat", str(merged)], f"talk to it: it knows its {rows} rows alone"),
        (["gptoss-tune", *own], "20b on your own rows, on a GPU"),
    ]
    for line in next_commands(commands):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left in ``folder``; other runs may lie beside it, and stay."""
    if folder.is_dir():
        strange = sorted(path.name for path in folder.iterdir() if not _may_lie_there(path))
        if strange:
            raise RecipeError(
                f"--folder: {folder} holds '{strange[0]}', which no demo left there; choose an "
                "empty or new folder"
            )
    elif folder.exists():
        raise RecipeError(f"--folder: {folder} is a file; choose an empty or new folder")
    for name in _LEFT_BY_DEMO:
        shutil.rmtree(folder / name, ignore_errors=True)


def _may_lie_there(path: Path) -> bool:
    """Return whether ``path`` is of a demo, or a run: the tiny recipes train beside its base."""
    return path.name in _LEFT_BY_DEMO or RunFolder(path).record.is_file()


def _judge(
    name: str, model: Any, examples: Sequence[Example], texts: Sequence[str], console: Console
) -> Judgement:
    """Return ``judge`` of a model, a sign of life meanwhile, and say in a line what was found."""
    with console.status(f"{name} answers {len(texts)} rows"):
        found = judge(model, examples, texts)
    console.print(f"{name}: {found.exact:.0%} of {len(texts)} answers right, loss {found.loss:.2f}")
    return found


def judge(model: Any, examples: Sequence[Example], texts: Sequence[str]) -> Judgement:
    """Return loss, answers and prompt logits of a plain transformers model on single-turn rows."""
    import torch

    losses, weights, answers, logits = 0.0, 0.0, [], []
    for example in examples:
        ids = torch.as_tensor(example.input_ids, dtype=torch.int64)
        trained = torch.as_tensor(example.loss_weights) > 0
        start = int(trained.nonzero()[0])
        with torch.no_grad():
            scores = model(ids[None]).logits[0].float()
        token_losses = torch.nn.functional.cross_entropy(scores[:-1], ids[1:], reduction="none")
        losses += float(token_losses[trained[1:]].sum())
        weights += int(trained.sum())
        logits.append(scores[start - 1])
        answers.append(_answer(model, ids[:start]))
    exact = sum(a == t for a, t in zip(answers, texts, strict=True)) / len(texts)
    return Judgement(losses / weights, exact, answers, torch.stack(logits))


def _answer(model: Any, prompt: Any) -> str:
    """Return the final channel of the greedy answer to ``prompt``; empty when there is none."""
    import torch
    from openai_harmony import HarmonyError, Role

    from gptoss_tune.harmony.vocabulary import load_vocabulary

    generated = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        max_new_tokens=_ROOM_FOR_ANSWER,
        do_sample=False,
    )[0, len(prompt) :]
    encoding = load_vocabulary().encoding
    try:
        messages = encoding.parse_messages_from_completion_tokens(
            generated.tolist(), role=Role.ASSISTANT
        )
    except HarmonyError:
        return ""  # an untrained model writes no harmony
    finals = [message for message in messages if message.channel == "final"]
    return finals[-1].content[0].text if finals else ""  # pyright: ignore[reportAttributeAccessIssue]


def _write_base(base: Path, console: Console) -> None:
    from gptoss_tune.testing.tiny import tiny_checkpoint

    tiny_checkpoint(base, seed=0)
    console.print(f"{base}: MXFP4 experts, random weights, the real tokenizer; {_mb(base)}")


def _rows(data: DataSection, base: Path) -> tuple[list[Example], list[str]]:
    """Return the training rows as rendered for training, and the final text of each."""
    import json

    from gptoss_tune.harmony.dataset.load import sample_settings
    from gptoss_tune.harmony.formats.openai_chat import read_chat
    from gptoss_tune.harmony.render import Renderer
    from gptoss_tune.harmony.vocabulary import load_vocabulary

    renderer = Renderer(load_vocabulary(base), sample_settings(data).render)
    examples, texts = [], []
    source = data.train[0].path
    lines = Path(source).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        row = json.loads(line)
        examples += renderer.render(read_chat(row, f"{source}:{number}"))
        texts.append(row["messages"][-1]["content"])
    return examples, texts


def _plain(base: Path, adapter: Path | None = None) -> Any:
    """Load a checkpoint as any user of transformers would, fp32 on the CPU."""
    import json

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    options = {}
    if "quantization_config" in config:
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    # .float(): transformers 5.17 expands the experts to bf16 whatever the dtype.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options).float()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def _launch(recipe: Path, overrides: list[str], console: Console) -> float:
    """Train through ``accelerate launch`` and return the seconds it took."""
    config = shipped("recipes") / "accelerate" / "cpu.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    arguments = ["-m", "gptoss_tune.train", str(recipe), *overrides]
    shown = " ".join(["accelerate launch --config_file", str(config), *arguments])
    return _run([*launcher, *arguments], shown, console)


def _merge(adapter: Path, merged: Path, console: Console) -> float:
    arguments = ["merge", str(adapter), "--format", "bf16", "--out", str(merged)]
    return _run(["-m", "gptoss_tune", *arguments], f"gptoss-tune {' '.join(arguments)}", console)


def _run(arguments: list[str], shown: str, console: Console) -> float:
    console.print(f"[bold]$ {shown}[/bold]", highlight=False, soft_wrap=True)
    started = time.monotonic()
    # accelerate would pick the number of cores, which beside other work is the slowest.
    # No module comes from the current folder, in the launcher's processes either.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONSAFEPATH": "1"}
    finished = subprocess.run([sys.executable, "-P", *arguments], check=False, env=environment)
    if finished.returncode != 0:
        raise MachineError(f"`{shown}` ended with exit code {finished.returncode}; see above")
    return time.monotonic() - started


def _holds(
    before: Judgement, adapted: Judgement, merged: Judgement, *, learns: bool = True
) -> bool:
    """Return whether the merged file is what was trained, and where it ``learns``, has learnt."""
    typical, _, scale = _difference(adapted, merged)
    same = typical < _SAME_LOGITS * scale
    return same and (not learns or (merged.exact >= _LEARNT and before.exact == 0))


def _difference(adapted: Judgement, merged: Judgement) -> tuple[float, float, float]:
    """Return a row's largest logit difference, in the median and of all, and the largest logit.

    The median tells whether the merge is right. A merged weight is rounded to bf16 once, and where
    two experts are as good as tied, that lets a router choose the other one: such a row differs by
    far more with nothing wrong.
    """
    by_row = (adapted.logits - merged.logits).abs().amax(dim=-1)
    return float(by_row.median()), float(by_row.max()), float(adapted.logits.abs().max())


def _show_answers(
    examples: Sequence[Example],
    texts: Sequence[str],
    before: Judgement,
    after: Judgement,
    console: Console,
) -> None:
    import json

    table = Table(title="what it answers", title_justify="left")
    for heading in ("row", "should answer", "before", "after"):
        table.add_column(heading)
    for index in range(min(5, len(texts))):
        first, then = before.answers[index], after.answers[index]
        table.add_row(
            Path(examples[index].source).name,
            texts[index],
            json.dumps(first) if first else "(no harmony)",
            then or "(no harmony)",
        )
    console.print(table)


def _print_tables(
    rows: list[tuple[str, str, str]], facts: list[tuple[str, str]], console: Console
) -> None:
    table = Table(title="the demo in figures", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(name, value)
    console.print(grid)


def _mb(folder: Path) -> str:
    nbytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return f"{nbytes / 1e6:.1f} MB"
