"""Peak GPU memory of a training step: weights, saved activations, temporary buffers.

The tensors that a decoder layer saves for its backward pass are listed one by one, for every value
of ``train.activation_checkpointing``; the tests hook what autograd really saves and compare. Around
them stand the buffers that live for a moment: the decoded experts, the rows of one layer's
backward, a chunk of logits. The peak is what is always held, what is saved, and the largest of
those moments.

Measuring one step and scaling it was the alternative: it needs the GPU that the plan is to choose.
"""

# Legend: T tokens of a micro-batch, K experts per token, H hidden, I intermediate, E experts.

from __future__ import annotations

from dataclasses import dataclass

from gptoss_tune.plan.experts.at_work import (
    backward_rows,
    forward_rows,
    input_gradient,
    scratch,
    tile_sizes,
    tiles,
)
from gptoss_tune.plan.parallel.context import attention_moment
from gptoss_tune.plan.rollout.phase import playing_bytes
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.plan.weights import (
    FP32_BYTES,
    PACKED_TILE_ROWS,
    Factors,
    adapter_parameters,
    base_bytes,
    int8_bytes,
    optimizer_bytes,
)

LOSS_CHUNK_ROWS, PACKED_LOSS_CHUNK_ROWS, LOSS_TILE_COLUMNS = 1024, 512, 8192
CONTEXT_BYTES = 2**29
"""Driver, CUDA libraries and kernels outside torch's allocator: an allowance, not a measurement."""
FRAGMENTATION = 0.03
"""Share of the peak that the allocator cannot use: an allowance, not a measurement."""

_INDEX_BYTES, _LONG_INDEX_BYTES = 4, 8
_WEIGHTS = ("experts", "attention", "embeddings", "other weights", "adapters")


@dataclass(frozen=True)
class Saved:
    """Bytes kept between forward and backward: ``per_token * T + fixed``.

    Attributes:
        per_token: Grow with the tokens of the micro-batch.
        fixed: Do not: attention's factors in the compute dtype, those of chosen experts laid out
            for all, where each expert's rows start.
    """

    per_token: int
    fixed: int

    def __add__(self, other: Saved) -> Saved:
        """Add both parts."""
        return Saved(self.per_token + other.per_token, self.fixed + other.fixed)

    def bytes(self, tokens: int) -> int:
        """Return the bytes for ``tokens`` tokens."""
        return self.per_token * tokens + self.fixed


def layer_saved(
    setup: TrainingSetup,
    factors: list[Factors],
    *,
    with_gate_up: bool = True,
    with_rank_rows: bool = True,
    lowest: bool = False,
) -> Saved:
    """Return what one layer saves when it is not run again.

    Args:
        setup: Its sizes, ``model.dtype`` and ``lora.merge_aware`` decide.
        factors: The layer's adapters.
        with_gate_up: Keep the gate_up output of every routed row, as with
            ``activation_checkpointing: none``.
        with_rank_rows: Keep what the experts' A factors gave of every routed row, as without a
            second run of the layer.
        lowest: The lowest layer with adapters: nothing below it asks for a gradient, so it keeps
            neither its first norm's input nor copies of the lowest A.
    """
    a, value = setup.architecture, setup.value_bytes
    merged, mixed = setup.lora.merge_aware, setup.model.dtype == "bfloat16"
    inputs = [f for f in factors if f.target in ("q_proj", "k_proj", "v_proj")]
    attention = [f for f in factors if not f.on_experts]
    experts = [f for f in factors if f.on_experts]
    token = fixed = 0
    if not lowest:
        token += a.hidden * value + FP32_BYTES  # the first norm: its input and 1 / rms
    if inputs:
        token += a.hidden * value  # what q, k and v read
    # Factors that read what asks for no gradient keep no copy of their A.
    without_A = inputs or [f for f in attention if f.target == "o_proj"] if lowest else []
    if without_A and not inputs:
        token += a.query_size * value  # what o reads
    if inputs or not lowest:
        token += (2 * a.query_size + 2 * a.key_size) * value + a.heads * FP32_BYTES
    token += sum(f.rank for f in attention) * value
    if attention or not lowest:
        token += a.hidden * value + FP32_BYTES  # the second norm
        token += a.experts_per_token * (_LONG_INDEX_BYTES + value)  # top-k and its softmax
    token += a.hidden * value + a.experts_per_token * 3 * _INDEX_BYTES  # what the experts read
    if with_gate_up:
        token += a.experts_per_token * 2 * a.intermediate * value
    if with_rank_rows and not merged:
        token += sum(f.rank for f in experts) * a.experts_per_token * value
    fixed += FP32_BYTES * sum(f.laid_out for f in experts)  # chosen ones among zeros
    if mixed:
        fixed += sum(f.parameters for f in attention) * value
        fixed -= sum(f.parameters_A for f in without_A) * value
    return Saved(token, fixed + tiles(setup) * (a.experts + 1) * _INDEX_BYTES)


