"""The folder of a run: every file in it, under the one name that the house has for it.

A run is read by many: training continues it, an export takes its adapter, the report draws it, the
Hub gets its card. Each of them asks here where a file stands, so that a name is written once. What
the files hold is read beside this module: ``record`` reads run.json, ``jsonl`` the metrics,
``checkpoints`` what is staged and published.

A folder with paths and nothing else was chosen over one object that also reads and writes: half of
the readers want one file of a folder that holds little else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gptoss_tune.errors import RecipeError

RECORD, RECIPE = "run.json", "recipe.yaml"
RUN_CARD = "run_card.json"
"""What of a record goes to the Hub with an adapter."""
MERGE_REPORT = "merge_report.json"
"""What is in a merged model, beside its weights."""
METRICS, LAYERS = "metrics.jsonl", "layers.jsonl"
ADAPTER = "adapter"
REPORT = "report.html"
SAFETY_PAGE = "safety.html"
_DATA_LINES = "data.json"
PAIRS = "pairs.json"
_EVALUATIONS = "evaluation"
_BENCHMARKS = "benchmarks"
_NONFINITE = "nonfinite"
_ROLLOUTS, LEDGER = "rollouts", ".rollouts"
WANDB, _TRACKIO, _TENSORBOARD = "wandb", "trackio", "tensorboard"
LOCK, STAGING = ".lock", ".staging"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""The name of a published checkpoint, as Transformers' trainer gives it, with its step."""
EVALUATION = re.compile(r"step-(\d{1,15})\.json")
"""The name of one evaluation, with its step."""
ROLLOUT = re.compile(r"step-(\d{1,15})\.jsonl")
"""The name of the episodes of one step, with it."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and what lies in it, whether it is there yet or not.

    ::

        RUN/
          run.json           what was run, on what, and how it ended (record)
          recipe.yaml        the resolved recipe, a recipe again (recipe)
          metrics.jsonl      every logged line (metrics)
          layers.jsonl       what each layer did (layers)
          data.json          four bytes for each line of the data (data_lines)
          pairs.json         of a preference run: some pairs, before and after (pairs)
          adapter/           the trained adapter, as PEFT writes it (adapter)
          checkpoint-N/      complete or absent (checkpoint)
          evaluation/        step-N.json, one file an evaluation (evaluations)
          benchmarks/        NAME.json, one file a benchmark (benchmarks)
          rollouts/          step-N.jsonl, the episodes that step N learns from (rollouts)
          nonfinite/         what the guard left out (nonfinite)
          report.html        the run on one page (report)
          safety.html        the page that a reviewer of its safety signs (safety_page)
          wandb/ trackio/ tensorboard/
                             what trackers keep here (wandb, trackio, tensorboard)
          .lock .staging/    while a process writes (lock, staging)
          .rollouts/         episodes of a phase that is not trained yet (ledger)

    Attributes:
        path: The folder, ``train.output_dir`` of its recipe.
    """

    path: Path

    @property
    def record(self) -> Path:
        """What was run, on what, and how it ended."""
        return self.path / RECORD

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / RECIPE

    @property
    def metrics(self) -> Path:
        """Every logged line, one JSON object each."""
        return self.path / METRICS

    @property
    def layers(self) -> Path:
        """What each layer's adapters and experts did, one JSON object a line."""
        return self.path / LAYERS

    @property
    def data_lines(self) -> Path:
        """A mark of each line of the training data."""
        return self.path / _DATA_LINES

    @property
    def pairs(self) -> Path:
        """Some pairs of a preference run, with their log-probabilities before and after."""
        return self.path / PAIRS

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter."""
        return self.path / ADAPTER

    @property
    def report(self) -> Path:
        """The run on one page."""
        return self.path / REPORT

    @property
    def safety_page(self) -> Path:
        """What a reviewer of the run's safety signs."""
        return self.path / SAFETY_PAGE

    @property
    def evaluations(self) -> Path:
        """The folder of the evaluations."""
        return self.path / _EVALUATIONS

    @property
    def benchmarks(self) -> Path:
        """The folder of the benchmarks that the run was asked in."""
        return self.path / _BENCHMARKS

    @property
    def rollouts(self) -> Path:
        """The folder of the episodes that were learnt from, and of those held out."""
        return self.path / _ROLLOUTS

    @property
    def ledger(self) -> Path:
        """The folder of the episodes of a phase that is not trained yet."""
        return self.path / LEDGER

    @property
    def nonfinite(self) -> Path:
        """The folder of what the guard left out of a step."""
        return self.path / _NONFINITE

    @property
    def wandb(self) -> Path:
        """The folder in which wandb keeps what it could not send."""
        return self.path / WANDB

    @property
    def trackio(self) -> Path:
        """The folder of trackio's database."""
        return self.path / _TRACKIO

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's events."""
        return self.path / _TENSORBOARD

    @property
    def lock(self) -> Path:
        """There while a process writes: that process and its host."""
        return self.path / LOCK

    @property
    def staging(self) -> Path:
        """The folder in which a checkpoint or adapter is prepared."""
        return self.path / STAGING

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of ``step``; ``CHECKPOINT`` matches its name."""
        return self.path / f"checkpoint-{step}"

    def evaluation(self, step: int) -> Path:
        """Return the file of the evaluation at ``step``; ``EVALUATION`` matches its name."""
        return self.evaluations / f"step-{step}.json"

    def rollout(self, step: int) -> Path:
        """Return the file of the episodes of ``step``; ``ROLLOUT`` matches its name."""
        return self.rollouts / f"step-{step}.jsonl"

    def benchmark(self, name: str) -> Path:
        """Return the file of the benchmark ``name``."""
        return self.benchmarks / f"{name}.json"


def refuse_no_run(folder: Path) -> None:
    """Refuse a folder in which no run was begun.

    Raises:
        RecipeError: It holds neither a record nor metrics.
    """
    files = RunFolder(folder)
    if not files.record.is_file() and not files.metrics.is_file():
        raise RecipeError(
            f"{folder}: holds no run (neither {RECORD} nor {METRICS}); give the folder that a "
            "recipe names as train.output_dir"
        )
