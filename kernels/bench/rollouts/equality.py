"""Are the trained weights the served weights? Samplers, trainer and export side by side.

::

    python kernels/bench/rollouts/equality.py RUN --rows data/tiny/tools_train.jsonl --out FOLDER

RUN is a finished run with ``lora.merge_aware``. Its policy is exported to MXFP4 as ``gptoss-tune
merge`` does and loaded in plain transformers, which shares no code with the training. Every sampler
answers the same prompts at temperature 1; the log-probabilities that it tells of its own tokens are
held against those that the trainer computes of them, with its own experts and with the sampler's
replayed, and against those of the export. Then the same episodes, calls of tools and all, are
played greedily, and compared token by token with those of the trained policy.

``swapped`` is what a server computes that gets the adapter beside its base, W + s B A, where
training computed Q(W + s B A): the reason why a merge-aware policy is shipped and not swapped.

B answers, S tokens, L layers, K experts of a token.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Mxfp4Config

from gptoss_tune.environments.environment import Rewards, Task
from gptoss_tune.environments.rows import RowTools
from gptoss_tune.evaluate.load import load_evaluated_model, open_evaluated_model
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.export.adapter_formats import write_adapter
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter, is_merge_aware
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import ModelSection
from gptoss_tune.rollout.batched.sampler import BatchedSampler
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.rollout.play import Limits, Player
from gptoss_tune.rollout.sampler import Request, Sampled

LIMITS = Limits(max_new_tokens=24, max_turns=3, max_length=512, tool_seconds=10.0)


class PlainSampler:
    """Plain transformers, one token after the other without a cache: what a server would compute.

    Attributes:
        name: In the table.
        version: Always 0.
    """

    version = 0

    def __init__(self, name: str, model: Any) -> None:
        """Sample from ``model``."""
        self.name, self._model = name, model.eval()
        self._chosen: list[torch.Tensor] = []
        for part, module in model.named_modules():
            if part.endswith("mlp.router"):
                module.register_forward_hook(lambda _, __, out: self._chosen.append(out[-1]))

    @torch.no_grad()
    def logps(self, ids: Sequence[int], start: int) -> np.ndarray:
        """Return the log-probability of every id from ``start`` on."""
        told = self._model(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)
        rows = torch.arange(start - 1, len(ids) - 1)
        return told[rows, torch.tensor(ids[start:])].numpy()

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[Request],
        temperature: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Sampled]:
        """Return an answer for each request."""
        return [self._one(request, temperature) for request in requests]

    def _one(self, request: Request, temperature: float) -> Sampled:
        ids, logps = list(request.prompt), []
        draws = torch.Generator().manual_seed(request.seed)
        for _ in range(request.max_new_tokens):
            self._chosen.clear()
            out = self._model(torch.tensor([ids]), logits_to_keep=1)
            told = out.logits[0, -1].float().log_softmax(-1)
            drawn = torch.multinomial(told.exp(), 1, generator=draws) if temperature else None
            token = int(told.argmax() if drawn is None else drawn)
            ids.append(token)
            logps.append(float(told[token]))
            if token in STOP_IDS:
                break
        layers = [one.reshape(len(ids) - 1, -1) for one in self._chosen]
        choices = torch.stack(layers, 1).to(torch.uint8).numpy()
        tokens = tuple(ids[len(request.prompt) :])
        return Sampled(tokens, np.array(logps, dtype=np.float32), choices, 0)

    def update(self, version: int) -> None:
        """Nothing is handed over."""

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Line:
    """One sampler in the table.

    Attributes:
        sampler: Its name.
        tokens: Drawn tokens that were compared.
        trainer: Largest difference to the trainer's log-probabilities.
        replayed: The same with the sampler's experts replayed; None: it told none.
        export: Largest difference to the MXFP4 export in plain transformers.
        mismatch: Mean of the sampler's log-probability less the trainer's: the KL's estimate.
        same: Greedy episodes that are those of the trained policy, token by token.
        episodes: How many were played.
    """

    sampler: str
    tokens: int
    trainer: float
    replayed: float | None
    export: float
    mismatch: float
    same: int
    episodes: int


@dataclass(frozen=True)
class Policies:
    """One policy in its forms.

    Attributes:
        trained: The model as training computes with it.
        exported: Its MXFP4 file in plain transformers.
        swapped: The base with the adapter beside it, in plain transformers and PEFT.
    """

    trained: Any
    exported: PlainSampler
    swapped: PlainSampler


def open_policies(
    run: Path, out: Path, dtype: str = "float32", base_name: str | None = None
) -> Policies:
    """Return the policy of ``run`` in its forms; what is exported is written below ``out``.

    Raises:
        SystemExit: It is no run with ``lora.merge_aware`` on experts in MXFP4.
    """
    subject = open_evaluated_model(str(run), base=base_name)
    base, adapter = subject.checkpoint, subject.adapter
    if adapter is None or not is_merge_aware(base, [WeightedAdapter(adapter)]):
        raise SystemExit(
            f"{run}: its record does not say that it was trained with lora.merge_aware on a base "
            "with experts in MXFP4; expected such a run: of another the export is another policy, "
            "and there is nothing to compare"
        )
    section = ModelSection(name_or_path=str(base.path), dtype=dtype)  # pyright: ignore[reportArgumentType]
    trained = load_evaluated_model(subject, section, torch.device("cpu"))
    packed, beside = out / "mxfp4", out / "adapter"
    for folder in (packed, beside):
        shutil.rmtree(folder, ignore_errors=True)
    merge(base, [WeightedAdapter(adapter)], packed, MergeOptions("mxfp4"))
    write_adapter(adapter, beside, "peft")
    swapped = PeftModel.from_pretrained(plain(base.path, dtype), str(beside))
    return Policies(
        trained,
        PlainSampler("MXFP4 export, transformers", plain(packed, dtype)),
        PlainSampler("adapter beside the base, transformers + PEFT", swapped),
    )


def plain(folder: Path, dtype: str) -> Any:
    """Return a checkpoint in plain transformers, MXFP4 decoded."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), quantization_config=Mxfp4Config(dequantize=True)
    )


