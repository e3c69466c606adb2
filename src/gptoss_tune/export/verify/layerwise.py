"""Logits of a checkpoint, layer by layer, with or without adapters beside it.

A merged 120b does not fit in the memory of the machine that merged it, so a forward pass for
verification holds one layer at a time. Adapters are applied the way training applies them, as low-
rank terms beside the base and never inside a weight; the merged file is read as any program would
read it. That the two agree is then a statement about the file, not about one function.

Attention is transformers' own eager attention in fp32; experts run through ``gptoss_kernels``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from gptoss_kernels import ExpertProjection, Mxfp4Weight, quantize_reference
from gptoss_kernels.experts import experts
from torch import Tensor, nn
from torch.nn import functional
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import (
    GptOssAttention,
    GptOssRotaryEmbedding,
)

from gptoss_tune.export.merge.changes import changed_base
from gptoss_tune.export.merge.steps import WeightedAdapter, low_ranks
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import LowRank
from gptoss_tune.weights.names import ATTENTION_PROJECTIONS, expert_key

_HEAD_ROWS = 1 << 14
"""Rows of the embedding's shape read at once for the logits."""


class LayerwiseModel:
    """A checkpoint, maybe with adapters, that computes logits one layer at a time in fp32."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        adapters: Sequence[WeightedAdapter] = (),
        *,
        merge_aware: bool = False,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        packed: bool = False,
    ) -> None:
        """Prepare to read from ``checkpoint``.

        Args:
            checkpoint: Where the weights come from.
            adapters: Low-rank changes to add beside the weights.
            merge_aware: Round the changed experts to MXFP4 as merge-aware training does; needs
                exactly one adapter.
            device: Where to compute.
            dtype: What to compute in; bf16 shows how far a server's rounding may lead.
            packed: Round dense experts to MXFP4 first, as an export without adapters would.
        """
        values = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
        self.config = GptOssConfig.from_dict(values)
        self.config._attn_implementation = "eager"
        self._checkpoint, self._adapters = changed_base(checkpoint, adapters), adapters
        self._merge_aware, self._device = merge_aware, torch.device(device)
        self._dtype, self._packed = dtype, packed

    @torch.no_grad()
    def logits(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the logits ``[tokens, V]`` fp32 of every prompt, on the CPU."""
        norm = self._read("model.norm.weight")
        return self._head([self._normalized(s, norm) for s in self._final_states(prompts)])

    @torch.no_grad()
    def last_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits ``[prompts, V]`` fp32 of the token after each prompt, on the CPU."""
        return self._last_logits_of(self._final_states(prompts))

    def _last_logits_of(self, states: list[Tensor]) -> Tensor:
        """Return the logits ``[prompts, V]`` of the last of each of the final ``states``."""
        norm = self._read("model.norm.weight")
        return torch.cat(self._head([self._normalized(state[-1:], norm) for state in states]))

    def _final_states(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the states ``[tokens, H]`` after the last layer."""
        return list(self._states_by_layer(prompts))[-1]

    def _states_by_layer(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
        """Yield the states ``[tokens, H]`` after each layer, the same list each time."""
        states = [self._embed(prompt) for prompt in prompts]
        rotary = GptOssRotaryEmbedding(self.config).to(self._device)
        for layer in range(self.config.num_hidden_layers):
            self._layer_pass(layer, states, rotary)
            yield states

    def _layer_pass(self, layer: int, states: list[Tensor], rotary: nn.Module) -> None:
        """Replace ``states`` by the output of one decoder layer, read for this pass alone."""
        prefix = f"model.layers.{layer}"
        attention = self._attention(layer)
        norms = [
            self._read(f"{prefix}.{name}_layernorm.weight") for name in ("input", "post_attention")
        ]
        router = self._with_factors(f"{prefix}.mlp.router")
        router_bias = self._read(f"{prefix}.mlp.router.bias")
        projections = [self._projection(layer, name) for name in ("gate_up_proj", "down_proj")]
        sliding = attention.layer_type == "sliding_attention"
        window = self.config.sliding_window if sliding else None
        for i, state in enumerate(states):
            hidden = self._normalized(state, norms[0])
            positions = torch.arange(hidden.shape[0], device=self._device)[None]
            mask = _mask(hidden.shape[0], window, self._device).to(self._dtype)
            mixed, _ = attention(hidden[None], rotary(hidden[None], positions), mask)
            states[i] = state + mixed[0]
        # Experts see tokens, not prompts: together, each expert is decoded once a layer.
        together = torch.cat(states)
        hidden = self._normalized(together, norms[1])
        scores, chosen = functional.linear(hidden, router, router_bias).topk(
            self.config.num_experts_per_tok, dim=-1
        )
        together = together + experts(
            hidden,
            chosen,
            scores.softmax(-1),
            projections[0],
            projections[1],
            limit=self.config.swiglu_limit,
            merge_aware=self._merge_aware,
        )
        states[:] = together.split([len(state) for state in states])

    def _embed(self, prompt: Sequence[int]) -> Tensor:
        changes = low_ranks(self._adapters, "model.embed_tokens")
        rows = []
        for token in prompt:
            row = self._checkpoint.read_rows("model.embed_tokens.weight", token, token + 1)
            for change in changes:
                row = change.add_rows(row.float(), token)
            rows.append(row)
        return torch.cat(rows).to(self._device, self._dtype)

    def _normalized(self, state: Tensor, weight: Tensor) -> Tensor:
        wide = state.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return (weight * (wide * scale)).to(self._dtype)

    def _attention(self, layer: int) -> GptOssAttention:
        """Return transformers' attention of one layer with its weights, adapters beside them."""
        with torch.device("meta"):
            module = GptOssAttention(self.config, layer)
        module = module.to_empty(device=self._device).to(self._dtype).eval()
        prefix = f"model.layers.{layer}.self_attn"
        module.load_state_dict({n: self._read(f"{prefix}.{n}") for n in module.state_dict()})
        for name in ATTENTION_PROJECTIONS:
            changes = [
                change.to(self._device) for change in low_ranks(self._adapters, f"{prefix}.{name}")
            ]
            if changes:
                setattr(module, name, _Beside(getattr(module, name), changes))
        return module

    def _projection(self, layer: int, name: str) -> ExpertProjection:
        """Return the experts of one projection as stored, with the adapters' factors."""
        key = expert_key(layer, name)
        if self._checkpoint.expert_format == "mxfp4":
            parts = (self._checkpoint.read(f"{key}_{p}").to(self._device) for p in _PARTS)
            weight: Mxfp4Weight | Tensor = Mxfp4Weight(*parts)
        else:
            weight = self._checkpoint.read(key).to(self._device)
            if self._packed:
                weight = _packed(weight)
        changes = low_ranks(self._adapters, key)
        bias = self._read(f"{key}_bias")
        if not changes:
            return ExpertProjection(weight, bias)
        # A sum of low-rank changes is one of the summed rank; the scalings go into B.
        # Merge-aware training rounds with the factors in fp32, whatever the rest is.
        dtype = torch.float32 if self._merge_aware else self._dtype
        lora_a = torch.cat([change.A for change in changes], dim=1).to(self._device, dtype)
        scaled = [change.B * (change.scaling / changes[0].scaling) for change in changes]
        lora_b = torch.cat(scaled, dim=2).to(self._device, dtype)
        return ExpertProjection(weight, bias, lora_a, lora_b, changes[0].scaling)

    def _head(self, states: list[Tensor]) -> list[Tensor]:
        """Return the logits of the final states, reading the head in bands of rows."""
        tied = self.config.tie_word_embeddings
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        rows = self._checkpoint.shape(name)[0]
        changes = low_ranks(self._adapters, "lm_head")
        parts: list[list[Tensor]] = [[] for _ in states]
        lengths: list[Tensor] = []
        for start in range(0, rows, _HEAD_ROWS):
            band = self._checkpoint.read_rows(name, start, min(rows, start + _HEAD_ROWS))
            lengths += [_row_scales(band, change, start) for change in changes if _is_dora(change)]
            band = band.to(self._device, self._dtype)
            for part, state in zip(parts, states, strict=True):
                part.append((state @ band.T).float().cpu())
        logits = [torch.cat(part, dim=1) for part in parts]
        for change in changes:
            for i, state in enumerate(states):
                logits[i] += change.apply(state.float().cpu())
                if change.magnitude is not None:
                    logits[i] *= torch.cat(lengths)
        return logits

    def _with_factors(self, module: str) -> Tensor:
        """Return a linear weight with the adapters' changes inside it."""
        weight = self._read(f"{module}.weight")
        for change in low_ranks(self._adapters, module):
            weight = change.to(self._device).add_rows(weight.float()).to(self._dtype)
        return weight

    def _read(self, name: str) -> Tensor:
        return self._checkpoint.read(name).to(self._device, self._dtype)


@torch.no_grad()
def last_logits_of_each(
    models: Sequence[LayerwiseModel], prompts: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Return ``last_logits`` of several models on one checkpoint, which go through it together.

    A layer is read from the disk for the first of them; the others find its bytes in memory.

    Args:
        models: Of the same base, each with other adapters or in another dtype.
        prompts: Token ids.
    """
    passes = [model._states_by_layer(prompts) for model in models]
    states: list[list[Tensor]] = []
    for together in zip(*passes, strict=True):
        states = list(together)
    return [model._last_logits_of(final) for model, final in zip(models, states, strict=True)]


_PARTS = ("blocks", "scales")


def _packed(experts: Tensor) -> Mxfp4Weight:
    """Return dense experts ``[E, in, out]`` as MXFP4, by the export's rule for untrained scales."""
    coded = [quantize_reference(each.mT.float(), scale_rule="search") for each in experts]
    return Mxfp4Weight(
        torch.stack([each.blocks for each in coded]), torch.stack([each.scales for each in coded])
    )


def _is_dora(change: LowRank) -> bool:
    return change.magnitude is not None


def _row_scales(weight: Tensor, change: LowRank, start: int = 0) -> Tensor:
    """Return what DoRA multiplies the rows ``start`` onwards of base + change by, ``[rows]``."""
    assert change.magnitude is not None
    rows = slice(start, start + weight.shape[0])
    merged = weight.to(change.B).float() + change.scaling * (change.B[0, rows] @ change.A[0])
    return change.magnitude[rows] / torch.linalg.vector_norm(merged, dim=1)


class _Beside(nn.Module):
    """A linear layer with low-rank changes beside it."""

    def __init__(self, linear: nn.Linear, changes: Sequence[LowRank]) -> None:
        super().__init__()
        self.linear, self.changes = linear, changes

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.linear(inputs)
        for change in self.changes:
            out = out + change.apply(inputs.float()).to(out.dtype)
            if change.magnitude is not None:  # the bias is no part of the rows
                bias = 0 if self.linear.bias is None else self.linear.bias
                scales = _row_scales(self.linear.weight, change).to(out.dtype)
                out = (out - bias) * scales + bias
        return out


def _mask(tokens: int, window: int | None, device: torch.device) -> Tensor:
    """Return the additive causal mask ``[1, 1, T, T]``, -inf beyond ``window`` tokens back."""
    position = torch.arange(tokens, device=device)
    distance = position[:, None] - position
    unseen = distance < 0
    if window is not None:
        unseen = unseen | (distance >= window)
    return torch.zeros(unseen.shape, device=device).masked_fill(unseen, float("-inf"))[None, None]
