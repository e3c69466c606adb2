"""Turn the JSON lines of a lease into ``results/<gpu>-<date>.md`` and README's table.

    python kernels/bench/lease/report.py kernels/bench/results/run/lines.jsonl

Lines of a dry run are no measurements: they are printed on request (``--out``), and refused as
results and in README.
"""

from __future__ import annotations

import argparse
import re
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
DRY_RUN = "**A dry run on a CPU: it checks the scripts and measures nothing.**"
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
    lines = read_lines(arguments.lines)
    out = arguments.out or RESULTS / f"{slug(lines)}.md"
    if is_dry(lines) and (arguments.out is None or RESULTS in out.resolve().parents):
        print("these lines are of a dry run on a CPU: no results, nothing for README")
        print("(--out FILE outside of kernels/bench/results shows the report)")
        return 2
    out.write_text(markdown(lines), encoding="utf-8")
    print(f"wrote {out}")
    if arguments.out is None:
        update_readme(README, lines, out)
        print(f"wrote the table of {README}")
    return 0


def is_dry(lines: list[Line]) -> bool:
    """Return whether no GPU stands behind the lines; lines that name none count as that."""
    gpus = {line["gpu"] for line in lines if "gpu" in line}
    return any(line.get("dry") for line in lines) or not gpus or "CPU" in gpus


def slug(lines: list[Line]) -> str:
    """Return ``<gpu>-<date>``, a file name."""
    env = next((line for line in lines if "gpu" in line), {"gpu": "unknown", "environment": ""})
    gpu = re.sub(r"[^a-z0-9]+", "-", env["gpu"].lower()).strip("-")
    return f"{gpu}-{env['environment'].partition(',')[0]}".rstrip("-")


def markdown(lines: list[Line]) -> str:
    """Return the whole report."""
    text = [f"# {slug(lines)}", ""]
    if is_dry(lines):
        text += [DRY_RUN, ""]
    env = [line for line in lines if line["part"] == "env"]
    text += [f"* {_shown(line)}" for line in env] + [""]
    for part, title, columns in TABLES:
        found = [line for line in lines if line["part"] == part and columns[0] in line]
        text += _section(title, found, columns + EXTRA.get(part, ()))
    steps = [line for line in lines if "step_ms" in line]
    text += _section("Training steps", steps, STEP)
    text += [f"* {_shown(line)}" for line in lines if "built" in line] + [""]
    best = [line["best"] | {"taken": line["taken"]} for line in lines if "best" in line]
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
        found = next((line for line in lines if _fits(line, want)), None)
        cell = NOT_MEASURED if found is None else shown.format(**found)
        if found is not None and found.get("right") is False:
            cell = "wrong, see the report"
        rows.append(f"| {name} | {cell} |")
    if lines:
        env = next(line["environment"] for line in lines if "environment" in line)
        note = f"{env}; the whole report: {where}."
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


def _fits(line: Line, want: Line) -> bool:
    if "not_run" in line or "built" in line or "profile" in line:
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
    return ", ".join(f"{key}: {_cell(value)}" for key, value in line.items())


if __name__ == "__main__":
    sys.exit(main())
