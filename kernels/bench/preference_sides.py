"""One side of ``preference.py``: a run of a few steps, ours or TRL's, and what it took.

``prepare`` makes the folder that ``run`` reads. Both sides are run as a user runs them, ours with
everything that a run has (guard, metrics, run record), and watched through the same callback: the
first step warms up, the second one has every tensor followed, the third one shows the process's
memory, and the others are timed.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from accelerate.utils import set_seed
from datasets import Dataset
from measure import Alive, keep_memory, resident
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Mxfp4Config, TrainerCallback
from trl import DPOConfig, DPOTrainer

from gptoss_tune.harmony.dataset.kinds import kind_of
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.build import build
from gptoss_tune.model.lora import lora_config
from gptoss_tune.recipe import Recipe
from gptoss_tune.testing.measured import resident_bytes
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.train.run import train
from gptoss_tune.train.trainer import save_adapter
from gptoss_tune.train.trl_config import training_tokenizer
from gptoss_tune.weights import open_checkpoint

TRL = ("trl", "trl-precomputed", "trl-counted", "trl-started")
OURS = ("ours", "ours-packed", "ours-packed-started")
VARIANTS = (*TRL, *OURS)
COUNTED, RESIDENT = 2, 3
"""The steps, from 1, whose peaks are taken; those after them are timed."""


@dataclass(frozen=True)
class Case:
    """What both sides train.

    Attributes:
        layers: Of the tiny gpt-oss; likewise the next three.
        hidden: H.
        intermediate: I.
        experts: Of a layer.
        pairs: Of every step.
        steps: Optimizer steps.
        rank: Of all adapters.
        beta: Of the loss.
        learning_rate: Constant.
        max_length: Tokens of a packed row.
        data: A file of pairs.
    """

    layers: int
    hidden: int
    intermediate: int
    experts: int
    pairs: int
    steps: int
    rank: int
    beta: float
    learning_rate: float
    max_length: int
    data: str


@dataclass
class Seen:
    """What one run showed.

    Attributes:
        variant: Which.
        seconds: Of each timed step, from the end of the one before it.
        cpu_seconds: Likewise, of this process.
        losses: Of each step; so are the next three.
        margins: ``beta`` times the log-ratio of chosen less that of rejected.
        chosen: Mean summed log-probability of the chosen answers.
        grad_norms: Before clipping.
        reference_seconds: Of the passes of the reference before the first step.
        reference_step_seconds: Of those inside a step, a median.
        held: Bytes of the model's tensors: frozen base and adapters.
        adapter_values: Numbers in adapters, frozen ones too.
        tensors: Peak bytes of tensors in a step above what was there before it.
        resident: Peak bytes of the process in a step above what it had before it.
        positions: Places of a step's batch in the pass with a gradient, padding included.
        tokens: Those that are tokens of a pair.
    """

    variant: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    reference_seconds: float = 0.0
    reference_step_seconds: float = 0.0
    held: int = 0
    adapter_values: int = 0
    tensors: int = 0
    resident: int = 0
    positions: int = 0
    tokens: int = 0


class Watch(TrainerCallback):
    """Takes the time and the peaks of steps, and reads their figures; the same for both sides."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.alive = Alive()
        self.before = 0
        self.ended = (0.0, 0.0)
        self.without_gradient: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.seen.held = sum(resident_bytes(model).values())
        self.seen.adapter_values = sum(
            p.numel() for name, p in model.named_parameters() if "lora_" in name
        )
        follow_passes(model, self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1
        if step == COUNTED:
            self.alive.__enter__()
        elif step == RESIDENT:
            keep_memory(False)  # or what earlier steps left would hide the peak
            Path("/proc/self/clear_refs").write_text("5")
            self.before = resident("VmRSS")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, now = state.global_step, (time.perf_counter(), time.process_time())
        if step == COUNTED:
            self.alive.__exit__(None, None, None)
            self.seen.tensors = self.alive.peak
        elif step == RESIDENT:
            self.seen.resident = resident("VmHWM") - self.before
            keep_memory(True)
        elif step > RESIDENT:
            self.seen.seconds.append(now[0] - self.ended[0])
            self.seen.cpu_seconds.append(now[1] - self.ended[1])
        self.ended = now

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self.seen.losses.append(logs["loss"])
            self.seen.grad_norms.append(logs["grad_norm"])
            self.seen.margins.append(logs.get("rewards/margins", logs.get("reward_margin")))
            self.seen.chosen.append(logs.get("logps/chosen", logs.get("logp_chosen")))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.reference_step_seconds = sum(self.without_gradient) / max(1, state.global_step)


def follow_passes(model: Any, watch: Watch) -> None:
    """Let ``watch`` know the places of a pass of ``model``, or its time without a gradient."""
    began: list[float] = []

    def before(module: Any, args: Any, kwargs: Any) -> None:
        began.append(time.perf_counter())
        if torch.is_grad_enabled():
            watch.seen.positions = kwargs["input_ids"].numel()

    def after(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        spent = time.perf_counter() - began.pop()
        if not torch.is_grad_enabled():
            watch.without_gradient.append(spent)

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)


def prepare(folder: Path, case: Case) -> None:
    """Write what every run reads: base, pairs as text and as token ids, two adapters."""
    (folder / "case.json").write_text(json.dumps(asdict(case)), encoding="utf-8")
    base = tiny_checkpoint(
        folder / "base",
        layers=case.layers,
        hidden=case.hidden,
        intermediate=case.intermediate,
        experts=case.experts,
    )
    rows = Path(case.data).read_text(encoding="utf-8").splitlines()
    # One document a side, all of its answer counted: what both sides can say.
    plain = [row for row in rows if is_plain(json.loads(row))][: case.pairs]
    (folder / "pairs.jsonl").write_text("".join(f"{row}\n" for row in plain), encoding="utf-8")
    pairs = [ids_of(row) for row in rendered(folder, case, packed=False)]
    assert len(pairs) == case.pairs, f"{len(pairs)} pairs of {case.data}, wanted {case.pairs}"
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    recipe = recipe_of(folder, case, "ours")
    set_seed(recipe.train.seed)
    model = build(recipe, open_checkpoint(base), "cpu").model
    save_adapter(model, folder / "fresh")
    with torch.no_grad():
        for name, factor in model.named_parameters():
            if "lora_B" in name:
                factor.normal_(std=0.02)
    save_adapter(model, folder / "started")


def is_plain(row: dict[str, Any]) -> bool:
    """Return whether a row is one prompt and one message a side, without tools."""
    single = all(
        isinstance(row[side], str) or len(row[side]) == 1 for side in ("chosen", "rejected")
    )
    return isinstance(row.get("prompt"), str) and single and "tools" not in row


def rendered(folder: Path, case: Case, *, packed: bool) -> Any:
    """Return the rows that our side trains on."""
    recipe = recipe_of(folder, case, "ours-packed" if packed else "ours")
    vocabulary, kind = load_vocabulary(folder / "base"), kind_of(recipe.method)
    return load_dataset(
        recipe.data, split="train", vocabulary=vocabulary, seed=recipe.train.seed, kind=kind
    )


def ids_of(row: dict[str, Any]) -> dict[str, list[int]]:
    """Return a pair's token ids as TRL takes them; the prompt ends where tokens begin to count."""
    ids, weights = row["input_ids"], row["loss_weights"]
    second = row["position_ids"].index(0, 1)
    sides = [(ids[:second], weights[:second]), (ids[second:], weights[second:])]
    starts = [weights.index(1.0) for _, weights in sides]
    assert row["branches"] == [1, -1] and sides[0][0][: starts[0]] == sides[1][0][: starts[1]]
    assert all(set(own[start:]) == {1.0} for (_, own), start in zip(sides, starts, strict=True))
    chosen, rejected = (own[start:] for (own, _), start in zip(sides, starts, strict=True))
    return {"prompt_ids": ids[: starts[0]], "chosen_ids": chosen, "rejected_ids": rejected}


def recipe_of(folder: Path, case: Case, variant: str, output: str = "run") -> Recipe:
    """Return the recipe of one of our variants; every step has all the pairs."""
    packed = "packed" in variant
    adapter = {"init_from": str(folder / "started")} if "started" in variant else {}
    train = {
        "output_dir": str(folder / output),
        "max_steps": case.steps,
        "per_device_train_batch_size": case.pairs,  # fewer rows where they are packed
        "learning_rate": case.learning_rate,
        "lr_scheduler_type": "constant",
        "activation_checkpointing": "none",
    }
    return Recipe.model_validate(
        {
            "model": {"name_or_path": str(folder / "base"), "dtype": "float32"},
            "lora": {"rank": case.rank, "alpha": 2 * case.rank, **adapter},
            "method": {"name": "dpo", "beta": case.beta},
            "data": {
                "train": str(folder / "pairs.jsonl"),
                "max_length": case.max_length,
                "packing": packed,
            },
            "train": train,
        }
    )


def run(folder: Path, variant: str) -> Seen:
    """Train as ``variant`` says and return what was seen."""
    case = Case(**json.loads((folder / "case.json").read_text(encoding="utf-8")))
    pairs = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    seen = Seen(variant)
    prompts = 2 * sum(len(pair["prompt_ids"]) for pair in pairs)
    chosen = sum(len(pair["chosen_ids"]) for pair in pairs)
    seen.tokens = prompts + chosen + sum(len(pair["rejected_ids"]) for pair in pairs)
    keep_memory(True)
    try:
        if variant in TRL:
            run_trl(folder, case, pairs, variant, Watch(seen))
        else:
            run_ours(folder, case, variant, Watch(seen))
    finally:
        keep_memory(False)
    if variant in OURS:
        # Theirs is the mean of answers, ours of tokens.
        seen.chosen = [value * chosen / case.pairs for value in seen.chosen]
    return seen


def run_ours(folder: Path, case: Case, variant: str, watch: Watch) -> None:
    output = f"{variant}-{time.monotonic_ns()}"
    done = train(recipe_of(folder, case, variant, output), callbacks=[watch])
    record = json.loads((done.folder / "run.json").read_text(encoding="utf-8"))
    watch.seen.reference_seconds = record["reference"]["seconds"]


def run_trl(folder: Path, case: Case, pairs: Any, variant: str, watch: Watch) -> None:
    """Run ``DPOTrainer`` on the expanded model in transformers' own classes, with PEFT."""
    if variant == "trl-counted":
        # On a CPU their head takes every position; this is their path of a GPU, which skips those
        # without a label.
        trl_utils._use_triton = lambda device: True
    expand = Mxfp4Config(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder / "base", quantization_config=expand, dtype=torch.float32
    ).float()
    adapter: dict[str, Any] = {}
    if variant == "trl-started":
        model = PeftModel.from_pretrained(model, str(folder / "started"), is_trainable=True)
    else:
        adapter["peft_config"] = lora_config(recipe_of(folder, case, "ours").lora, case.layers)

    class SameIds(DPOTrainer):
        """Takes rows of token ids as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            found = super()._precompute_ref_logps(*args, **kwargs)
            watch.seen.reference_seconds += time.perf_counter() - started
            return found

    trainer = SameIds(
        model=model,
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            beta=case.beta,
            max_length=None,
            max_steps=case.steps,
            per_device_train_batch_size=case.pairs,
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            router_aux_loss_coef=0.0,
            train_sampling_strategy="sequential",
            precompute_ref_log_probs=variant in ("trl-precomputed", "trl-counted"),
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=training_tokenizer(),
        callbacks=[watch],
        **adapter,
    )
    if adapter:
        # Theirs are drawn anew; the reference leaves them out.
        factors = load_file(folder / "fresh" / "adapter_model.safetensors")
        missed = set_peft_model_state_dict(trainer.model, factors)
        assert not missed.unexpected_keys
    trainer.train()
