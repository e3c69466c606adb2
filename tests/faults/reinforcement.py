"""Kills of a GRPO run: in a phase of rollouts, in steps, saves, evaluations and at the end.

A resumed run has to leave the adapter, the episodes with their rewards, and every line of metrics
of the run that nothing met. The tiny base says nothing that is harmony, so the reward is a number
made of the episode's seed: groups differ, every step has a gradient, and what was drawn is compared
as text.
"""

import dataclasses
import functools
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import stacks
from cases import Bench, Case, Outcome, wait_until
from stacks import Ours, Result

from gptoss_tune.environments.environment import Outcome as Played

_TIMED = ("second", "runtime", "memory")
"""What of the name of a figure says that it is measured, and another one in each run."""
GROUPS, EPISODES, UPDATES = 3, 4, 2
CHUNKS = GROUPS * UPDATES
"""Of a phase: a group each."""


class Seeded:
    """An environment that rewards by the episode's seed, which nobody could learn."""

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Ask what the row asks."""
        self._seed = seed

    def tools(self) -> list[Any]:
        """Offer none."""
        return []

    def reward(self, outcome: Played) -> float:
        """Return one of five numbers."""
        return zlib.crc32(str(self._seed).encode()) % 5 / 4


@dataclasses.dataclass(frozen=True)
class RolloutResult(Result):
    """What a finished run of GRPO left, beside losses and adapter.

    Attributes:
        lines: Of figures in ``metrics.jsonl``, without what is measured; of equal ones the first.
        episodes: Those of each step, without what is measured.
        debris: Files of a phase that is over.
    """

    lines: list[dict[str, Any]]
    episodes: dict[str, list[dict[str, Any]]]
    debris: list[str]


class Reinforcement(Ours):
    """``gptoss_tune.train`` of a recipe of GRPO, with held-out prompts."""

    name = "gptoss-tune grpo"

    def __init__(self, work: Path, ranks: int) -> None:
        """Write prompts and recipe."""
        super().__init__(work, ranks)
        for name, numbers in (("prompts", range(9)), ("held-out", range(9, 11))):
            rows = ({"prompt": f"Name {n} things.", "reasoning_effort": "low"} for n in numbers)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (work / f"{name}.jsonl").write_text(text, encoding="utf-8")
        self.recipe = work / f"recipe-grpo-{ranks}.yaml"
        self.recipe.write_text(
            f"""
model: {{name_or_path: {work / "base"}, dtype: float32}}
lora: {{rank: 2, expert_rank: 2}}
method:
  name: grpo
  prompts_per_step: {GROUPS}
  group_size: {EPISODES}
  rollout_batch: {EPISODES}
  max_new_tokens: 6
  rewards: {{environment: 1}}
  overlong: counted
  updates: {UPDATES}
data: {{train: {work / "prompts.jsonl"}, eval: {work / "held-out.jsonl"}, max_length: 128}}
guard: {{check_steps: 0}}
distributed: {{timeout_seconds: {stacks.TIMEOUT_S}}}
train:
  output_dir: {work / "unnamed"}
  max_steps: {stacks.STEPS}
  save_steps: 1
  eval_steps: {stacks.SAVE_STEPS}
  per_device_train_batch_size: 2
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

        recipe = load_recipe(self.recipe, [f"train.output_dir={run}", *overrides])
        played_by = f"{__name__}:{Seeded.__name__}"
        run_command(lambda: train(recipe, environment=played_by), debug=False)

    def result(self, run: Path) -> RolloutResult:
        """Read what a finished run left."""
        plain = super().result(run)
        lines = [_unmeasured(line) for line in _rows(run / "metrics.jsonl")]
        told = [line for line in lines if "reward" in line or "eval_reward" in line]
        episodes = {
            file.name: [_unmeasured(row) for row in _rows(file)]
            for file in sorted((run / "rollouts").glob("*.jsonl"))
        }
        if len({row["rewards"]["total"] for rows in episodes.values() for row in rows}) < 2:
            raise ValueError("all episodes have the same reward: this run shows nothing")
        return RolloutResult(
            plain.losses,
            plain.adapter,
            # A run that was killed after its last evaluation evaluates again.
            [line for n, line in enumerate(told) if line not in told[:n]],
            episodes,
            [str(file) for file in (run / ".rollouts").glob("*")],
        )


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not any(w in name for w in _TIMED)}


