"""Freeze what a change of structure must not change, and say what it changed.

    python tests/frozen/freeze.py record [PART...]   write tests/frozen/results/PART.json
    python tests/frozen/freeze.py check [PART...]    compute again, print what differs, exit 1 if so

The parts, all of them when none is named:

- ``runs``      losses, adapter bytes and files of short runs on a tiny base: packed, unpacked,
                merge-aware, other precisions, two processes, stopped or killed and resumed
- ``merges``    bytes of merged checkpoints, bf16 and MXFP4
- ``rendered``  token ids and loss weights of the shipped data and recipes
- ``commands``  help, a good and a bad input of every command: output, errors, exit code
- ``plans``     the plan of every shipped recipe on several cards

Paths, times, speeds and memory are masked. Losses and bytes hold for one kind of machine: the
results carry the version of torch and the CPU, and ``check`` says so when these differ. Text that
was changed on purpose is recorded again; a rename can be laid over the frozen results instead, with
``RENAMED`` in ``surface.py``, which also holds every name of the project used here.

It is no pytest test: on two cores it takes six to eight minutes, of which ``runs`` 200 to 250 s,
``merges`` and ``commands`` 70 to 100 s each, ``rendered`` and ``plans`` 15 to 20 s each. Each part
runs in a process and an empty folder of its own. Not frozen: what needs a GPU, the Hub or a server,
and ``demo``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import surface

RESULTS = Path(__file__).with_name("results")
PARTS = ("plans", "rendered", "runs", "merges", "commands")
_MOST_SHOWN = 200


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("command", choices=["record", "check"])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the process of one part: its folder
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; one of {', '.join(PARTS)}")
    if given.only:
        compute_here(given.parts[0], Path(given.only))
        return 0
    changed = 0
    for part in given.parts or PARTS:
        started = time.monotonic()
        now = compute(part)
        changed += record(part, now) if given.command == "record" else check(part, now)
        print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
    if changed:
        print(f"{changed} differences")
    return int(changed > 0)


def compute(part):
    """Return the results of a part, computed in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="frozen-") as folder:
        work = Path(folder, "work")
        work.mkdir()
        command = [sys.executable, str(Path(__file__).resolve()), "record", part]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        subprocess.run([*command, "--only", str(work)], env=environment, check=True)
        return json.loads((work / "result.json").read_text(encoding="utf-8"))


def compute_here(part, work):
    """Compute one part in this process and write it to ``work/result.json``."""
    work = work.resolve()
    surface.fixed_environment(work)
    import results_of_commands
    import results_of_runs

    results_of_runs.prepare(work)
    room = results_of_runs if part in ("runs", "merges") else results_of_commands
    body = {"machine": surface.machine(), "results": getattr(room, part)()}
    Path(work, "result.json").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")


def record(part, now):
    """Write the results of a part; returns 0 differences."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(now, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (RESULTS / f"{part}.json").write_text(text, encoding="utf-8")
    return 0


def check(part, now):
    """Print what differs from the frozen results of a part; return how many values."""
    place = RESULTS / f"{part}.json"
    if not place.is_file():
        print(f"{part}: nothing is frozen; record it first")
        return 1
    text = place.read_text(encoding="utf-8")
    for old, new in surface.RENAMED.items():
        text = text.replace(old, new)
    frozen = json.loads(text)
    if frozen["machine"] != now["machine"]:
        print(
            f"{part}: frozen on {frozen['machine']}, this is {now['machine']}: losses and "
            "bytes may differ for that reason alone"
        )
    found = list(differences(frozen["results"], now["results"], part))
    for line in found[:_MOST_SHOWN]:
        print(line)
    if len(found) > _MOST_SHOWN:
        print(f"... and {len(found) - _MOST_SHOWN} more")
    return len(found)


def differences(frozen, now, path):
    """Yield one text for each value that is not as it was, by its path."""
    if isinstance(frozen, dict) and isinstance(now, dict):
        for name in sorted(frozen.keys() | now.keys()):
            here = f"{path} / {name}"
            if name not in now:
                yield f"{here}\n  frozen: {_shown(frozen[name])}\n  now:    gone"
            elif name not in frozen:
                yield f"{here}\n  frozen: not there\n  now:    {_shown(now[name])}"
            else:
                yield from differences(frozen[name], now[name], here)
    elif isinstance(frozen, list) and isinstance(now, list):
        yield from _list_differences(frozen, now, path)
    elif frozen != now or type(frozen) is not type(now):
        yield f"{path}\n  frozen: {_shown(frozen)}\n  now:    {_shown(now)}"


def _list_differences(frozen, now, path):
    if frozen == now:
        return
    if all(isinstance(each, str) for each in [*frozen, *now]):
        import difflib

        lines = difflib.unified_diff(frozen, now, "frozen", "now", lineterm="", n=1)
        yield "\n  ".join([path, *lines])
    elif len(frozen) == len(now):
        for number, (old, new) in enumerate(zip(frozen, now, strict=True)):
            yield from differences(old, new, f"{path} [{number}]")
    else:
        yield f"{path}\n  frozen: {_shown(frozen)}\n  now:    {_shown(now)}"


def _shown(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"


if __name__ == "__main__":
    sys.exit(main())
