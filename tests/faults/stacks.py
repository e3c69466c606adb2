"""The two stacks under test: how a run of each is started, and what it leaves behind."""

import functools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

STEPS, SAVE_STEPS = 6, 2
TIMEOUT_S = 60
"""Of a rank; below the default, so that a frozen one costs a minute, not two."""
ROWS = [
    ("Capital of France?", "A city on the Seine.", "Paris"),
    ("2 + 2?", "Add them.", "4"),
    ("Opposite of hot?", "Temperature.", "cold"),
]


@dataclass(frozen=True)
class Result:
    """What a finished run left: every loss by step, and the adapter's tensors as bytes."""

    losses: dict[int, float]
    adapter: dict[str, bytes]


def staged(run: Path) -> bool:
    """Return whether files of a save of ours are in the run's staging folder, which may go."""
    try:
        return bool(os.listdir(run / ".staging"))
    except FileNotFoundError:
        return False


class Ours:
    """``gptoss_tune.train`` of a recipe."""

    name = "gptoss-tune"

    def __init__(self, work: Path, ranks: int) -> None:
        self.work, self.ranks = work, ranks
        self.recipe = work / f"recipe-{ranks}.yaml"
        self.recipe.write_text(
            f"""
model: {{name_or_path: {work / "base"}, dtype: float32}}
lora: {{rank: 2, expert_rank: 2}}
data: {{train: {work / "rows.jsonl"}, max_length: 128}}
guard: {{check_steps: 0}}
distributed: {{timeout_seconds: {TIMEOUT_S}}}
train:
  output_dir: {work / "unnamed"}
  max_steps: {STEPS}
  save_steps: {SAVE_STEPS}
  per_device_train_batch_size: {2 // ranks}
  learning_rate: 5e-3
  activation_checkpointing: none
""",
            encoding="utf-8",
        )

    def body(self, run: Path, base: Path | None = None, *overrides: str) -> None:
        """Train into ``run``; the command's exit code is raised as ``SystemExit``."""
        from gptoss_tune.errors import run_command
        from gptoss_tune.recipe import load_recipe
        from gptoss_tune.train.run import train

        settings = [f"train.output_dir={run}", *overrides]
        settings += [] if base is None else [f"model.name_or_path={base}"]
        run_command(lambda: train(load_recipe(self.recipe, settings)), debug=False)

    def command(self, run: Path) -> list[str]:
        """Return the words after a launcher's own that train into ``run``."""
        return ["-m", "gptoss_tune.train", str(self.recipe), f"train.output_dir={run}"]

    def saving(self, run: Path) -> bool:
        """Return whether a save is going on: its folder stays, empty, until the next."""
        return staged(run)

    def result(self, run: Path) -> Result:
        """Read what a finished run left."""
        from gptoss_tune.run.checkpoints import verify

        verify(run / "adapter")
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line) for line in lines]
        return Result(
            {row["step"]: row["loss"] for row in logged if "loss" in row},
            _tensors(run / "adapter" / "adapter_model.safetensors"),
        )


def _is_json(path: Path) -> bool:
    """Return whether a file is there and whole: it stands empty before it is written."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


class PlainTrl:
    """``plain_trl.train``."""

    name = "plain TRL"

    def __init__(self, work: Path, ranks: int) -> None:
        self.work, self.ranks = work, ranks

    def body(self, run: Path, base: Path | None = None) -> None:
        """Train into ``run``."""
        import plain_trl

        plain_trl.train(
            base or self.work / "base",
            conversations(),
            run,
            tokenizer(self.work / "base"),
            steps=STEPS,
            save_steps=SAVE_STEPS,
        )

    def command(self, run: Path) -> list[str]:
        """Return the words after a launcher's own that train into ``run``."""
        script = Path(__file__).with_name("plain_trl.py")
        return [str(script), str(self.work), str(run), str(STEPS), str(SAVE_STEPS)]

    def saving(self, run: Path) -> bool:
        """Return whether a save is going on: the state is the last file it writes."""
        return any(
            not _is_json(folder / "trainer_state.json") for folder in run.glob("checkpoint-*")
        )

    def result(self, run: Path) -> Result:
        """Read what a finished run left."""
        state = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))
        return Result(
            {row["step"]: row["loss"] for row in state["log_history"] if "loss" in row},
            _tensors(run / "final" / "adapter_model.safetensors"),
        )


def _tensors(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: tensor.tobytes() for name, tensor in load_file(path).items()}


def conversations() -> list[dict]:
    """Return the rows to train on, in OpenAI's format."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{question} ({i})"},
                {"role": "assistant", "content": answer, "thinking": thought},
            ]
        }
        for i in range(4)
        for question, thought, answer in ROWS
    ]


@functools.cache
def tokenizer(base: Path):
    """Return the base's tokenizer, read once and inherited by every fork."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def prepare(work: Path) -> None:
    """Import everything, write base and data, and load what every run would load again."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Transformers loads weights in threads; after a fork torch finds no pool of threads there.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    from gptoss_tune.train.entrypoint import quiet_libraries

    quiet_libraries()
    import plain_trl  # noqa: F401 - loaded for the forks
    import torch

    torch.set_num_threads(1)
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.testing.tiny import tiny_checkpoint
    from gptoss_tune.train import methods, run
    from gptoss_tune.train.preference import examples

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tiny_checkpoint(work / "base", seed=1, layers=1, experts=4, hidden=32, intermediate=64)
    lines = (json.dumps(row) + "\n" for row in conversations())
    (work / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    # The objects that each run would read from the same file, without the seconds it takes.
    tokenizer(work / "base")
    words = load_vocabulary(work / "base")
    for module in (run, methods, examples):
        module.load_vocabulary = lambda path: words