def model_saved(setup: TrainingSetup) -> Saved:
    """Return what the whole model keeps from the forward pass to the backward pass, on the GPU."""
    a, value, mode = setup.architecture, setup.value_bytes, setup.train.activation_checkpointing
    # The final norm, and what the loss hands back: the gradient of its input.
    total = Saved(a.hidden * value + FP32_BYTES, 0)
    for layer in range(setup.lowest_layer, a.layers):
        if mode in ("none", "selective"):
            total += layer_saved(
                setup,
                setup.factors_of(layer),
                with_gate_up=mode == "none",
                lowest=layer == setup.lowest_layer,
            )
        else:
            rows = 0 if mode == "offload" else tiles(setup) * (a.experts + 1) * _INDEX_BYTES
            total += Saved(_kept_by_rerun(setup, layer), rows)
    return total + Saved(a.head_dim * value, 0)  # cosines and sines, one table for all layers


def _kept_by_rerun(setup: TrainingSetup, layer: int) -> int:
    """Return the bytes per token of a layer that is run again: its input and what saves work."""
    a, value = setup.architecture, setup.value_bytes
    kept = a.experts_per_token * _LONG_INDEX_BYTES  # the router's choice
    if setup.train.activation_checkpointing == "offload":
        return kept  # the input is in pinned host memory
    kept += a.hidden * value + a.experts_per_token * 3 * _INDEX_BYTES  # and the rows it sorts
    if setup.keeps_attention and a.layer_types[layer] == "full_attention":
        kept += a.query_size * value + a.heads * FP32_BYTES
    return kept


@dataclass(frozen=True)
class Moments:
    """Buffers that live for a moment, in bytes; the largest of the sums counts.

    Attributes:
        rerun: One layer's saved tensors while it is run again in backward.
        rows: Routed rows of one expert layer's backward, and the gradients that enter and leave.
        scratch: Decoded experts of one layer.
        loss: A chunk of logits, its fp32 tiles, and the gradient of the last hidden states.
        step: What AdamW holds beside its state while it updates.
        gathered: Layers and lm_head put together from their shards, with FSDP2.
    """

    rerun: int
    rows: int
    scratch: int
    loss: int
    step: int
    gathered: int

    @property
    def peak(self) -> int:
        """Bytes of the largest moment: backward of a layer, the loss, or the optimizer's step."""
        return max(self.rerun + self.rows + self.scratch, self.loss, self.step) + self.gathered


