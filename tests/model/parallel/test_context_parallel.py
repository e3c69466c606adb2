"""A model whose row is spread over 2 and 4 ranks equals one rank: logits, loss, every gradient.

What the ranks do is in ``context_ranks.py``, started once for each number of them.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gptoss_kernels.attention.eager import EagerEngine
from gptoss_kernels.attention.flex import FlexEngine
from gptoss_kernels.attention.shards import RowShard
from gptoss_kernels.testing import assert_close, relative_rms

from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.parallel.context import set_context_parallel
from gptoss_tune.testing.tiny import tiny_checkpoint

FP32 = 1e-6  # relative RMS, as promised
LENGTH, LOGITS_OF = 640, 8
# Chunks of 160 tokens on 2 ranks and of 80 on 4, windows of 128; the last document is padding.
PACKED = [150, 1, 290, 170, 29]
NEVER = 10**9


def case(
    *overrides,
    lengths=PACKED,
    keep_from=NEVER,
    sinks=False,
    without_loss=None,
    logits=False,
    sharded=False,
):
    return {
        "sharded": sharded,
        "overrides": list(overrides),
        "lengths": lengths,
        "keep_from": keep_from,
        "sinks": sinks,
        "without_loss": without_loss,
        "logits": logits,
    }


def checkpointing(mode):
    return f"train.activation_checkpointing={mode}"


CASES = {
    "packed": case(checkpointing("none"), logits=True),
    "one document": case(checkpointing("none"), lengths=[639, 1], logits=True),
    "trained sinks": case(checkpointing("none"), sinks=True),
    "merge-aware": case(checkpointing("none"), "lora.merge_aware=true"),
    "selective": case(checkpointing("selective")),
    "full": case(checkpointing("full")),
    "full, attention kept": case(checkpointing("full"), keep_from=LENGTH),
    "offload": case(checkpointing("offload")),
    "full, together with FSDP2": case(checkpointing("full"), sharded=True),
    # Of 2 ranks the second holds nothing else.
    "a rank without loss": case(checkpointing("full"), without_loss=[160, 480]),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory, forked_python):
    """Return a function from a number of ranks to what each of them found."""
    folder, done = tmp_path_factory.mktemp("context"), {}
    base = tiny_checkpoint(folder / "base", seed=1, layers=2, experts=4, hidden=64, intermediate=96)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        "lora: {rank: 4, expert_rank: 2}\n"
        f"data: {{train: {folder / 'none.jsonl'}, max_length: {LENGTH}}}\n"
        f"train: {{output_dir: {folder / 'run'}, max_steps: 1}}\n"
    )
    (folder / "cases.json").write_text(json.dumps(CASES))

    def of(ranks):
        if ranks not in done:
            script = Path(__file__).with_name("context_ranks.py")
            ended = forked_python([script, recipe, folder], ranks=ranks)
            assert ended.returncode == 0, ended.stderr
            done[ranks] = [torch.load(folder / f"{ranks}-{rank}.pt") for rank in range(ranks)]
        return done[ranks]

    return of


def in_order(parts, ranks, every=1):
    """Put ``[1, S / N]`` of all ranks together, of every eighth token where so many were kept."""
    held = [RowShard(LENGTH, ranks, rank).indices()[::every] for rank in range(ranks)]
    return torch.cat(parts, dim=1)[:, torch.cat(held).argsort()]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_a_spread_row_equals_the_row_on_one_rank(name, ranks, found):
    (one,) = (rank[name] for rank in found(1))
    each = [rank[name] for rank in found(ranks)]
    if CASES[name]["logits"]:
        logits = in_order([rank["logits"] for rank in each], ranks, LOGITS_OF)
        assert_close("logits", logits, one["logits"], FP32)
        assert all(torch.equal(rank["off"], one["off"]) for rank in each)
    losses = in_order([rank["token_losses"] for rank in each], ranks)
    assert_close("token losses", losses, one["token_losses"], FP32)
    assert_close("loss", sum(rank["loss"] for rank in each), one["loss"], FP32)
    assert one["without"] == [] and all(rank["without"] == [] for rank in each)
    # 2 layers with A and B of q, k, v, o and of two stacks of experts.
    assert len(one["grads"]) == 2 * 2 * (4 + 2) + 2 * CASES[name]["sinks"]
    errors = {}
    for parameter, expected in one["grads"].items():
        total = sum(rank["grads"][parameter] for rank in each)
        assert expected.any(), parameter
        errors[parameter] = relative_rms(total, expected)
    assert max(errors.values()) <= FP32, errors
    if CASES[name]["without_loss"] and ranks == 2:
        assert each[1]["loss"] == 0
        seen = [n for n in one["grads"] if "layers.1" in n and "v_proj" in n]
        assert len(seen) == 2 and all(each[1]["grads"][n].any() for n in seen)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_layers_that_run_again_fetch_once_more_unless_attention_is_kept(ranks, found):
    for name, expected in {
        "packed": [128, None, None, 128],
        "full": [128, None, None, None, 128, 128],
        "full, attention kept": [128, None, None, 128, 128],
    }.items():
        assert all(rank[name]["fetched"] == expected for rank in found(ranks)), name


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_one_rank_alone_computes_both_halves_and_mistakes_are_named(small_model, alone):
    model = small_model().eval()
    tokens = torch.randint(0, 97, (2, 32), generator=torch.Generator().manual_seed(2))
    positions = torch.cat([torch.arange(n) for n in (13, 19)])[None].expand(2, -1)
    with pytest.raises(ValueError, match="call set_attention first"):
        set_context_parallel(model, alone)
    set_attention(model)
    expected = model(tokens, position_ids=positions, use_cache=False).logits
    set_context_parallel(model, alone)
    set_context_parallel(model, alone)  # twice does not mean two hooks
    actual = model(tokens, position_ids=positions, use_cache=False).logits
    assert_close("logits", actual, expected, FP32)
    with pytest.raises(ValueError, match=r"needs position_ids of the shape .*\(2, 32\), got None"):
        model(tokens, use_cache=False)
    with pytest.raises(ValueError, match=r"got \(1, 32\)"):
        model(tokens, position_ids=positions[:1], use_cache=False)
    with pytest.raises(ValueError, match=r"even number of tokens, got \(2, 31\)"):
        model(tokens[:, 1:], position_ids=positions[:, 1:], use_cache=False)
    with pytest.raises(ValueError, match="attention_mask came for a part of a row"):
        mask = torch.ones_like(tokens)
        model(tokens, position_ids=positions, attention_mask=mask, use_cache=False)
    with pytest.raises(ValueError, match="do not generate"):
        model.generate(tokens, max_new_tokens=2, use_cache=True)
    set_context_parallel(model, None)
    assert model.generate(tokens, max_new_tokens=2, do_sample=False).shape == (2, 34)
    assert torch.equal(model(tokens, position_ids=positions, use_cache=False).logits, expected)


def test_engines_that_cannot_serve_a_part_of_a_row_are_refused(small_model, alone):
    class ForgetsKeysBefore(EagerEngine):
        def backward(self, *args):
            grads = super().backward(*args)
            for grad in grads[1:]:
                grad[:, :, : args[-1].documents.keys_before] = 0
            return grads

    model = small_model(adapted=False)
    set_attention(model)
    for engine, said in (
        (FlexEngine(compiled=False), "FlexEngine brings its own autograd"),
        (ForgetsKeysBefore(), "its key gradient is wrong by .* choose another engine"),
    ):
        for layer in model.model.layers:
            layer.self_attn.attention_engine = engine
        with pytest.raises(ValueError, match=said):
            set_context_parallel(model, alone)
    with pytest.raises(ValueError, match="holds no GptOssModel"):
        set_context_parallel(torch.nn.Linear(2, 2), alone)
