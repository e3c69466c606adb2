"""The learning curve of a reinforcement run as a page: ``draw_learning.py RUN PAGE.html``.

Prints the size of the picture, for a browser's ``--window-size``. Every number is one of the run's
``metrics.jsonl``; nothing is smoothed but the training reward, whose points stay visible.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gptoss_tune.report.parts.plot import Line, chart
from gptoss_tune.report.parts.style import STYLE

_WIDTH, _HEIGHT = 900, 490
_TRAINED, _HELD_OUT = "reward", "eval_reward"


def main() -> None:
    """Write the page, print width and height in px."""
    run, page = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    trained = [(row["step"], row[_TRAINED]) for row in rows if _TRAINED in row]
    held_out = sorted({row["step"]: row[_HELD_OUT] for row in rows if _HELD_OUT in row}.items())
    if not trained or not held_out:
        raise SystemExit(f"{run}/metrics.jsonl: has no {_TRAINED} or no {_HELD_OUT} to draw")
    (first, before), (last, after) = held_out[0], held_out[-1]
    figure = chart(
        f"Held-out success: {before:.1%} at step {first}, {after:.1%} at step {last}",
        [
            Line("mean reward of the step's episodes, sampled", trained, "var(--c1)"),
            Line("success on held-out questions", held_out, "var(--c2)", dash="6 3", dots=True),
        ],
        unit="share",
        holds=(0.0, 1.0),
    )
    figure = figure.partition("<details>")[0] + "</figure>"  # a picture has nothing to unfold
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><style>{STYLE}\n'
        f"body {{ max-width: none; margin: 0; padding: 12px; width: {_WIDTH - 24}px }}\n"
        f"</style>{figure}\n",
        encoding="utf-8",
    )
    sys.stdout.write(f"{_WIDTH},{_HEIGHT}\n")


if __name__ == "__main__":
    main()