def moments(setup: TrainingSetup) -> Moments:
    """Return the passing buffers of a step."""
    a, value, mode = setup.architecture, setup.value_bytes, setup.train.activation_checkpointing
    tokens, lowest = setup.tokens, setup.factors_of(setup.lowest_layer)
    rerun = 0
    if mode in ("full", "offload"):
        again = layer_saved(setup, lowest, with_gate_up=False, with_rank_rows=False)
        # Its input and the router's choice are those that were kept.
        layers = range(setup.lowest_layer, a.layers)
        common = min(_kept_by_rerun(setup, layer) for layer in layers) * tokens
        rerun = again.bytes(tokens) - common
    if mode == "offload":
        rerun += tokens * a.hidden * value  # the next layer's input, on its way back
    # The gradient of the layer's output, which its input gets as well, takes the place of the final
    # norm's input, which is no longer kept by then.
    working = backward_rows(setup) + input_gradient(setup)
    # Attention goes backward when the experts, and what their norm and they have read, are gone.
    given_back = 2 * tokens * a.hidden * value
    attention = _attention_backward(setup, lowest) + attention_moment(setup)
    working = max(working, attention - given_back - scratch(setup))
    loss = _loss_chunk(setup, backward=True) + 2 * tokens * a.hidden * value
    step = FP32_BYTES * adapter_parameters(setup.factors) if setup.train.optim == "adamw" else 0
    gathered = 0
    if setup.strategy == "fsdp2":
        # The layer at work, the buffer that receives the next, and lm_head, which stays together
        # from the forward to the backward pass; one layer's gradients, whole, and their sums.
        gathered = setup.gathered_bytes
        gathered += 4 * FP32_BYTES * adapter_parameters(lowest)
        step = -(-step // setup.shards)
    return Moments(rerun, working, scratch(setup), loss, step, gathered)


def _attention_backward(setup: TrainingSetup, factors: list[Factors]) -> int:
    """Return the bytes of a layer's attention going backward: what its heads get and give.

    The gradient of what o reads comes in two parts, by its weight and by its adapter, and their
    sum; then there are the gradients of what the heads gave, of q, of k and of v.
    """
    a = setup.architecture
    parts = 3 * a.query_size * any(f.target == "o_proj" for f in factors)
    heads = 2 * a.query_size + 2 * a.key_size
    return setup.tokens * max(parts, heads) * setup.value_bytes


def _loss_chunk(setup: TrainingSetup, *, backward: bool) -> int:
    """Return the bytes of a chunk of logits, its fp32 tiles, and of what a packed head decodes."""
    a, value = setup.architecture, setup.value_bytes
    packed = setup.model.head_precision != "bf16" or setup.model.head == "cpu"
    chunk = min(PACKED_LOSS_CHUNK_ROWS if packed else LOSS_CHUNK_ROWS, setup.tokens)
    tile = chunk * min(LOSS_TILE_COLUMNS, a.vocabulary) * FP32_BYTES
    held = chunk * a.vocabulary * value + 2 * tile
    if packed:
        tile_rows = min(PACKED_TILE_ROWS, a.vocabulary)
        held += tile_rows * a.hidden * value
        if setup.model.head == "cpu" and setup.model.head_precision == "int8":
            held += int8_bytes(tile_rows, a.hidden)  # as it came, before it is decoded
        if backward:  # the fp32 sum over tiles, one tile's part of it and the sum rounded
            held += chunk * a.hidden * (FP32_BYTES + 2 * value)
    return held


def forward_peak(setup: TrainingSetup) -> int:
    """Return the bytes of one GPU in a pass without gradients, before the first step.

    They lie below the peak of a step in every mode: nothing is kept for a backward pass, and what
    one layer works on is less than what its backward pass does.
    """
    base = sum(base_bytes(setup.architecture, setup.model).values()) - setup.host_weight_bytes
    held = base + FP32_BYTES * adapter_parameters(setup.factors)
    held = -(-held // setup.shards) + forward_moment(setup)
    return held + CONTEXT_BYTES + int(FRAGMENTATION * held)


def forward_moment(setup: TrainingSetup) -> int:
    """Return the largest buffers of a pass without gradients: a layer, or a chunk of logits."""
    a, value, tokens = setup.architecture, setup.value_bytes, setup.tokens
    # What a layer adds to, its norm, and q while it is rotated, beside k and v; or the experts'
    # input, outputs and their sums, the router's choice, the sorted rows, and the rows of a tile.
    attention = tokens * (2 * a.hidden + 4 * a.query_size + 3 * a.key_size) * value
    per_row = 3 * _INDEX_BYTES + _LONG_INDEX_BYTES
    experts = tokens * (4 * a.hidden * value + a.experts_per_token * per_row)
    experts += forward_rows(setup)
    loss = _loss_chunk(setup, backward=False) + tokens * a.hidden * value
    gathered = 0
    if setup.strategy == "fsdp2":
        gathered = setup.gathered_bytes
    tables = tokens * a.head_dim * value  # cosines and sines
    return max(attention, experts + scratch(setup, backward=False), loss) + tables + gathered


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU by kind; their sum is the peak.

    Attributes:
        kinds: Name of the kind to bytes, in the order they come into being.
    """

    kinds: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes of the peak, allowances included."""
        return sum(self.kinds.values())

    @property
    def resident(self) -> int:
        """Bytes of the base and the adapters, which a loaded model holds."""
        return sum(self.kinds[name] for name in _WEIGHTS)


def memory(setup: TrainingSetup) -> Memory:
    """Return the peak of one GPU, by kind: of a step, or of playing episodes, if that is more.

    Rows are taken at ``data.max_length``: shorter ones need less. With several GPUs ``ddp`` holds
    everything on each, ``fsdp2`` a share of it.
    """
    step = step_memory(setup)
    return max(step, playing_memory(setup, step) or step, key=lambda one: one.peak)


def playing_memory(setup: TrainingSetup, step: Memory) -> Memory | None:
    """Return the peak while episodes are played, beside what a step leaves; else ``None``."""
    if not (playing := playing_bytes(setup)):
        return None
    kinds = {name: step.kinds[name] for name in (*_WEIGHTS, "optimizer")} | playing
    if setup.strategy == "fsdp2":
        kinds["gathered weights"] = setup.gathered_bytes
    return _with_headroom(kinds)


def step_memory(setup: TrainingSetup) -> Memory:
    """Return the peak of a training step on one GPU, by kind."""
    optim, shards = setup.train.optim, setup.shards
    trained = adapter_parameters(setup.factors)
    base = base_bytes(setup.architecture, setup.model)
    kinds = {
        "experts": -(-base["experts"] // shards),
        "attention": -(-base["attention"] // shards),
        "embeddings": -(-(base["embeddings"] - setup.host_weight_bytes) // shards),
        "other weights": -(-base["other"] // shards),
        "adapters": -(-FP32_BYTES * trained // shards),
        "gradients": -(-FP32_BYTES * trained // shards),
        "optimizer": -(-optimizer_bytes(setup.factors, optim) // shards),
        "saved activations": model_saved(setup).bytes(setup.tokens),
    }
    if optim == "paged_adamw_8bit":
        kinds["optimizer"] = 0  # in host memory
    if setup.strategy == "ddp" and setup.num_processes > 1:
        kinds["gradient buckets"] = FP32_BYTES * trained
    added = -(-setup.added.base_copies * sum(base.values()) // shards)
    added += setup.added.bytes_per_token * setup.tokens
    if added:
        kinds[setup.method.name] = added
    kinds |= _largest_moment(moments(setup))
    return _with_headroom(kinds)


def _with_headroom(kinds: dict[str, int]) -> Memory:
    return Memory(kinds | {"headroom": CONTEXT_BYTES + int(FRAGMENTATION * sum(kinds.values()))})


def fitted(setup: TrainingSetup, memory_bytes: int) -> TrainingSetup:
    """Return the setup with a tile where ``train.expert_tile`` leaves it open, else as it is.

    Tiles trade memory for decoding and nothing else: the larger the better, and none where the
    whole micro-batch fits.

    Args:
        setup: A training.
        memory_bytes: Of one GPU.

    Returns:
        The setup with the largest tile that fits; where none does, the one that needs least.
    """
    if setup.train.expert_tile != "auto":
        return setup
    least = setup.with_settings({"train.expert_tile": None})
    peak, enough = memory(least).peak, memory_bytes
    for tile in tile_sizes(setup.tokens):
        if peak <= enough:
            break
        smaller = setup.with_settings({"train.expert_tile": tile})
        if (lower := memory(smaller).peak) < peak:
            least, peak = smaller, lower
        # A plan that fits to the byte is no plan, and a smaller tile costs little.
        enough = 0.98 * memory_bytes
    return least


def _largest_moment(passing: Moments) -> dict[str, int]:
    """Return the parts of the moment that makes the peak; the others have gone by then."""
    backward = passing.rerun + passing.rows + passing.scratch
    largest = max(backward, passing.loss, passing.step)
    kinds: dict[str, int] = {}
    if largest == backward:
        kinds["layer at work"] = passing.rerun + passing.rows
        kinds["expert scratch"] = passing.scratch
    elif largest == passing.loss:
        kinds["loss"] = passing.loss
    else:
        kinds["optimizer step"] = passing.step
    if passing.gathered:
        kinds["gathered weights"] = passing.gathered
    return kinds


def host_bytes(setup: TrainingSetup) -> int:
    """Return the pinned or paged host memory of one process: inputs, moments, embeddings."""
    held = setup.host_weight_bytes
    if setup.train.activation_checkpointing == "offload":
        layers = setup.architecture.layers - setup.lowest_layer
        held += layers * setup.tokens * setup.architecture.hidden * setup.value_bytes
    if setup.train.optim == "paged_adamw_8bit":
        held += optimizer_bytes(setup.factors, setup.train.optim)
    return held
