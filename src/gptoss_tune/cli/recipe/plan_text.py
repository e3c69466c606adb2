"""What ``gptoss-tune plan`` prints: parameters, memory, disk, time, advice."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.plan.plan import Plan

_GIB = 2**30
_COMMON_CARDS = ("4080", "4090", "5090", "l40s", "a100-80", "h100", "h200", "mi300x")


@dataclass(frozen=True)
class Typed:
    """What was typed behind ``plan``, for commands that change some of it.

    Attributes:
        recipe: Its path or name.
        overrides: As typed.
        options: ``--gpus`` and ``--strategy``, where they were given.
    """

    recipe: str
    overrides: tuple[str, ...]
    options: tuple[str, ...]

    def command(self, changes: Sequence[str], card: str) -> str:
        """Return the command that plans the recipe with ``changes`` in place or beside its own."""
        changed = {word.partition("=")[0].strip() for word in changes}
        kept = [w for w in self.overrides if w.partition("=")[0].strip() not in changed]
        options = () if any(key.startswith("distributed.") for key in changed) else self.options
        words = ("gptoss-tune", "plan", self.recipe, *kept, *changes, "--gpu", card, *options)
        return shlex.join(words)


def print_plan(made: Plan, name: str, said: Sequence[str], typed: Typed) -> None:
    """Print a plan; ``said`` are lines on the card that it is for."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    count, card = made.recipe.distributed.num_processes, made.card
    cards = card.name if count == 1 else f"{count} x {card.name}, {made.strategy}"
    console.print(Text(f"{name} on {cards}", style="bold"))
    for line in said:
        console.print(f"  {line}")
    _print_parameters(made, console)
    console.print(Text("memory of one GPU at its peak", style="bold cyan"))
    for kind, size in made.memory.kinds.items():
        if size:
            console.print(f"  {kind:<18} {size / _GIB:8.2f} GiB")
    style, verdict = ("green", "fits") if made.fits else ("red", "does not fit")
    peak, room = made.memory.peak / _GIB, card.memory_gib
    console.print(
        Text.assemble(
            (f"  {'peak':<18} {peak:8.2f} GiB", "bold"),
            (f" of {room:.1f}: {verdict}", f"bold {style}"),
        )
    )
    _print_tiles(made, console)
    _print_playing(made, console)
    if made.host_bytes:
        console.print(f"  in host memory     {made.host_bytes / _GIB:8.2f} GiB")
    _print_shared_rows(made, console)
    _print_disk(made, console)
    _print_work(made, console)
    _print_advice(made, console, typed)


