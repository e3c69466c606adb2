"""The experts' adapters without a parametrization: the same bits as PEFT's way, fp32 gradients."""

import pytest
import torch
from peft import get_peft_model

from gptoss_tune.model.activation_checkpointing import set_checkpointing
from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.lora import ParamWrapper, add_adapters, load_adapters, lora_config
from gptoss_tune.model.norms import set_norms
from gptoss_tune.recipe import LoraSection

SECTION = LoraSection(rank=4, expert_rank=3)
TOKENS = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(4))
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not")


@pytest.fixture
def bare(small_model):
    """Make the base of ``small_model`` in bf16, its stacks and adapters fp32 as the loader's."""

    def make():
        model = small_model(adapted=False)
        for layer in model.model.layers:
            for name in ("gate_up_proj", "down_proj"):
                stored = getattr(layer.mlp.experts, name).stored.bfloat16()
                packed = torch.nn.Parameter(ExpertWeight(stored), requires_grad=False)
                setattr(layer.mlp.experts, name, packed)
        for parameter in model.parameters():
            if not isinstance(parameter, ExpertWeight):
                parameter.data = parameter.data.bfloat16()
        return model

    return make


@pytest.fixture
def ours(bare, randomise_adapters):
    model = add_adapters(bare(), SECTION)
    randomise_adapters(model)
    set_attention(model)
    set_norms(model)
    return model.train()


@pytest.fixture
def parametrized(bare, randomise_adapters):
    """Make the same model with PEFT's own wrappers."""
    model = get_peft_model(bare(), lora_config(SECTION, num_layers=2))
    assert not any(isinstance(module, ParamWrapper) for module in model.modules())
    randomise_adapters(model)
    set_attention(model)
    set_norms(model)
    return model.train()


def step(model):
    """Return the loss and every gradient by name."""
    model.zero_grad()
    weights = torch.ones(TOKENS.shape)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=TOKENS, shift_labels=TOKENS, loss_weights=weights).loss_sum
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def logits(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model(TOKENS).logits


def forbid_parametrizations(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a forward pass parametrized a module")

    monkeypatch.setattr(torch.nn.utils.parametrize, "register_parametrization", refuse)


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_loss_and_gradients_are_those_of_the_parametrized_model(
    ours, parametrized, mode, monkeypatch
):
    set_checkpointing(ours, mode)
    set_checkpointing(parametrized, mode)
    expected = step(parametrized)
    forbid_parametrizations(monkeypatch)
    actual = step(ours)
    assert len(expected) == 1 + 2 * (4 + 2) * 2 and actual.keys() == expected.keys()
    assert all(expected[name].any() for name in expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    with pytest.raises(AssertionError, match="parametrized"):
        step(parametrized)


def test_saved_adapters_are_the_same_bytes(ours, parametrized, tmp_path):
    for name, model in (("ours", ours), ("theirs", parametrized)):
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
    files = sorted(file.name for file in (tmp_path / "theirs").iterdir())
    assert "adapter_config.json" in files and "adapter_model.safetensors" in files
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == files
    for name in files:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_a_loaded_adapter_acts_as_it_did(ours, bare, tmp_path, monkeypatch):
    ours.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_adapters(bare(), tmp_path)
    set_attention(loaded)
    set_norms(loaded)
    forbid_parametrizations(monkeypatch)
    assert torch.equal(logits(loaded), logits(ours.eval()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert sum(isinstance(module, ParamWrapper) for module in loaded.modules()) == 4


def test_disabled_adapters_leave_the_base(ours, bare):
    base = bare()
    set_attention(base)
    set_norms(base)
    expected, adapted = logits(base.eval()), logits(ours.eval())
    assert not torch.equal(adapted, expected)
    with ours.disable_adapter():
        assert torch.equal(logits(ours), expected)
    # One stack alone: the wrapper around it still hands its own factors through.
    outer = next(m for m in ours.modules() if isinstance(m, ParamWrapper))
    outer.base_layer._disable_adapters = True
    assert not torch.equal(logits(ours), adapted) and not torch.equal(logits(ours), expected)
    outer.base_layer._disable_adapters = False
    assert torch.equal(logits(ours), adapted)
    # Reading answers needs openai-harmony, which a machine that only measures lacks.
    generate = pytest.importorskip("gptoss_tune.evaluate.generate", exc_type=ImportError)
    with generate.without_adapters(ours):
        assert torch.equal(logits(ours), expected)


def test_the_active_adapter_is_the_one_that_acts(
    ours, parametrized, randomise_adapters, monkeypatch
):
    for model in (ours, parametrized):
        model.add_adapter("second", lora_config(SECTION, num_layers=2))
        randomise_adapters(model, seed=8)
    expected = {}
    for name in ("default", "second"):
        parametrized.set_adapter(name)
        expected[name] = logits(parametrized.eval())
    assert not torch.equal(expected["default"], expected["second"])
    forbid_parametrizations(monkeypatch)
    for name in ("second", "default"):
        ours.set_adapter(name)
        assert torch.equal(logits(ours.eval()), expected[name])
    ours.base_model.set_adapter(["default", "second"])
    with pytest.raises(NotImplementedError, match=r"2 adapters are active .* would expand it"):
        logits(ours)
    ours.delete_adapter("default")
    ours.set_adapter("second")
    assert torch.equal(logits(ours), expected["second"])


def test_merging_and_other_implementations_stay_refused(ours):
    with pytest.raises(NotImplementedError, match="would expand"):
        ours.merge_adapter()
    for module in ours.modules():
        if type(module).__name__ == "GptOssExperts":
            module.config._experts_implementation = "eager"
    with pytest.raises(NotImplementedError, match="would expand"):
        logits(ours)


@pytest.mark.parametrize("mode", ["none", "full"])
@pytest.mark.parametrize("merge_aware", [False, True], ids=["split", "merge-aware"])
def test_expert_gradients_are_fp32_and_no_copy_of_a_factor_is_kept(ours, mode, merge_aware):
    from gptoss_tune.model.experts import ExpertSettings, set_expert_settings

    set_expert_settings(ours, ExpertSettings(merge_aware=merge_aware))
    set_checkpointing(ours, mode)
    held = {p.untyped_storage().data_ptr() for p in ours.parameters() if p.requires_grad}
    rank = SECTION.expert_rank
    shapes = {(6, rank, 32), (6, 128, rank), (6, rank, 64), (6, 32, rank)}
    shapes |= {(e, b, a) for e, a, b in shapes}
    seen, copies = 0, []

    def pack(tensor):
        nonlocal seen
        if tuple(tensor.shape) in shapes:
            seen += 1
            if tensor.untyped_storage().data_ptr() not in held:
                copies.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = step(ours)
    assert copies == []
    assert mode == "full" or seen == 2 * 4, "the factors themselves are saved, in both layers"
    for name, gradient in found.items():
        if "lora_" in name and ".experts." in name:
            assert gradient.dtype == torch.float32
            assert (gradient != gradient.bfloat16().float()).float().mean() > 0.5, name
