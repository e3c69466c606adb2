"""Kills of a DPO run: in the pass of the reference, in steps, saves, evaluations and at the end.

Each run has a cache of its own, so each computes its reference. A resumed run has to leave the
adapter, every line of metrics and the pairs before and after of the run that nothing met.
"""

import dataclasses
import functools
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import stacks
from cases import TO_END_S, Bench, Case, Outcome, last_line, wait_until
from stacks import Ours, Result

_TIMED = ("second", "runtime", "memory")
"""What of the name of a figure says that it is measured, and another one in each run."""


@dataclasses.dataclass(frozen=True)
class PreferenceResult(Result):
    """What a finished run of DPO left, beside losses and adapter.

    Attributes:
        lines: Of losses in ``metrics.jsonl``, without what is measured; of equal ones the first.
        pairs: ``pairs.json``, as text.
        debris: Files that a killed process left in the cache.
    """

    lines: list[dict[str, Any]]
    pairs: str
    debris: list[str]


class Preferences(Ours):
    """``gptoss_tune.train`` of a recipe of DPO, with held-out pairs."""

    name = "gptoss-tune dpo"

    def __init__(self, work: Path, ranks: int) -> None:
        """Write pairs and recipe."""
        super().__init__(work, ranks)
        for name, rows in (("pairs", pairs(12)), ("held-out", pairs(16)[12:])):
            lines = (json.dumps(row) + "\n" for row in rows)
            (work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        self.recipe = work / f"recipe-dpo-{ranks}.yaml"
        self.recipe.write_text(
            f"""
model: {{name_or_path: {work / "base"}, dtype: float32}}
lora: {{rank: 2, expert_rank: 2}}
method: {{name: dpo, sft_weight: 0.1}}
data: {{train: {work / "pairs.jsonl"}, eval: {work / "held-out.jsonl"}, max_length: 512}}
guard: {{check_steps: 0}}
distributed: {{timeout_seconds: {stacks.TIMEOUT_S}}}
train:
  output_dir: {work / "unnamed"}
  max_steps: {stacks.STEPS}
  save_steps: {stacks.SAVE_STEPS}
  eval_steps: {stacks.SAVE_STEPS}
  per_device_train_batch_size: {2 // ranks}
  learning_rate: 5e-3
  activation_checkpointing: none
""",
            encoding="utf-8",
        )

    def body(self, run: Path, base: Path | None = None, *overrides: str) -> None:
        """Train into ``run``, with a cache beside it."""
        os.environ["XDG_CACHE_HOME"] = str(_cache(run))
        super().body(run, base, *overrides)

    def result(self, run: Path) -> PreferenceResult:
        """Read what a finished run left."""
        plain = super().result(run)
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [
            {name: v for name, v in json.loads(line).items() if not any(w in name for w in _TIMED)}
            for line in text.splitlines()
            if "loss" in line
        ]
        return PreferenceResult(
            plain.losses,
            plain.adapter,
            # A run that was killed after its last evaluation evaluates again.
            [line for n, line in enumerate(lines) if line not in lines[:n]],
            (run / "pairs.json").read_text(encoding="utf-8"),
            [str(file) for file in _cache(run).glob("**/building-*/**/*") if file.is_file()],
        )


def pairs(count: int) -> list[dict[str, Any]]:
    """Return pairs of one rule, of different lengths, every second one with thoughts."""
    found = []
    for n in range(count):
        thought = {"thinking": f"Somebody asks for the {n}th time."} if n % 2 else {}
        answers = (f"Yes, gladly, {n} times." if n % 3 else "Gladly, yes.", "No.")
        chosen, rejected = ([{"role": "assistant", "content": said, **thought}] for said in answers)
        effort = {} if n % 2 else {"reasoning_effort": "low"}
        row = {"prompt": f"Is {n} offered?", "chosen": chosen, "rejected": rejected}
        found.append({**row, **effort})
    return found


Aim = Callable[[Bench, Path, processes.Group, random.Random], None]


def plan(kills: int) -> list[tuple[str, str, int, Case]]:
    """Return the cases: name of the fault, stack, ranks, function.

    Args:
        kills: SIGKILLs, dealt out over the parts of a run; every fifth on two ranks.
    """
    aims: dict[str, Aim] = {
        "any moment": _anywhere,
        "in the pass of the reference": _in_the_pass,
        "in the steps": _in_the_steps,
        "inside a save": _in_a_save,
        "in an evaluation": _in_an_evaluation,
        "at the end": _at_the_end,
    }
    dealt: list[tuple[str, str, int, Case]] = []
    for number in range(kills):
        round_, aim = divmod(number, len(aims))
        name = list(aims)[aim]
        case = functools.partial(kill, aims[name])
        dealt.append((f"kill -9, {name}", Preferences.name, 2 if round_ % 5 == 4 else 1, case))
    few = max(1, kills // 12)
    for name, ranks in (("the only rank", 1), ("one rank", 2)):
        fault = f"SIGTERM to {name}, in the pass of the reference"
        dealt += [(fault, Preferences.name, ranks, stop_in_the_pass)] * few
    return dealt


def selection() -> list[tuple[str, str, int, Case]]:
    """Return the few cases that a test can afford."""
    return plan(6)


def kill(aim: Aim, bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """SIGKILL to all ranks in some part of a run; where it met them is noted."""
    group = bench.start(run)
    aim(bench, run, group, chance)
    group.kill()
    return [_finished(bench, run)]


def _anywhere(bench: Bench, run: Path, group: processes.Group, chance: random.Random) -> None:
    group.wait_or_not(chance.uniform(0, bench.whole_s))


def _in_the_pass(bench: Bench, run: Path, group: processes.Group, chance: random.Random) -> None:
    wait_until(lambda: "reads" in _text(group.log), group)
    group.wait_or_not(chance.uniform(0, 0.1) * bench.whole_s)


def _in_a_save(bench: Bench, run: Path, group: processes.Group, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 3)):
        wait_until(lambda: not bench.stack.saving(run), group)
        wait_until(lambda: bench.stack.saving(run), group)
    group.wait_or_not(chance.uniform(0, 0.005) * bench.whole_s)


def _in_the_steps(bench: Bench, run: Path, group: processes.Group, chance: random.Random) -> None:
    _after_line(run, chance.choice((1, 3, 5)), group)
    group.wait_or_not(chance.uniform(0, 0.03) * bench.whole_s)


def _in_an_evaluation(
    bench: Bench, run: Path, group: processes.Group, chance: random.Random
) -> None:
    _after_line(run, chance.choice((2, 4)), group)
    group.wait_or_not(chance.uniform(0, 0.02) * bench.whole_s)


def _after_line(run: Path, step: int, group: processes.Group) -> None:
    wait_until(lambda: f'"step": {step}' in _text(run / "metrics.jsonl"), group)


def _at_the_end(bench: Bench, run: Path, group: processes.Group, chance: random.Random) -> None:
    wait_until((run / "adapter").is_dir, group)
    group.wait_or_not(chance.uniform(0, 0.15) * bench.whole_s)


def stop_in_the_pass(bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """SIGTERM to one rank in the pass: all end with the code of runs that go on."""
    group = bench.start(run)
    wait_until(lambda: "reads" in _text(group.log), group)
    group.wait_or_not(chance.uniform(0, 0.02) * bench.whole_s)
    group.signal(signal.SIGTERM, [chance.randrange(bench.stack.ranks)])
    if not group.wait(TO_END_S):
        return [Outcome("hung", last_line(group.text()))]
    codes = sorted(set(group.codes.values()))
    outcome = _finished(bench, run)
    if not set(codes) <= {0, 75}:
        return [Outcome("human", f"exit codes {codes}: {last_line(group.text())}")]
    return [Outcome(outcome.kind, outcome.note or last_line(group.text()))]


def _finished(bench: Bench, run: Path) -> Outcome:
    """Give the same command again and judge; note where the fault came."""
    met = place(run)
    outcome = bench.finish(run)
    return Outcome(outcome.kind, f"{met}: {outcome.note}".rstrip(": "))


def place(run: Path) -> str:
    """Return the part of a run in which it was killed, as far as its files say."""
    said, lines = _text(run.with_suffix(".log")), _text(run / "metrics.jsonl").splitlines()
    if "report:" in said:
        return "after its end"
    if (run / "adapter").is_dir():
        return "at the end"
    if stacks.staged(run):
        return "inside a save"
    if lines:
        step = json.loads(lines[-1])["step"] if lines[-1].endswith("}") else 0
        evaluated = any('"eval_loss"' in line and f'"step": {step}' in line for line in lines)
        saved = (run / f"checkpoint-{step}").is_dir()
        waits = step % stacks.SAVE_STEPS == 0 and not (evaluated or saved)
        return "in an evaluation" if waits else "in the steps"
    if said.count("known after") == 2:
        return "in the steps"
    return "in the pass of the reference" if "reads" in said else "before the pass"


def met(rows: list[dict]) -> str:
    """Return a sentence that says where in the run the kills met it."""
    places = Counter(
        row["note"].partition(":")[0] for row in rows if row["fault"].startswith("kill")
    )
    said = ", ".join(f"{count} {where}" for where, count in places.most_common())
    return f"Where the kills met the run: {said}."


def _cache(run: Path) -> Path:
    return run.with_name(f"{run.name}-cache")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