def read_rows(path: Path, count: int) -> list[Task]:
    """Return the first rows of a file as what an environment plays."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    return [
        Task(n, f"{path}:{n + 1}", row, read_prompt(row, f"{path}:{n + 1}"))
        for n, row in enumerate(rows)
    ]


def table(policies: Policies, tasks: Sequence[Task], renderer: Renderer) -> list[Line]:
    """Return a line for each sampler."""
    model = policies.trained
    samplers: list[Any] = [
        OwnSampler(model, batch=4),
        BatchedSampler(model, batch=4),
        policies.exported,
        policies.swapped,
    ]
    first = None
    lines = []
    for sampler in samplers:
        played = greedy(sampler, tasks, renderer)
        first = played if first is None else first
        same = sum(one == other for one, other in zip(first, played, strict=True))
        lines.append(_line(sampler, policies, _requests(tasks, renderer), same, len(tasks)))
    return lines


def greedy(sampler: Any, tasks: Sequence[Task], renderer: Renderer) -> list[list[list[int]]]:
    """Return the ids of every sample of every greedy episode."""

    def unjudged(asked: Sequence[Any], *, waiting: Callable[[], None]) -> list[Rewards]:
        return [Rewards(0.0) for _ in asked]

    player = Player(sampler, renderer, RowTools, unjudged, LIMITS)
    episodes = player.play([(task, 0, 0) for task in tasks], temperature=0)
    return [[sample.input_ids.tolist() for sample in one.samples] for one in episodes]


def _requests(tasks: Sequence[Task], renderer: Renderer) -> list[Request]:
    prompts = [tuple(renderer.render_prompt(task.conversation)) for task in tasks]
    return [Request(prompt, LIMITS.max_new_tokens, n) for n, prompt in enumerate(prompts)]


@torch.no_grad()
def trainer_logps(model: Any, request: Request, one: Sampled, *, replay: bool) -> np.ndarray:
    """Return what the trainer says of the drawn tokens, in one pass over prompt and answer."""
    ids = torch.tensor([[*request.prompt, *one.token_ids]])
    asked: dict[str, Any] = {}
    if replay:
        assert one.choices is not None
        last = one.choices[-1:]  # nothing follows the last token, whatever its experts
        asked["choices"] = torch.from_numpy(np.concatenate([one.choices, last]))[None]
    narrow = model.config.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):  # as in training
        told = model(ids, **asked).logits[0].float().log_softmax(-1)
    rows = torch.arange(len(request.prompt) - 1, ids.shape[1] - 1)
    return told[rows, torch.tensor(one.token_ids)].numpy()


def _line(
    sampler: Any, policies: Policies, asked: Sequence[Request], same: int, episodes: int
) -> Line:
    found = sampler.sample(asked, 1.0)
    gaps: dict[str, list[np.ndarray]] = {"trainer": [], "replayed": [], "export": []}
    for request, one in zip(asked, found, strict=True):
        ids = [*request.prompt, *one.token_ids]
        exported = policies.exported.logps(ids, len(request.prompt))
        told = trainer_logps(policies.trained, request, one, replay=False)
        gaps["trainer"].append(one.logps - told)
        gaps["export"].append(one.logps - exported)
        if one.choices is not None:
            replayed = trainer_logps(policies.trained, request, one, replay=True)
            gaps["replayed"].append(one.logps - replayed)
    worst = {key: float(np.abs(np.concatenate(g)).max()) if g else None for key, g in gaps.items()}
    every = np.concatenate(gaps["trainer"])
    assert worst["trainer"] is not None and worst["export"] is not None
    return Line(
        sampler.name,
        len(every),
        worst["trainer"],
        worst["replayed"],
        worst["export"],
        float(every.mean()),
        same,
        episodes,
    )


def markdown(lines: Sequence[Line]) -> str:
    """Return the table."""
    rows = [
        "| sampler | tokens | trainer | trainer, experts replayed | MXFP4 export | mean mismatch "
        "| greedy episodes as trained |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        replayed = "not told" if line.replayed is None else f"{line.replayed:.1e}"
        rows.append(
            f"| {line.sampler} | {line.tokens} | {line.trainer:.1e} | {replayed} | "
            f"{line.export:.1e} | {line.mismatch:+.1e} | {line.same} of {line.episodes} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the table of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", help="its base, where that has moved since")
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    asked = parser.parse_args()
    policies = open_policies(asked.run, asked.out, asked.dtype, asked.base)
    renderer = Renderer(load_vocabulary(), RenderSettings(date="2025-06-28"))
    print(markdown(table(policies, read_rows(asked.rows, asked.episodes), renderer)))


if __name__ == "__main__":
    main()
