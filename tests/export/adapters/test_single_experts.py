"""Factors of one expert each, as other programs lay experts out, against a dense sum per expert."""

import json

import pytest
import torch

from gptoss_tune.errors import CheckpointError
from gptoss_tune.evaluate.load import open_evaluated_model
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter

HIDDEN, INNER, EXPERTS, LAYERS = 64, 96, 4, 2
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def unsloth(layer, expert):
    """Unsloth's linear layers of a 4-bit gpt-oss: the rows of the release, gate and up by turns."""
    stem = f"model.layers.{layer}.mlp.experts"
    return {
        f"{stem}.gate_up_projs.{expert}": ("gate_up_proj", slice(None), HIDDEN, 2 * INNER),
        f"{stem}.down_projs.{expert}": ("down_proj", slice(None), INNER, HIDDEN),
    }


def mixtral(layer, expert, names=("gate_proj", "up_proj", "down_proj")):
    """Gate and up apart: the even and the odd rows."""
    stem, (gate, up, down) = f"model.layers.{layer}.mlp.experts.{expert}", names
    return {
        f"{stem}.{gate}": ("gate_up_proj", slice(0, None, 2), HIDDEN, INNER),
        f"{stem}.{up}": ("gate_up_proj", slice(1, None, 2), HIDDEN, INNER),
        f"{stem}.{down}": ("down_proj", slice(None), INNER, HIDDEN),
    }


def lists(layer, expert):
    """Lists of layers for gate and up each."""
    stem = f"model.layers.{layer}.mlp.experts"
    return {
        f"{stem}.gate_projs.{expert}": ("gate_up_proj", slice(0, None, 2), HIDDEN, INNER),
        f"{stem}.up_projs.{expert}": ("gate_up_proj", slice(1, None, 2), HIDDEN, INNER),
        f"{stem}.down_projs.{expert}": ("down_proj", slice(None), INNER, HIDDEN),
    }


def indexed(*names):
    return [f"{name}.{expert}" for name in names for expert in range(EXPERTS)]


# What the program writes, its target_modules, and the ranks and alphas of some of its layers.
FORMS = {
    "Unsloth": (unsloth, [*ATTENTION, *indexed("gate_up_projs", "down_projs")], {}, {}),
    "Unsloth by an expression": (
        unsloth,
        r".*\.mlp\.experts\.(gate_up|down)_projs\.\d+|.*self_attn\.[qkvo]_proj",
        {r"gate_up_projs\.2": 2},
        {"down_projs.1": 16, r"gate_up_projs\.[03]": 6},
    ),
    "as Mixtral's": (
        mixtral,
        [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
        {"up_proj": 2, r"experts\.3\.gate_proj": 5},
        {"gate_proj": 4, r"experts\.[01]\.down_proj": 2},
    ),
    "w1, w2, w3": (
        lambda layer, expert: mixtral(layer, expert, ("w1", "w3", "w2")),
        ["q_proj", "w1", "w2", "w3"],
        {},
        {},
    ),
    "lists of each": (lists, indexed("gate_projs", "up_projs", "down_projs"), {}, {}),
}
RANKS = {
    "Unsloth by an expression": lambda m: 2 if m.endswith("gate_up_projs.2") else 4,
    "as Mixtral's": lambda m: (
        2 if m.endswith("up_proj") else 5 if m.endswith("experts.3.gate_proj") else 4
    ),
}
ALPHAS = {
    "Unsloth by an expression": lambda m: (
        16
        if m.endswith(".down_projs.1")
        else 6
        if m.endswith(("gate_up_projs.0", "gate_up_projs.3"))
        else 8
    ),
    "as Mixtral's": lambda m: (
        4
        if m.endswith(".gate_proj")
        else 2
        if m.endswith(("experts.0.down_proj", "experts.1.down_proj"))
        else 8
    ),
}


def made(foreign, out, base_weights, form, *, without=()):
    """The adapter's folder, and the dense weights that it means, in float64."""
    layers_of, targets, ranks, alphas = FORMS[form]
    rank_of, alpha_of = RANKS.get(form, lambda m: 4), ALPHAS.get(form, lambda m: 8)
    weights, expected = {}, {n: t.double() for n, t in base_weights.items()}
    modules = {}
    for layer in range(LAYERS):
        if "q_proj" in str(targets) or "qkvo" in str(targets):
            modules[f"model.layers.{layer}.self_attn.q_proj"] = (None, None, HIDDEN, 256)
        for expert in range(EXPERTS):
            if (layer, expert) not in without:
                found = layers_of(layer, expert)
                modules |= {m: (f"{layer}", expert, *about) for m, about in found.items()}
    for seed, (module, about) in enumerate(modules.items()):
        into, out_rows = about[-2:]
        rank = rank_of(module)
        factors = foreign.factors(module, into, out_rows, rank, seed=seed)
        weights |= factors
        a, b = (tensor.double() for tensor in factors.values())
        delta = alpha_of(module) / rank * (b @ a)
        if about[1] is None:
            expected[f"{module}.weight"] += delta
        else:
            layer, expert, projection, rows = about[:4]
            # transformers' dense stacks are [E, in, out].
            stack = expected[f"model.layers.{layer}.mlp.experts.{projection}"]
            stack[expert].T[rows] += delta
    if isinstance(targets, list) and "k_proj" in targets:
        targets = [t for t in targets if t not in ("k_proj", "v_proj", "o_proj")]
    if isinstance(targets, str):
        targets = targets.replace("[qkvo]_proj", "q_proj")
    config = {"target_modules": targets, "rank_pattern": ranks, "alpha_pattern": alphas}
    return foreign.by_hand(out, weights, **config), expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[pytest.mark.slow] * bool(n)) for n, f in enumerate(FORMS)]
)
def test_the_merge_is_the_dense_sum_of_each_expert(foreign, base_weights, tmp_path, form):
    adapter, expected = made(foreign, tmp_path / "adapter", base_weights, form)
    merged, _ = foreign.merged(adapter, tmp_path / "out")
    foreign.assert_rounded(merged, expected)


