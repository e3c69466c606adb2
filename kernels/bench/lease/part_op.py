"""One expert layer, ours by engine beside the others, and where the time of ours goes."""

from __future__ import annotations

from lines import Lines, dry
from measure import SHAPES, copy_peak, kernel_times
from ops_experts import candidates, decode_figure, figures, random_layer

PROFILED = ("ours, MXFP4, fused", "ours, MXFP4, grouped_mm")
DRY_LEAVES_OUT = (
    "drop Z",
    "merge-aware",
    "packed",
    "ours, bf16",
    "ours, MXFP4, grouped_mm",
    "quack",
)
# At 16k rows the packed engine decodes every weight hundreds of times: it is for few rows.
LEAVES_OUT = {16384: ("packed",), 4096: ("drop Z", "merge-aware")}


def run(name: str, lines: Lines) -> None:
    shape = SHAPES["least" if dry() else "gpt-oss-20b"]
    rank, runs = (4, 1) if dry() else (16, 7)
    lines.say(**decode_figure(shape, copy_peak()))
    for tokens in (4,) if dry() else (16384, 4096):
        left_out = DRY_LEAVES_OUT if dry() else LEAVES_OUT[tokens]
        for figure in figures(shape, tokens, rank, runs, leave_out=left_out):
            lines.say(**figure)
        if tokens != 16384:
            continue
        for candidate, call in candidates(shape, random_layer(shape, tokens, rank)):
            if candidate in PROFILED and not isinstance(call, str):
                for kernel in kernel_times(call):
                    lines.say(profile=candidate, **kernel)
            if candidate == PROFILED[-1]:
                break
