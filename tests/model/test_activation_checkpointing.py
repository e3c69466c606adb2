"""Checkpointing keeps what it says, replays the router, and changes no gradient."""

import pytest
import torch
from gptoss_kernels.attention.eager import EagerEngine
from transformers import GptOssConfig

from gptoss_tune.model.activation_checkpointing import InputOffloader, set_checkpointing
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.norms import set_norms

MODES = ["none", "selective", "full", "offload"]


@pytest.fixture
def trainable(small_model, randomise_adapters):
    model = small_model()
    randomise_adapters(model)
    set_attention(model)
    set_norms(model)
    return model.train()


@pytest.fixture
def batch():
    tokens = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(4))
    return {"input_ids": tokens, "shift_labels": tokens, "loss_weights": torch.ones(2, 21)}


def gradients(model, batch):
    model.zero_grad()
    out = model(**batch, use_cache=False)
    out.loss_sum.backward()
    return [out.loss_sum.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("mode", MODES[1:])
def test_every_mode_has_the_same_loss_and_gradients(trainable, batch, mode):
    set_checkpointing(trainable, "none")
    expected = gradients(trainable, batch)
    set_checkpointing(trainable, mode)
    actual = gradients(trainable, batch)
    assert len(actual) == 1 + 2 * (4 + 2) * 2
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_modes_can_be_changed_and_evaluation_is_not_checkpointed(trainable, batch):
    layers = trainable.get_base_model().model.layers
    for mode in (*MODES, "none"):
        set_checkpointing(trainable, mode)
        again = mode in ("full", "offload")
        assert all(layer.gradient_checkpointing is again for layer in layers)
        settings = {layer.mlp.experts.base_layer.base_layer.expert_settings for layer in layers}
        assert {s.recompute_gate_up for s in settings} == {mode != "none"}
        assert {s.scratch_bytes for s in settings} == {2**26 if mode == "offload" else 2**31}
        assert all(len(layer.mlp.router._forward_hooks) == again for layer in layers)
    set_checkpointing(trainable, "full")
    with torch.no_grad():
        trainable.eval()(**batch, use_cache=False)
    assert all(layer.mlp.router.choice is None for layer in layers)


def test_long_rows_compute_the_scores_of_full_layers_once(trainable, batch, monkeypatch):
    from gptoss_tune.model import activation_checkpointing

    set_checkpointing(trainable, "full")
    expected = gradients(trainable, batch)
    monkeypatch.setattr(activation_checkpointing, "KEEP_ATTENTION_FROM", 21)
    windows = []

    class Counting(EagerEngine):
        def forward(self, query, key, value, sinks, rule):
            windows.append(rule.window)
            return super().forward(query, key, value, sinks, rule)

    for layer in trainable.get_base_model().model.layers:
        layer.self_attn.attention_engine = Counting()
    actual = gradients(trainable, batch)
    assert windows == [8, None, 8], "the window layer is cheap and runs twice, the full one once"
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    set_checkpointing(trainable, "offload")
    windows.clear()
    gradients(trainable, batch)
    assert windows == [8, None, None, 8], "where memory is short nothing more is kept"


class FlakyRouter:
    """Makes a router's logits differ between two runs, as other kernels or orders do."""

    def __init__(self, router):
        self.runs, self.used = 0, []
        # Before the hook that keeps the choice, as if the router itself had computed it.
        router.register_forward_hook(self.disturb, prepend=True)
        router.register_forward_hook(lambda module, args, output: self.used.append(output[2]))

    def disturb(self, router, args, output):
        self.runs += 1
        logits = output[0] + (self.runs - 1) * torch.linspace(3, -3, output[0].shape[1])
        values, indices = logits.topk(output[2].shape[1])
        return logits, values.softmax(-1), indices


@pytest.mark.parametrize("replayed", [True, False], ids=["replayed", "not replayed"])
def test_recomputation_uses_the_experts_of_the_first_pass(trainable, batch, replayed):
    set_checkpointing(trainable, "full")
    router = trainable.get_base_model().model.layers[1].mlp.router
    if not replayed:
        router.choice_handle.remove()
    flaky = FlakyRouter(router)
    trainable(**batch, use_cache=False).loss_sum.backward()
    assert flaky.runs == 2 and len(flaky.used) == 2
    same = torch.equal(flaky.used[0], flaky.used[1])
    assert same is replayed, "bit-equal with the replay; the disturbance does move the choice"


@pytest.fixture(scope="module")
def real_layer():
    """Make one adapted layer at the released shapes, with as many experts as a token uses."""
    from gptoss_kernels import Mxfp4Weight

    from gptoss_tune.model.causal_lm import GptOssForTuning
    from gptoss_tune.model.expert_weight import ExpertWeight
    from gptoss_tune.model.experts import EXPERTS_IMPLEMENTATION
    from gptoss_tune.model.lora import add_adapters
    from gptoss_tune.recipe import LoraSection

    config = GptOssConfig(num_hidden_layers=1, num_local_experts=4, vocab_size=32, use_cache=False)
    with torch.device("meta"):
        model = GptOssForTuning._from_config(
            config, dtype=torch.bfloat16, experts_implementation=EXPERTS_IMPLEMENTATION
        )
    rotary = type(model.model.rotary_emb)(config)
    model = model.to_empty(device="cpu").requires_grad_(False)
    model.model.rotary_emb = rotary
    for parameter in model.parameters():
        parameter.fill_(0.01)
    for name in ("gate_up_proj", "down_proj"):
        _, inner, out = getattr(model.model.layers[0].mlp.experts, name).shape
        scales = torch.full((4, out, inner // 32), 118, dtype=torch.uint8)
        weight = ExpertWeight(
            Mxfp4Weight(torch.zeros(*scales.shape, 16, dtype=torch.uint8), scales)
        )
        packed = torch.nn.Parameter(weight, requires_grad=False)
        setattr(model.model.layers[0].mlp.experts, name, packed)
    model = add_adapters(model, LoraSection(rank=16))
    set_attention(model)
    set_norms(model)
    model.get_base_model().model.norm = torch.nn.Identity()  # what it keeps is not a layer's
    return model.train()


def kept_bytes(model, length):
    """Return the bytes that one layer keeps for backward, each storage once, weights left out."""
    from gptoss_tune.model.expert_weight import ExpertWeight

    weights = {
        p.untyped_storage().data_ptr()
        for p in model.parameters()
        if not isinstance(p, ExpertWeight)
    }
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hidden = torch.randn(1, length, 2880, dtype=torch.bfloat16, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        model.get_base_model().model(inputs_embeds=hidden, use_cache=False)
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


# KiB per token and layer; the shapes give 88, 42 and 5.8 thousand bytes.
@pytest.mark.parametrize(
    ("mode", "kib"),
    [
        pytest.param("none", 86.3, marks=pytest.mark.slow),
        pytest.param("selective", 41.3, marks=pytest.mark.slow),
        ("full", 5.63),
    ],
    ids=MODES[:3],
)
def test_bytes_kept_per_token_and_layer_at_the_released_shapes(real_layer, mode, kib):
    set_checkpointing(real_layer, mode)
    # Two lengths, so that what does not grow with tokens (copies of the factors) drops out.
    per_token = (kept_bytes(real_layer, 48) - kept_bytes(real_layer, 16)) / 32 / 1024
    assert per_token == pytest.approx(kib, rel=0.02)


def test_mistakes_are_named(small_model):
    with pytest.raises(ValueError, match="must be none, selective, full or offload, got 'some'"):
        set_checkpointing(small_model(), "some")
    with pytest.raises(ValueError, match="holds no GptOssDecoderLayer"):
        set_checkpointing(torch.nn.Linear(2, 2), "full")


def test_on_a_cpu_there_is_nowhere_to_offload_to():
    offloader, tensor = InputOffloader(), torch.ones(2**20)
    assert offloader.unpack(offloader.pack(tensor)) is tensor


@pytest.mark.gpu
def test_offloaded_tensors_leave_the_gpu_and_come_back_equal():
    offloader = InputOffloader()
    tensors = [torch.randn(2**20, device="cuda") for _ in range(3)]
    copies = [offloader.pack(tensor) for tensor in tensors]
    torch.cuda.synchronize()
    assert all(copy.host.is_pinned() for copy in copies)
    for tensor, copy in zip(reversed(tensors), reversed(copies), strict=True):
        assert torch.equal(offloader.unpack(copy), tensor)


def parameters_of(config, rank, expert_rank):
    """Return the bytes of the base (experts in MXFP4, the rest bf16) and the trained values."""
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    stacks = experts * (3 * hidden * inner)
    packed = stacks * 17 / 32
    attention = hidden * (2 * queries + 2 * keys) + queries + 2 * keys + hidden
    others = attention + experts * (2 * inner + hidden) + experts * hidden + 2 * hidden
    base = config.num_hidden_layers * (packed + 2 * others) + 2 * 2 * config.vocab_size * hidden
    per_layer = rank * (4 * hidden + 2 * queries + 2 * keys)
    per_layer += expert_rank * experts * ((hidden + 2 * inner) + (inner + hidden))
    return base, config.num_hidden_layers * per_layer


LIMITS = {
    "gpt-oss-20b/qlora-16gb": (14.5, 4096, {"num_hidden_layers": 24, "num_local_experts": 32}),
    "gpt-oss-20b/qlora-128k": (40, 131_072, {"num_hidden_layers": 24, "num_local_experts": 32}),
    "gpt-oss-120b/qlora-80gb": (75, 4096, {"num_hidden_layers": 36, "num_local_experts": 128}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_recipes_stay_within_what_their_first_line_says(real_layer, name):
    """Calculated from shapes and from what a layer was counted to keep; no GPU takes part."""
    from gptoss_tune.model.activation_checkpointing import SCRATCH_BYTES
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.shipped import shipped

    limit, tokens, shape = LIMITS[name]
    path = shipped("recipes") / f"{name}.yaml"
    recipe = load_recipe(path)
    assert recipe.train.activation_checkpointing == "offload" and "8bit" in recipe.train.optim
    assert recipe.data.max_length == tokens and recipe.train.per_device_train_batch_size == 1
    config = GptOssConfig(**shape)
    rank = recipe.lora.rank
    base, trained = parameters_of(config, rank, recipe.lora.expert_rank or rank)
    if recipe.model.embeddings == "cpu":
        base -= 2 * config.vocab_size * config.hidden_size
    set_checkpointing(real_layer, "none")
    kept = (kept_bytes(real_layer, 48) - kept_bytes(real_layer, 16)) / 32
    # One layer run again, beside it the gradients of its largest product: dZ and dX of every row.
    rows = config.num_experts_per_tok
    gradients = 2 * rows * (2 * config.intermediate_size + config.hidden_size)
    two_inputs = 2 * 2 * config.hidden_size
    parts = {
        "base": base,
        "adapters, gradients, 8-bit Adam": trained * (4 + 4 + 2),
        "one layer": tokens * (kept + gradients + two_inputs),
        "decoded experts": SCRATCH_BYTES[True],
    }
    gib = sum(parts.values()) / 2**30
    assert gib <= limit, {part: round(value / 2**30, 2) for part, value in parts.items()}
    assert f"within {limit:g} GiB" in path.read_text().splitlines()[0]