@pytest.mark.parametrize("form", ["Unsloth", "as Mixtral's"])
def test_the_copy_for_peft_and_vllm_means_the_same(
    foreign, base, base_weights, lab, tmp_path, form
):
    adapter, expected = made(foreign, tmp_path / "adapter", base_weights, form)
    for reader in ("peft", "vllm"):
        copy = tmp_path / reader
        done = foreign.run("adapter", adapter, "--base", base, "--out", copy, "--for", reader)
        assert done.exit_code == 0, (done.output, done.exception)
        found = lab.merged_by_peft(base, copy)
        for name, tensor in expected.items():
            assert (found[name].double() - tensor).abs().max() < 1e-5, (reader, name)
        open_evaluated_model(str(copy), base=str(base))


@pytest.mark.slow
def test_experts_without_factors_stay_the_bases_and_are_counted(
    foreign, base, base_weights, lab, tmp_path
):
    without = {(0, 2), (1, 0), (1, 3)}
    adapter, expected = made(
        foreign, tmp_path / "adapter", base_weights, "Unsloth", without=without
    )
    merged, done = foreign.merged(adapter, tmp_path / "out")
    foreign.assert_rounded(merged, expected)
    assert "6 experts have no factors in a layer of which others do" in done.output
    packed, _ = foreign.merged(adapter, tmp_path / "packed", "--format", "mxfp4", "--accept-loss")
    stored = lab.weights(base)
    for layer, expert in without:
        for part in ("gate_up_proj_blocks", "down_proj_scales"):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            assert torch.equal(packed[name][expert], stored[name][expert]), (name, expert)
    copy = tmp_path / "copy"
    assert foreign.run("adapter", adapter, "--base", base, "--out", copy).exit_code == 0
    found = lab.merged_by_peft(base, copy)
    for name, tensor in expected.items():
        assert (found[name].double() - tensor).abs().max() < 1e-5, name
    compact = foreign.run("adapter", adapter, "--base", base, "--out", tmp_path / "c", "--compact")
    with pytest.raises(CheckpointError, match="leave --compact out"):
        raise compact.exception


def test_a_copy_is_asked_for_where_peft_would_read_the_file(foreign, base, base_weights, tmp_path):
    adapter, _ = made(foreign, tmp_path / "adapter", base_weights, "Unsloth")
    with pytest.raises(CheckpointError, match=r"of single experts.*adapter .* --for peft --out"):
        open_evaluated_model(str(adapter), base=str(base))


def damage(weights, change):
    module = "model.layers.0.mlp.experts"
    prefix = f"base_model.model.{module}"
    a, b = torch.ones(4, HIDDEN), torch.ones(2 * INNER, 4)
    pair = lambda m, a, b: {f"{m}.lora_A.weight": a, f"{m}.lora_B.weight": b}  # noqa: E731
    if change == "half a pair":
        del weights[f"{prefix}.gate_up_projs.1.lora_B.weight"]
    elif change == "an expert too many":
        weights |= pair(f"{prefix}.gate_up_projs.9", a, b)
    elif change == "rows in no known order":
        weights |= pair(f"{prefix}.1.gate_up_proj", a, b)
    elif change == "gate and whole":
        weights |= pair(f"{prefix}.gate_projs.1", a, b[:INNER].contiguous())
    elif change == "another shape":
        weights |= pair(f"{prefix}.gate_up_projs.1", a[:, :-1].contiguous(), b)
    elif change == "a row length":
        weights[f"{prefix}.gate_up_projs.1.lora_magnitude_vector"] = torch.ones(2 * INNER)


DAMAGES = {
    "half a pair": "1 of .* factors .* are missing",
    "an expert too many": "factors of expert 9 .* the base has 4",
    "rows in no known order": "whose order of gate and up rows nothing says",
    "gate and whole": "both change expert 1 of model.layers.0.mlp.experts.gate_up_proj",
    "another shape": r"is \[4, 63\], expected \[4, 64\]",
    "a row length": "has the row lengths of DoRA .* does not say use_dora",
}


@pytest.mark.parametrize("change", DAMAGES)
def test_what_is_no_whole_adapter_is_refused(foreign, base, base_weights, lab, tmp_path, change):
    adapter, _ = made(foreign, tmp_path / "adapter", base_weights, "Unsloth")
    targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    targets += ["gate_up_projs.9", "1.gate_up_proj", "gate_projs.1"]
    lab.edit_json(adapter / "adapter_config.json", target_modules=targets)
    lab.edit_weights(adapter, lambda weights: damage(weights, change))
    with pytest.raises(CheckpointError, match=DAMAGES[change]):
        open_adapter(adapter, open_checkpoint(base), translate=True)


def test_dora_of_single_experts_is_refused(foreign, base, base_weights, lab, tmp_path):
    adapter, _ = made(foreign, tmp_path / "adapter", base_weights, "Unsloth")
    lab.edit_json(adapter / "adapter_config.json", use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora with factors of experts"):
        open_adapter(adapter, open_checkpoint(base), translate=True)
