"""The layers of one run: gradient norms, expert load, and how far the load has drifted.

The drift of a layer is the share of routed tokens that would have to go to another expert to give
the load of step 1, half the sum of absolute differences. Rows differ from step to step, so it is
above 0 for a router that never changed: the least to be expected is what drawing as many tokens at
random would give, and the page draws it beside.

L layers, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptoss_tune.report.parts.heat import Cell, Scale, heat_map
from gptoss_tune.report.parts.plot import Line, chart
from gptoss_tune.report.parts.read import Run, listing, mapping
from gptoss_tune.report.parts.style import colour
from gptoss_tune.report.parts.text import figure, number, table

MOST_COLUMNS = 480
"""Columns of a map over steps; the highest norm of each piece of the run is kept."""
_MOST_LAYERS_LISTED = 40


@dataclass(frozen=True)
class Load:
    """How often each expert was chosen, in some steps.

    Attributes:
        step: The last of them.
        shares: ``[L][E]`` of the layer's choices; rows sum to 1.
        choices: Choices of a layer, the mean over layers.
    """

    step: int
    shares: list[list[float]]
    choices: float

    @property
    def size(self) -> tuple[int, int]:
        """Layers and experts."""
        return len(self.shares), len(self.shares[0])


def loads(run: Run) -> list[Load]:
    """Return the recorded loads by step, the damaged ones left out."""
    found = []
    for line in run.layers:
        rows = [
            [max(0.0, number(n) or 0.0) for n in listing(row)]
            for row in listing(line.get("expert_load"))
        ]
        sums = [sum(row) for row in rows]
        if rows and min(sums) > 0 and len({len(row) for row in rows}) == 1:
            shares = [[n / total for n in row] for row, total in zip(rows, sums, strict=True)]
            found.append(Load(line["step"], shares, sum(sums) / len(sums)))
    return [load for load in found if load.size == found[0].size]


def drift(before: Load, after: Load) -> list[float]:
    """Return ``[L]``: the share of choices that would have to go elsewhere, 0 to 1."""
    return [
        sum(abs(x - y) for x, y in zip(first, now, strict=True)) / 2
        for first, now in zip(before.shares, after.shares, strict=True)
    ]


def drift_by_chance(before: Load, after: Load) -> float:
    """Return the mean drift that drawing the choices independently at random would give.

    Of a share p with n and m draws the difference has a variance of p (1 - p) (1/n + 1/m), and a
    normal variable is ``sqrt(2 / pi)`` of its deviation from 0 on average.
    """
    rate = 1 / before.choices + 1 / after.choices
    totals = [
        sum(math.sqrt(2 / math.pi * p * (1 - p) * rate) for p in row) / 2 for row in before.shares
    ]
    return sum(totals) / len(totals)


def gradient_maps(run: Run) -> list[str]:
    """Return the maps of gradient norms: layers over steps, attention and experts."""
    rows = [(line["step"], mapping(line.get("grad_norm"))) for line in run.layers]
    rows = [(step, norms) for step, norms in rows if norms]
    found = []
    everything = [
        value
        for _, norms in rows
        for kind in ("attention", "experts")
        for value in (number(v) for v in listing(norms.get(kind)))
        if value and value > 0
    ]
    for kind in ("attention", "experts"):
        columns = [[number(value) for value in listing(norms.get(kind))] for _, norms in rows]
        if not any(value and value > 0 for column in columns for value in column):
            continue
        found.append(_gradient_map(kind, [step for step, _ in rows], columns, everything))
    return found


def _gradient_map(
    kind: str, steps: list[int], columns: list[list[Cell]], everything: list[float]
) -> str:
    layers = max(map(len, columns))
    columns = [[*column, *[None] * (layers - len(column))] for column in columns]
    pieces = _pieces(columns)
    low, high = math.log10(min(everything)), math.log10(max(everything))
    low = max(low, high - 4)  # four powers of ten show what matters; less is as good as nothing
    span = max(high - low, 1e-9)
    scale = Scale(
        lambda value: 0.0 if value <= 0 else 0.06 + 0.94 * (math.log10(value) - low) / span,
        (figure(10**low, 2), figure(10**high, 2)),
    )
    means = []
    for layer in range(layers):
        values = [column[layer] for column in columns if column[layer] is not None]
        means.append(sum(v for v in values if v) / len(values) if values else None)
    known = [(mean, layer) for layer, mean in enumerate(means) if mean is not None]
    thinned = " Each column is the highest of several steps." if len(pieces) < len(columns) else ""
    return heat_map(
        f"Gradient norm by layer: {kind}",
        [[piece[layer] for piece in pieces] for layer in range(layers)],
        scale,
        columns=_step_ticks(steps),
        across="optimizer step",
        description=f"Mean norm over the run from {figure(min(known)[0])} (layer {min(known)[1]}) "
        f"to {figure(max(known)[0])} (layer {max(known)[1]})",
        caption=f"Norm of the gradients of a layer's adapters on {kind}, before clipping, at "
        f"{len(columns):,} logged steps; one logarithmic scale for both maps. Grey: none, or not "
        f"finite.{thinned}",
        numbers=table(
            ["layer", "mean", "first", "last"],
            [
                [str(layer), figure(means[layer]), figure(columns[0][layer]),
                 figure(columns[-1][layer])]
                for layer in range(min(layers, _MOST_LAYERS_LISTED))
            ],
        ),
    )  # fmt: skip


def _pieces(columns: list[list[Cell]]) -> list[list[Cell]]:
    """Return at most ``MOST_COLUMNS`` columns, the highest value of each piece and layer kept."""
    if len(columns) <= MOST_COLUMNS:
        return columns
    found = []
    for number_ in range(MOST_COLUMNS):
        first = number_ * len(columns) // MOST_COLUMNS
        piece = columns[first : (number_ + 1) * len(columns) // MOST_COLUMNS]
        found.append(
            [
                max((v for v in layer if v is not None), default=None)
                for layer in zip(*piece, strict=True)
            ]
        )
    return found


def _step_ticks(steps: list[int]) -> list[tuple[float, str]]:
    """Return ticks under the middles of their columns; columns stand at equal distances."""
    count = len(steps)
    places = sorted({round(n * (count - 1) / 4) for n in range(5)})
    return [((place + 0.5) / count, f"{steps[place]:,}") for place in places]


def expert_maps(run: Run) -> list[str]:
    """Return the chosen experts, load at the end, its change, and the drift over the run."""
    found = loads(run)
    figures = [*_chosen_map(run), *([_load_map(found[-1])] if found else [])]
    if len(found) > 1:
        figures += [_change_map(found[0], found[-1]), _drift_chart(found)]
    figures.append(
        chart(
            "Evenness of the load",
            [
                Line("mean of the layers", run.series("router_entropy"), colour(0)),
                Line("lowest layer", run.series("router_entropy_lowest"), colour(4), "7 4"),
            ],
            unit="entropy of the load",
            caption="1: all experts of a layer get as many tokens; 0: one gets all.",
        )
    )
    return figures


def _chosen_map(run: Run) -> list[str]:
    """Return the map of the experts that got an adapter, by what the base gave them to do."""
    fact = mapping(run.fact("chosen_experts"))
    rows = [[number(n) or 0.0 for n in listing(row)] for row in listing(fact.get("load"))]
    layers = {
        int(layer): {e for e in listing(chosen) if type(e) is int}
        for layer, chosen in mapping(fact.get("layers")).items()
        if str(layer).isdigit() and int(layer) < len(rows)
    }
    if not rows or not layers or not rows[0] or len({len(row) for row in rows}) > 1:
        return []
    experts, most = len(rows[0]), max(map(max, rows))
    cells: list[list[Cell]] = [
        [share if e in layers.get(layer, ()) else None for e, share in enumerate(row)]
        for layer, row in enumerate(rows)
    ]
    seen = {n: sum(rows[n][e] for e in chosen if e < experts) for n, chosen in layers.items()}
    lowest = min(seen, key=lambda layer: seen[layer])
    lines = []
    for layer in sorted(layers)[:_MOST_LAYERS_LISTED]:
        row, chosen = rows[layer], layers[layer]
        out = max((share for e, share in enumerate(row) if e not in chosen), default=0.0)
        kept = min((row[e] for e in chosen if e < experts), default=0.0)
        named = ", ".join(map(str, sorted(chosen)))
        lines.append([str(layer), f"{seen[layer]:.1%}", f"{kept:.2%}", f"{out:.2%}", named])
    return [
        heat_map(
            "Experts with an adapter",
            cells,
            Scale(lambda share: 0.1 + 0.9 * share / (most or 1.0), ("0 %", f"{most:.1%}")),
            columns=_expert_ticks(experts),
            across="expert",
            description=f"The chosen experts see {sum(seen.values()) / len(seen):.1%} of the "
            f"trained tokens' choices, {seen[lowest]:.1%} in layer {lowest}",
            caption="Share of the layer's choices, of loss-weighted tokens, that the base gave an "
            "expert before training. Grey: no adapter.",
            numbers=table(
                ["layer", "seen by them", "least chosen", "most left out", "experts"], lines
            ),
        )
    ]


def _load_map(load: Load) -> str:
    experts = len(load.shares[0])
    most = [max(row) * experts for row in load.shares]
    # To the next power of two of the busiest, both ways; less is as good as nothing.
    doublings = max(1, min(6, math.ceil(math.log2(max(most)) - 1e-9)))
    scale = Scale(
        lambda value: math.log2(max(value, 2**-doublings)) / doublings,
        (f"1/{2**doublings} x", f"{2**doublings} x"),
        "even",
        signed=True,
    )
    unused = sum(value == 0 for row in load.shares for value in row)
    busiest = max(range(len(most)), key=lambda layer: most[layer])
    return heat_map(
        f"Expert load at step {load.step:,}",
        [[share * experts for share in row] for row in load.shares],
        scale,
        columns=_expert_ticks(experts),
        across="expert",
        description=f"The busiest expert gets {figure(most[busiest], 3)} times the even share, in "
        f"layer {busiest}; {unused:,} of {experts * len(load.shares):,} experts get no token",
        caption="Tokens of an expert against the even share of its layer: orange more, blue less.",
        numbers=table(
            ["layer", "busiest expert", "times even", "experts without a token"],
            [
                [str(n), str(max(range(experts), key=lambda e, row=row: row[e])),
                 figure(max(row) * experts, 3), str(sum(v == 0 for v in row))]
                for n, row in enumerate(load.shares[:_MOST_LAYERS_LISTED])
            ],
        ),
    )  # fmt: skip


def _change_map(first: Load, last: Load) -> str:
    experts = len(last.shares[0])
    rows = [
        [(now - then) * experts for then, now in zip(before, after, strict=True)]
        for before, after in zip(first.shares, last.shares, strict=True)
    ]
    largest = max(abs(value) for row in rows for value in row) or 1.0
    scale = Scale(
        lambda value: value / largest,
        (f"-{figure(largest, 2)}", f"+{figure(largest, 2)}"),
        "0",
        signed=True,
    )
    moved = drift(first, last)
    most = max(range(len(moved)), key=lambda layer: moved[layer])
    return heat_map(
        f"Change of the load since step {first.step:,}",
        rows,
        scale,
        columns=_expert_ticks(experts),
        across="expert",
        description=f"Layer {most} changed most: {moved[most]:.1%} of its choices go to other "
        "experts",
        caption="In even shares of a layer: +1 is one even share more. At step 1 the adapters "
        "changed nothing yet, so that load is the base's (or that of lora.init_from)."
        if first.step == 1
        else f"In even shares of a layer, against the first load that was kept, step {first.step}.",
        numbers=table(
            ["layer", "choices gone elsewhere"],
            [[str(n), f"{value:.2%}"] for n, value in enumerate(moved[:_MOST_LAYERS_LISTED])],
        ),
    )


def _drift_chart(found: list[Load]) -> str:
    first, rest = found[0], found[1:]
    moved = [(load.step, drift(first, load)) for load in rest]
    chance = [(load.step, 100 * drift_by_chance(first, load)) for load in rest]
    return chart(
        "Drift of the expert load",
        [
            Line("mean of the layers", [(s, 100 * sum(d) / len(d)) for s, d in moved], colour(0)),
            Line("highest layer", [(s, 100 * max(d)) for s, d in moved], colour(4), "7 4"),
            Line("by chance alone, at least", chance, "var(--soft)", "2 4"),
        ],
        unit="% of choices",
        from_zero=True,
        caption=f"Choices that would have to go elsewhere to give the load of step {first.step:,}. "
        "Each load is of other rows, so an unchanged router drifts too: the dotted line is what "
        "as many tokens drawn at random would show; tokens of one text are alike, so more is "
        "usual.",
    )


def _expert_ticks(experts: int) -> list[tuple[float, str]]:
    gap = 1 if experts <= 16 else experts // 8
    return [((expert + 0.5) / experts, str(expert)) for expert in range(0, experts, gap)]
