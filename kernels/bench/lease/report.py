"""Turn the JSON lines of a lease into ``results/<gpu>-<date>.md`` and README's table.

    python kernels/bench/lease/report.py kernels/bench/results/run/lines.jsonl

Lines of a dry run are no measurements: they are printed on request (``--out``), and refused as
results and in README. So are lines that name no GPU, or two. Where a part ran twice, README shows
its last figures. A second run on the same card and day does not take the file of the first.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import string
import sys
from pathlib import Path
from typing import Any

from lines import read_lines

Line = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[3]
RESULTS = REPOSITORY / "kernels" / "bench" / "results"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- figures of a GPU: kernels/bench/lease/report.py -->", "<!-- end of figures -->"
NOT_MEASURED = "not measured"
COMMANDS = """```bash
bash kernels/bench/lease.sh
python kernels/bench/lease/report.py kernels/bench/results/run/lines.jsonl
```"""
# (part, title, columns): one table for each part.
TABLES = (
    ("correct", "Right against fp32", ("tokens", "experts", "rank", "base", "engine", "right")),
    (
        "op",
        "One expert layer, forward and backward",
        ("name", "tokens", "ms", "tflops", "peak_mib"),
    ),
    ("attention", "Attention", ("name", "tokens", "window", "forward_ms", "backward_ms")),
    ("loss", "Loss", ("name", "rows", "ms", "of_floor", "peak_mib", "error")),
)
EXTRA = {"correct": ("same_bits_twice", "errors"), "op": ("spread", "dx_off")}
EXTRA["attention"] = ("forward_tflops", "backward_tflops", "error")
STEP = ("model", "checkpointing", "layers", "tokens", "documents", "rank", "step_ms", "host_ms")
STEP += ("tokens_s", "tflops", "mfu", "peak_gib", "loss", "right")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--out", type=Path, help="write here and leave README as it is")
    arguments = parser.parse_args()
    if not arguments.lines.is_file():
        parser.error(f"{arguments.lines}: no such file; kernels/bench/lease.sh writes one")
    lines = read_lines(arguments.lines)
    left_out = len(arguments.lines.read_text(encoding="utf-8").splitlines()) - len(lines)
    if left_out:
        print(f"left out: {left_out} lines that were cut off or hold no figures")
    out = arguments.out or free_file(RESULTS, lines)
    obstacle = find_obstacle(lines)
    if obstacle and (arguments.out is None or RESULTS in out.resolve().parents):
        print(f"{obstacle}: no results, nothing for README")
        print("(--out FILE outside of kernels/bench/results shows the report)")
        return 2
    out.write_text(markdown(lines), encoding="utf-8")
    print(f"wrote {out}")
    if arguments.out is None:
        update_readme(README, lines, out)
        print(f"wrote the table of {README}")
    return 0


def find_obstacle(lines: list[Line]) -> str | None:
    """Return why the lines are no results of one GPU, None when they are."""
    gpus = {line["gpu"] for line in lines if line.get("gpu")}
    if any(line.get("dry") for line in lines) or "CPU" in gpus:
        return "lines of a dry run, or without a GPU, are among these"
    if not gpus:
        return "no line names the GPU that it was measured on"
    if len(gpus) > 1:
        return f"these lines are of {len(gpus)} GPUs ({', '.join(sorted(gpus))}), one is expected"
    return None


def slug(lines: list[Line]) -> str:
    """Return ``<gpu>-<date>``, a file name; the date of the last line that has one."""
    gpu = next((line["gpu"] for line in lines if line.get("gpu")), "unknown")
    day = next((line["day"] for line in reversed(lines) if line.get("day")), "")
    gpu = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{gpu}-{day}".rstrip("-")


def free_file(folder: Path, lines: list[Line]) -> Path:
    """Return where the report belongs: ``<gpu>-<date>.md``, with -2, -3, ... for another run's.

    Reported again, the same lines go to the same file.
    """
    name, text = slug(lines), markdown(lines)
    stems = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    files = (folder / f"{stem}.md" for stem in stems)
    return next(f for f in files if not f.exists() or f.read_text(encoding="utf-8") == text)


def markdown(lines: list[Line]) -> str:
    """Return the whole report."""
    text = [f"# {slug(lines)}", ""]
    if find_obstacle(lines):
        text += [f"**No results: {find_obstacle(lines)}.**", ""]
    env = [line for line in lines if line.get("part") == "env"]
    text += [f"* {_shown(line)}" for line in env] + [""]
    for part, title, columns in TABLES:
        found = [line for line in lines if line.get("part") == part and columns[0] in line]
        text += _section(title, found, columns + EXTRA.get(part, ()))
    steps = [line for line in lines if "step_ms" in line]
    text += _section("Training steps", steps, STEP)
    text += [f"* {_shown(line)}" for line in lines if "built" in line] + [""]
    best = [line["best"] | {"taken": line.get("taken")} for line in lines if "best" in line]
    columns = ("product", "n", "k", "turned", "milliseconds", "taken", "tiles")
    text += _section("Best tiles", best, columns)
    kernels = [line for line in lines if "kernel" in line]
    text += _section("Kernels by time", kernels, ("part", "kernel", "calls", "microseconds"))
    text += ["## How the parts ended", ""]
    ends = ("seconds", "exit_code", "crashed", "not_run", "tests", "test")
    for line in lines:
        if any(key in line for key in ends) and "name" not in line and "built" not in line:
            text.append(f"* {_shown(line)}")
    return "\n".join(text) + "\n"


def readme_table(lines: list[Line], where: str = "") -> str:
    """Return README's table; without lines every figure is not measured.

    Args:
        lines: Of a lease.
        where: Link to the whole report.
    """
    rows = ["| figure | measured |", "|---|---|"]
    for name, want, shown in FIGURES:
        found = next((line for line in reversed(lines) if _fits(line, want)), None)
        rows.append(f"| {name} | {_figure(found, shown)} |")
    if lines:
        told = [line["environment"] for line in lines if "environment" in line]
        note = f"{told[-1] if told else slug(lines)}; the whole report: {where}."
    else:
        note = f"No kernel of this version has run on a GPU. To measure all of it:\n\n{COMMANDS}"
    return "\n".join([*rows, "", note])


_LAYER = {"part": "op", "model": "gpt-oss-20b", "tokens": 16384}
_MS = "{ms:.2f} ms, {tflops:.0f} TFLOP/s, {peak_mib:,.0f} MiB"
_STEP_SHOWN = "{tokens_s:,} tokens/s, {step_ms:,.0f} ms, {peak_gib:.1f} GiB, {layers} layers"
FIGURES = (
    ("expert layer, ours, MXFP4, fused", _LAYER | {"name": "ours, MXFP4, fused"}, _MS),
    ("expert layer, ours, MXFP4, grouped_mm", _LAYER | {"name": "ours, MXFP4, grouped_mm"}, _MS),
    (
        "expert layer, transformers grouped_mm + PEFT, bf16",
        _LAYER | {"name": "transformers grouped_mm + PEFT"},
        _MS,
    ),
    (
        "expert layer, split LoRA on grouped_mm, bf16",
        _LAYER | {"name": "split LoRA on grouped_mm, bf16 base"},
        _MS,
    ),
    (
        "expert layer, Axolotl scattermoe_lora, bf16",
        _LAYER | {"name": "Axolotl scattermoe_lora"},
        _MS,
    ),
    (
        "step of 20b, no checkpointing",
        {"part": "step20b", "model": "gpt-oss-20b", "checkpointing": "none"},
        _STEP_SHOWN,
    ),
    (
        "step of 20b, full checkpointing",
        {"part": "step20b", "model": "gpt-oss-20b", "checkpointing": "full"},
        _STEP_SHOWN,
    ),
    (
        "step of 120b, r 8, full checkpointing",
        {"part": "step120b", "model": "gpt-oss-120b", "checkpointing": "full"},
        _STEP_SHOWN,
    ),
    (
        "attention with sinks, ours, full layer, forward / backward",
        {"part": "attention", "name": "ours, triton", "tokens": 16384, "window": None},
        "{forward_tflops:.0f} / {backward_tflops:.0f} TFLOP/s",
    ),
    (
        "loss, ours, against the bare products of the head",
        {"part": "loss", "name": "ours, triton", "rows": 16384},
        "{of_floor:.2f} x",
    ),
)
"""Name, the fields of the line that holds it, and how it is shown."""


def update_readme(file: Path, lines: list[Line], report: Path) -> None:
    """Write the table between its two marks.

    Raises:
        ValueError: A mark is missing.
    """
    text = file.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{file} needs one line {BEGIN!r} and one line {END!r} after it")
    before, _, rest = text.partition(BEGIN)
    where = f"[{report.name}](kernels/bench/results/{report.name})"
    table = readme_table(lines, where)
    file.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _figure(line: Line | None, shown: str) -> str:
    """Return README's cell of a line; a field that is missing or no number was not measured."""
    if line is None:
        return NOT_MEASURED
    if line.get("right") is False:
        return "wrong, see the report"
    fields = [line.get(field) for _, field, _, _ in string.Formatter().parse(shown) if field]
    numbers = all(isinstance(f, int | float) and math.isfinite(f) for f in fields)
    return shown.format(**line) if numbers else NOT_MEASURED


def _fits(line: Line, want: Line) -> bool:
    if "built" in line or "profile" in line:
        return False
    if "not_run" in line and line.get("right") is not False:
        return False
    return all(key in line and line[key] == value for key, value in want.items())


def _section(title: str, lines: list[Line], columns: tuple[str, ...]) -> list[str]:
    text = [f"## {title}", ""]
    if not lines:
        return [*text, f"{NOT_MEASURED}.", ""]
    text += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for line in lines:
        cells = [_cell(line.get(column)) for column in columns]
        if "not_run" in line:
            cells[-1] = f"not run: {_cell(line['not_run'])}"
        text.append(f"| {' | '.join(cells)} |")
    return [*text, ""]


def _cell(value: object) -> str:
    if value is None:
        return ""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|")


def _shown(line: Line) -> str:
    """Return a line's own fields; GPU and day are in the title."""
    own = {key: value for key, value in line.items() if key not in ("gpu", "day", "dry")}
    return ", ".join(f"{key}: {_cell(value)}" for key, value in own.items())


if __name__ == "__main__":
    sys.exit(main())