Aim = Callable[[Bench, Path, processes.Group, random.Random], None]


def plan(kills: int) -> list[tuple[str, str, int, Case]]:
    """Return the cases: name of the fault, stack, ranks, function.

    Args:
        kills: SIGKILLs, dealt out over the parts of a run; every fifth round on two ranks.
    """
    aims: dict[str, Aim] = {
        "any moment": _anywhere,
        "in the first rollouts": _in_the_first_rollouts,
        "in later rollouts": _in_later_rollouts,
        "between two updates": _between_updates,
        "inside a save": _in_a_save,
        "at the end": _at_the_end,
    }
    dealt: list[tuple[str, str, int, Case]] = []
    for number in range(kills):
        round_, aim = divmod(number, len(aims))
        name = list(aims)[aim]
        case = functools.partial(kill, aims[name])
        dealt.append((f"kill -9, {name}", Reinforcement.name, 2 if round_ % 5 == 4 else 1, case))
    return dealt


def selection() -> list[tuple[str, str, int, Case]]:
    """Return the few cases that a test can afford."""
    wanted = ("in later rollouts", "between two updates", "inside a save")
    return [case for case in plan(6) if case[0].removeprefix("kill -9, ") in wanted]


def kill(aim: Aim, bench: Bench, run: Path, chance: random.Random) -> list[Outcome]:
    """SIGKILL to all ranks in some part of a run; where it met them is noted."""
    group = bench.start(run)
    aim(bench, run, group, chance)
    group.kill()
    met = place(run)
    outcome = bench.finish(run)
    return [Outcome(outcome.kind, f"{met}: {outcome.note}".rstrip(": "))]


def _anywhere(bench: Bench, run: Path, group: processes.Group, chance: random.Random) -> None:
    group.wait_or_not(chance.uniform(0, bench.whole_s))


def _chunks(run: Path) -> int:
    return len(list((run / ".rollouts").glob("*")))


def _in_the_first_rollouts(
    bench: Bench, run: Path, group: processes.Group, chance: random.Random
) -> None:
    chunks = chance.randint(1, CHUNKS - 1)
    wait_until(lambda: _chunks(run) >= chunks, group)


def _in_later_rollouts(
    bench: Bench, run: Path, group: processes.Group, chance: random.Random
) -> None:
    _after_line(run, chance.choice((2, 4)), group)
    wait_until(lambda: _chunks(run) == 0, group)
    chunks = chance.randint(1, CHUNKS - 1)
    wait_until(lambda: _chunks(run) >= chunks, group)
    group.wait_or_not(chance.uniform(0, 0.01) * bench.whole_s)


def _between_updates(
    bench: Bench, run: Path, group: processes.Group, chance: random.Random
) -> None:
    _after_line(run, chance.choice((1, 3, 5)), group)
    group.wait_or_not(chance.uniform(0, 0.02) * bench.whole_s)


def _in_a_save(bench: Bench, run: Path, group: processes.Group, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4)):
        wait_until(lambda: not bench.stack.saving(run), group)
        wait_until(lambda: bench.stack.saving(run), group)
    group.wait_or_not(chance.uniform(0, 0.004) * bench.whole_s)


def _after_line(run: Path, step: int, group: processes.Group) -> None:
    wait_until(lambda: f'"step": {step}' in _text(run / "metrics.jsonl"), group)


def _at_the_end(bench: Bench, run: Path, group: processes.Group, chance: random.Random) -> None:
    wait_until((run / "adapter").is_dir, group)
    group.wait_or_not(chance.uniform(0, 0.15) * bench.whole_s)


def place(run: Path) -> str:
    """Return the part of a run in which it was killed, as far as its files say."""
    lines = [line for line in _text(run / "metrics.jsonl").splitlines() if line.endswith("}")]
    steps = [json.loads(line)["step"] for line in lines if '"reward"' in line or '"loss"' in line]
    if (run / "adapter").is_dir():
        return "at the end"
    if stacks.staged(run):
        return "inside a save"
    if 0 < _chunks(run) < CHUNKS:
        return "in later rollouts" if steps else "in the first rollouts"
    if not run.is_dir() or not (steps or _chunks(run)):
        return "before the rollouts"
    return "between two updates" if steps and steps[-1] % UPDATES else "between rollouts and a step"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