def _print_tiles(made: Plan, console: Console) -> None:
    """Print in which tiles the experts see their tokens, and what the tiles cost."""
    if made.tile_tokens is None:
        return
    tokens = made.setup.tokens
    count = -(-tokens // made.tile_tokens)
    piece = "micro-batch" if made.rollouts else "step"
    rate = made.card.memory_tb_per_s * 1e12
    console.print(
        f"  {count} tiles of {made.tile_tokens:,} tokens through the experts (train.expert_tile): "
        f"decoding moves {made.decoding_bytes / 1e9:,.0f} GB a {piece},"
    )
    console.print(
        f"    {made.decoding_bytes / rate:.1f} s at the {made.card.memory_tb_per_s:g} TB/s of the "
        f"data sheet (not measured)"
    )


def _print_playing(made: Plan, console: Console) -> None:
    """Print the peaks of both halves of a step, of which the larger one stands above."""
    found = made.rollouts
    if found is None:
        return
    phase, step = found.phase, found.training_peak / _GIB
    if found.peak is None:
        console.print("  a training step's; the server that samples has a memory of its own")
        return
    console.print(
        f"  sampling {found.peak / _GIB:.2f} GiB, a training step {step:.2f} GiB: one after the "
        "other"
    )
    console.print(
        f"  sampled together: {phase.most_at_a_time} episodes, each of {phase.longest:,} tokens at "
        "most"
    )


def _print_rollouts(made: Plan, console: Console) -> None:
    found = made.rollouts
    if found is None:
        return
    steps = "each step" if found.updates == 1 else f"every {found.updates} steps"
    console.print(f"  rollouts: {found.episodes} episodes {steps}, by sampler {found.sampler}")
    if found.seconds is None or found.per_second is None:
        console.print("    their time is the server's, which is not known here")
    else:
        rate = f"{found.per_second:,.0f}" if found.per_second >= 10 else f"{found.per_second:.2g}"
        console.print(
            f"    {_duration(found.seconds / 3600)} for them, {rate} a second "
            "(estimated, not measured):"
        )
        console.print(
            f"    prompts of {found.prompt_tokens:,} tokens ({found.prompt_from}), one answer of "
            f"{found.phase.answer:,}"
        )
        console.print("    each; an answer after a tool's result takes as long again")
        if found.hours is not None:
            console.print(f"    {_duration(found.hours)} of sampling in all")
    if found.choice_bytes:
        console.print(
            f"    {found.choice_bytes} bytes a token of experts to replay; "
            f"{found.waiting / 2**20:,.1f} MiB wait for their step"
        )


def _print_shared_rows(made: Plan, console: Console) -> None:
    from rich.text import Text

    shared = made.shared
    if shared is None:
        return
    console.print(Text(f"each row shared by {shared.gpus} GPUs", style="bold cyan"))
    console.print(f"  {shared.row_tokens:,} tokens of a row on each")
    console.print(
        f"  K and V of whole rows {shared.fetched / _GIB:5.2f} GiB, with their gradients "
        f"{shared.attention / _GIB:.2f} GiB, one full layer at a time (counted above)"
    )
    console.print(
        f"  {shared.received / _GIB:.2f} GiB come to each GPU in an optimizer step for it"
    )


def _print_parameters(made: Plan, console: Console) -> None:
    from rich.text import Text

    from gptoss_tune.plan.plan import experts_per_rank, parameters, trained_by_target

    layers = len({factor.layer for factor in made.factors})
    console.print(Text("parameters", style="bold cyan"))
    console.print(f"  base    {parameters(made.architecture):>15,}")
    console.print(
        f"  trained {made.trained:>15,} in {layers} of {made.architecture.layers} layers, "
        f"{made.trained // layers:,} each"
    )
    for target, count in trained_by_target(made.factors).items():
        console.print(f"    {target:<12} {count:>11,}")
    experts, adapted = made.architecture.experts, made.experts_adapted
    if 0 < adapted < experts:
        console.print(f"    on {adapted} of {experts} experts of each layer, chosen by a pass")
    per_rank = experts_per_rank(made.factors)
    if per_rank:
        console.print(f"    one more rank on the experts adds {per_rank:,}")


def _print_disk(made: Plan, console: Console) -> None:
    from rich.text import Text

    disk = made.disk
    console.print(Text("disk", style="bold cyan"))
    rows = (
        ("base checkpoint", disk.base),
        ("training checkpoints", disk.checkpoints),
        ("adapter", disk.adapter),
        ("merged, MXFP4", disk.merged_mxfp4),
        ("merged, bf16", disk.merged_bf16),
    )
    for kind, size in rows:
        console.print(f"  {kind:<21} {size / _GIB:8.2f} GiB")
    if made.rollouts is not None and made.rollouts.text is not None:
        text = made.rollouts.text / _GIB
        console.print(f"  {'episodes to read':<21} {text:8.2f} GiB at most (estimated)")


def _print_work(made: Plan, console: Console) -> None:
    from rich.text import Text

    work = made.work
    again = f", {work.flops.recomputed / 1e9:.1f} of it again" if work.flops.recomputed else ""
    console.print(Text("time", style="bold cyan"))
    console.print(f"  {work.flops.total / 1e9:.1f} GFLOP a token{again}")
    console.print(
        f"  {work.tokens_per_second:,.0f} tokens/s, if {work.efficiency:.0%} of "
        f"{made.card.tflops:,.0f} TFLOP/s is reached (assumed, not measured)"
    )
    if not made.card.has_bf16:
        console.print("  this GPU has no units for bf16, which the rate of fp32 stands for")
    if work.tokens is None or work.hours is None:
        given = "" if made.rollouts else "; give --tokens"
        console.print(f"  hours: not known before the data is read{given}")
        _print_rollouts(made, console)
        _print_reference(made, console)
        return
    steps = "" if work.steps is None else f", optimizer steps: {work.steps:,}"
    console.print(f"  {work.tokens:,} tokens ({work.tokens_from}){steps}")
    console.print(f"  {_duration(work.hours)} of training; loading and saving on top")
    _print_rollouts(made, console)
    _print_reference(made, console)
    _print_evaluation(made, console)
    if made.hours is not None and made.hours != work.hours:
        console.print(f"  {_duration(made.hours)} in all")


def _print_reference(made: Plan, console: Console) -> None:
    for name, found in (("choosing experts", made.choosing), ("reference pass", made.reference)):
        if found is None:
            continue
        known = found.hours is not None
        long = _duration(found.hours or 0) if known else "not known before the data is read"
        through = "all data" if found.tokens is None else f"{found.tokens:,} tokens"
        console.print(f"  {name}, once: {long} ({through} forward);")
        console.print(f"    its peak of {found.peak / _GIB:.2f} GiB lies below a training step's")


def _print_evaluation(made: Plan, console: Console) -> None:
    found = made.evaluation
    parts = []
    for name, part in (("held-out data", found.held_out), ("prompts and drift", found.asked)):
        if part.times != 0:
            times = "every eval_steps" if part.times is None else f"{part.times:,} x"
            each = "of unknown length" if part.seconds is None else _duration(part.seconds / 3600)
            parts.append(f"{name} {times} {each}")
    if not parts:
        return
    longest = made.recipe.evaluation.max_new_tokens
    hours = "of unknown length" if found.hours is None else f"{_duration(found.hours)} at most"
    answers = f", {found.answers} answers of up to {longest} tokens each time"
    console.print(f"  evaluation: {hours} ({'; '.join(parts)}{answers if found.answers else ''})")


def _duration(hours: float) -> str:
    for unit, length in (("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= length:
            return f"{hours / length:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds" if hours * 3600 >= 0.5 else "less than a second"


def _print_advice(made: Plan, console: Console, typed: Typed) -> None:
    from rich.text import Text

    if made.fits:
        return
    heading = "to make it fit, cheapest first, each on top of those above it"
    if made.overrides_that_fit is None:
        heading = "not enough, though each is made on top of those above it"
    if made.advice:
        console.print(Text(heading, style="bold cyan"))
    for entry in made.advice:
        verdict = ": fits" if entry.fits else ""
        words = " ".join(entry.overrides)
        console.print(f"  {entry.peak / _GIB:8.2f} GiB  {words} - {entry.cost}{verdict}")
    if made.overrides_that_fit is not None:
        if made.larger is not None:
            console.print(f"  or a larger card, without them: {made.larger.name}")
        console.print("all of them in one command; train takes the same settings")
        console.print(f"  {typed.command(made.overrides_that_fit, made.card.name)}")
        if made.elsewhere:
            console.print(Text("or with rows as long as they are", style="bold cyan"))
        _print_elsewhere(made, console, typed)
        return
    heading = "what is enough" if made.elsewhere else "no card or number of cards here is enough"
    console.print(Text(heading, style="bold cyan"))
    _print_elsewhere(made, console, typed)


def _print_elsewhere(made: Plan, console: Console, typed: Typed) -> None:
    for way in made.elsewhere:
        console.print(f"  {way.peak / _GIB:8.2f} GiB  {way.what}: {way.gpus} x {way.gpu}")
        console.print(f"    {typed.command(way.overrides, way.gpu)}")


def print_common_cards(made: Plan) -> None:
    """Print on which cards that people have the recipe fits, and how long it trains there."""
    from rich.console import Console
    from rich.text import Text

    from gptoss_tune.plan.gpus import card

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text("on common cards", style="bold cyan"))
    for known in map(card, _COMMON_CARDS):
        verdict = "fits" if made.peak_on(known) <= known.memory_bytes else "does not fit"
        hours = made.work.hours
        if hours is None or verdict != "fits":
            console.print(f"  {known.name:<18} {verdict}")
        else:
            long = _duration(hours * made.card.tflops / known.tflops)
            console.print(f"  {known.name:<18} {verdict}, {long} of training")
