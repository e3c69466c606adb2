"""Count how runs survive faults, beside plain TRL: ``python tests/faults/run_faults.py``.

Every case runs into a fault, gives the same command again and compares every loss and the adapter
with those of a run without a fault. Not collected by pytest; ``test_faults.py`` is a selection.
"""

import argparse
import functools
import json
import os
import platform
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases
import preferences
import processes
import reinforcement
import stacks
import surroundings
from rich.console import Console
from rich.table import Table

OUTCOMES = ("tried", "exact", "refused", "told", "silent", "human", "hung")
GOOD = ("exact", "refused", "told")
TITLES = {"human": "needs a human"}
METHODS = {
    "dpo": (preferences, "Preferences"),
    "grpo": (reinforcement, "Reinforcement"),
}
"""Faults of the methods that have their own, and their titles."""


def plan(kills: int, peers: int) -> list[tuple[str, str, int, cases.Case]]:
    """Return the cases: name of the fault, stack, ranks, function.

    Args:
        kills: SIGKILLs of our runs: half anywhere, half inside saves, a quarter on two ranks.
        peers: One in how many of the many-times cases plain TRL runs, which takes longer.
    """
    ours, trl = stacks.Ours.name, stacks.PlainTrl.name
    wanted: list[tuple[str, str, int, cases.Case]] = []

    def add(name: str, ranks: int, count: int, case: cases.Case) -> None:
        wanted.extend([(name, ours, ranks, case)] * count)
        wanted.extend([(name, trl, ranks, case)] * (-(-count // peers)))

    for ranks, share in ((1, 3), (2, 1)):
        add("kill -9, any moment", ranks, kills * share // 8, cases.kill_anywhere)
        add("kill -9, inside a save", ranks, kills * share // 8, cases.kill_in_a_save)
    few = max(1, kills // 40)
    wanted.append(
        ("crash image of a save", ours, 1, functools.partial(cases.crash_images, most=40))
    )
    wanted.append(("crash image of a save", trl, 1, functools.partial(cases.crash_images, most=12)))
    wanted.append(("file cut, emptied, flipped, missing", ours, 1, cases.damage))
    wanted.append(
        ("file cut, emptied, flipped, missing", trl, 1, functools.partial(cases.damage, most=8))
    )
    for number, name in (
        (signal.SIGTERM, "SIGTERM to one rank"),
        (signal.SIGKILL, "kill -9 of one rank of two"),
        (signal.SIGSTOP, "one rank of two frozen"),
    ):
        add(name, 2, few, functools.partial(cases.signal_one, number))
    add("SIGTERM to the only rank", 1, few, functools.partial(cases.signal_one, signal.SIGTERM))
    add("SIGTERM to all ranks", 2, few, cases.signal_all)
    add("SIGTERM to the launcher", 2, 1, cases.signal_launcher)
    add("disk full in a save", 1, 2 * few, cases.disk_full)
    add("base cut, without a tensor, with NaN", 1, 1, cases.bad_base)
    return wanted + around(few)


def around(count: int) -> list[tuple[str, str, int, cases.Case]]:
    """Return the cases of our runs alone, ``count`` of each."""
    hang_up, user = (
        functools.partial(cases.signal_one, n) for n in (signal.SIGHUP, signal.SIGUSR1)
    )
    kinds = [
        ("SIGHUP to the only rank", 1, hang_up),
        ("SIGUSR1 to the only rank", 1, user),
        ("power loss after a checkpoint", 1, surroundings.power_loss),
        ("lines of metrics damaged", 1, surroundings.damaged_lines),
        ("rendered data damaged", 1, surroundings.rendered_data),
        ("base replaced between kill and resume", 1, surroundings.other_base),
        ("finished adapter damaged", 1, surroundings.damaged_adapter),
        ("ranks started with different things", 2, surroundings.ranks_that_differ),
        ("a disk of one rank of two hangs", 2, surroundings.disk_hangs),
    ]
    return [(name, stacks.Ours.name, ranks, case) for name, ranks, case in kinds] * count


def selection() -> list[tuple[str, str, int, cases.Case]]:
    """Return the few cases of our runs that a test can afford."""
    ours = stacks.Ours.name
    term, frozen = (
        functools.partial(cases.signal_one, n) for n in (signal.SIGTERM, signal.SIGSTOP)
    )
    return [
        ("kill -9, any moment", ours, 1, cases.kill_anywhere),
        ("kill -9, inside a save", ours, 1, cases.kill_in_a_save),
        ("kill -9, inside a save", ours, 2, cases.kill_in_a_save),
        ("crash image of a save", ours, 1, functools.partial(cases.crash_images, most=3)),
        ("file cut, emptied, flipped, missing", ours, 1, functools.partial(cases.damage, most=3)),
        ("SIGTERM to one rank", ours, 2, term),
        ("one rank of two frozen", ours, 2, frozen),
        ("power loss after a checkpoint", ours, 1, surroundings.power_loss),
        ("rendered data damaged", ours, 1, surroundings.rendered_data),
    ]


def work_off(
    todo: list[tuple[int, tuple]], benches: dict, work: Path, seed: int, out: Path
) -> None:
    """Run a share of the cases in this process, one line of JSON for each outcome."""
    with out.open("a", encoding="utf-8") as stream:
        for number, (name, stack, ranks, case) in todo:
            run = work / f"case-{number}"
            begun = time.monotonic()
            found = case(benches[stack, ranks], run, random.Random(f"{seed} {number}"))
            for outcome in found:
                row = {"fault": name, "stack": stack, "ranks": ranks, **vars(outcome)}
                row["seconds"] = round(time.monotonic() - begun, 1)
                stream.write(json.dumps(row) + "\n")
            stream.flush()
            if all(outcome.kind in GOOD for outcome in found):  # else it is worth a look
                for left in (run, run.with_name(f"{run.name}-cache")):
                    shutil.rmtree(left, ignore_errors=True)


def run(
    wanted: list[tuple[str, str, int, cases.Case]], seed: int, jobs: int, work: Path
) -> list[dict]:
    """Run the cases, some at a time, and return their outcomes.

    Raises:
        SystemExit: A process of this script failed, so cases are missing.
    """
    stacks.prepare(work)
    processes.settle()
    pairs = {(stack, ranks) for _, stack, ranks, _ in wanted}
    known = (stacks.Ours, stacks.PlainTrl, preferences.Preferences, reinforcement.Reinforcement)
    kinds = {kind.name: kind for kind in known}
    benches = {(s, r): cases.prepare(kinds[s](work, r)) for s, r in sorted(pairs)}
    numbered = list(enumerate(wanted))
    random.Random(seed).shuffle(numbered)
    outs = [work / f"outcomes-{job}.jsonl" for job in range(jobs)]
    pids = []
    for job, out in enumerate(outs):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work_off(numbered[job::jobs], benches, work, seed, out)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(codes):
        raise SystemExit(f"this script failed, and cases are missing; others are in {work}/*.jsonl")
    lines = [line for out in outs if out.exists() for line in out.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def counts(rows: list[dict]) -> dict[tuple[str, str], Counter]:
    """Return the outcomes counted by fault and stack."""
    found: dict[tuple[str, str], Counter] = {}
    for row in rows:
        counter = found.setdefault((row["fault"], row["stack"]), Counter())
        counter.update(("tried", row["kind"]))
    return found


def table(rows: list[dict]) -> Table:
    """Return the table of a terminal."""
    drawn = Table("fault", "stack", *(TITLES.get(name, name) for name in OUTCOMES))
    for (fault, stack), counter in sorted(counts(rows).items()):
        drawn.add_row(fault, stack, *(str(counter[name] or "") for name in OUTCOMES))
    return drawn


def markdown(rows: list[dict], title: str, conditions: str) -> str:
    """Return the table as a page, with its title and conditions."""
    found = counts(rows)
    names = [TITLES.get(name, name) for name in OUTCOMES]
    lines = [title, "", conditions, ""]
    lines += [f"| fault | stack | {' | '.join(names)} |", f"|---|---|{'---:|' * len(names)}"]
    for (fault, stack), counter in sorted(found.items()):
        figures = " | ".join(str(counter[name] or "") for name in OUTCOMES)
        lines.append(f"| {fault} | {stack} | {figures} |")
    for stack in sorted({stack for _, stack in found}):
        total = sum((counter for (_, s), counter in found.items() if s == stack), Counter())
        figures = " | ".join(f"**{total[name] or 0}**" for name in OUTCOMES)
        lines.append(f"| **all** | {stack} | {figures} |")
    return "\n".join(lines) + "\n"


def conditions(chosen: argparse.Namespace, cases_run: int, minutes: float) -> str:
    """Return how the cases were run, and what counts as what."""
    import torch
    import transformers
    import trl

    method = "" if chosen.method == "sft" else f"--method {chosen.method} "
    every = stacks.SAVE_STEPS
    compared = "every loss and the adapter are"
    if chosen.method == "dpo":
        compared = "adapter, lines of metrics (but for what is measured) and `pairs.json` are"
    if chosen.method == "grpo":
        every = f"step, phases of {reinforcement.UPDATES}"
        compared = "adapter, episodes, rewards and lines of metrics (but for what is measured) are"
    return (
        f"`python tests/faults/run_faults.py {method}--kills {chosen.kills} --seed {chosen.seed} "
        f"--jobs {chosen.jobs}` on {os.cpu_count()} CPU cores, {time.strftime('%Y-%m-%d')}: "
        f"{cases_run} cases in {minutes:.0f} minutes. Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, TRL {trl.__version__}, "
        f"gloo; a gpt-oss with one layer and random weights, {stacks.STEPS} steps, a checkpoint "
        f"every {every}. After the fault the same command is given once more, and "
        f"{compared} compared with those of a run without a fault. Refused: named and not used. "
        "Told: an exact adapter, with the lines of metrics that are lost named."
    )


def main() -> None:
    """Read the arguments, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=("sft", *METHODS), default="sft", help="of our runs")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs of our runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--peers", type=int, default=8, help="plain TRL runs one in N of the many")
    parser.add_argument("--only", default="", help="cases whose 'fault / stack' holds this text")
    parser.add_argument("--work", type=Path, default=Path("/tmp/gptoss-tune-faults"))
    parser.add_argument("--json", type=Path, help="every outcome, one JSON object a line")
    parser.add_argument("--selection", action="store_true", help="the few cases of the tests")
    parser.add_argument("--timeout", type=int, default=stacks.TIMEOUT_S, help="of a rank, in s")
    parser.add_argument(
        "--join", type=Path, nargs="*", default=(), help="add outcomes of other calls' --json"
    )
    parser.add_argument("--markdown", type=Path, help="the table as a page")
    chosen = parser.parse_args()
    begun = time.monotonic()
    stacks.TIMEOUT_S = chosen.timeout
    wanted = selection() if chosen.selection else plan(chosen.kills, chosen.peers)
    if chosen.method in METHODS:
        of_method = METHODS[chosen.method][0]
        wanted = of_method.selection() if chosen.selection else of_method.plan(chosen.kills)
    wanted = [case for case in wanted if chosen.only in f"{case[0]} / {case[1]}"]
    rows = run(wanted, chosen.seed, chosen.jobs, chosen.work)
    if chosen.json:
        chosen.json.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for path in chosen.join:
        rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if chosen.markdown:
        said = conditions(chosen, len(rows), (time.monotonic() - begun) / 60)
        title = "# Faults"
        if chosen.method in METHODS:
            title = f"## {METHODS[chosen.method][1]}"
            said = f"{said} {preferences.met(rows)}"
        chosen.markdown.write_text(markdown(rows, title, said), encoding="utf-8")
    console = Console()
    console.print(table(rows))
    for row in rows:
        if row["kind"] not in GOOD and row["stack"] == stacks.Ours.name:
            console.print(f"{row['fault']}, {row['ranks']} ranks: {row['kind']}: {row['note']}")


if __name__ == "__main__":
    main()
