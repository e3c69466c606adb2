"""The trained weights are the served ones: swapped as an adapter, or shipped in MXFP4."""

import numpy as np
import pytest
import torch

from gptoss_tune.errors import MachineError
from gptoss_tune.rollout.sampler import Request

PROMPTS = [(200006, 1428, 200008, 5501, 25), (200006, 77, 912, 4031, 18, 9, 200006, 173781)]
# Plain transformers against our layers in fp32, without a cache against without one.
FP32 = 2e-4
# An export rounds the sums of attention to bf16; the experts of a merge-aware one are the same.
ATTENTION_IN_BF16 = 0.05


def requests(seed=0, tokens=5):
    return [Request(prompt, tokens, seed + n) for n, prompt in enumerate(PROMPTS)]


@torch.no_grad()
def trained_logps(policy, request, sampled):
    ids = torch.tensor([[*request.prompt, *sampled.token_ids]])
    logits = policy.model(ids).logits[0].float().log_softmax(-1)
    rows = range(len(request.prompt) - 1, ids.shape[1] - 1)
    return np.array([logits[row, ids[0, row + 1]].item() for row in rows])


def worst(policy, asked, found):
    return max(
        np.abs(trained_logps(policy, request, one) - one.logps).max()
        for request, one in zip(asked, found, strict=True)
    )


def test_a_swapped_adapter_is_the_policy(open_sampler, stand_in, tmp_path):
    sampler, policy = open_sampler()
    policy.move(1)
    sampler.update(3)
    asked = requests()
    found = sampler.sample(asked, 1.0)
    assert [one.version for one in found] == [3, 3] == [sampler.version] * 2
    assert worst(policy, asked, found) < FP32
    assert all(fields["model"].startswith("policy-v3-") for fields in stand_in.asked)
    assert [f["prompt"] for f in stand_in.asked] and not any("text" in f for f in stand_in.asked)
    for request, one in zip(asked, found, strict=True):
        assert one.choices.dtype == np.uint8
        assert one.choices.shape == (len(request.prompt) + len(one.token_ids) - 1, 2, 4)
    again = sampler.sample(asked, 1.0)
    assert [one.token_ids for one in again] == [one.token_ids for one in found]


def test_the_next_step_takes_the_place_of_the_one_before(open_sampler, stand_in, tmp_path):
    sampler, policy = open_sampler()
    policy.move(1)
    sampler.update(3)
    asked = requests()
    first = sampler.sample(asked, 0)
    policy.move(2)
    sampler.update(4)
    second = sampler.sample(asked, 0)
    assert worst(policy, asked, second) < FP32 < worst(policy, asked, first)
    (loaded,) = stand_in.engine.adapters
    assert loaded.startswith("policy-v4-")
    assert [path.name for path in (tmp_path / "handed").iterdir()] == [loaded]


def test_shipped_weights_are_the_policy(open_sampler, stand_in, tmp_path):
    sampler, policy = open_sampler(merge_aware=True)
    policy.move(3)
    sampler.update(1)
    asked = requests()
    found = sampler.sample(asked, 1.0)
    assert [one.version for one in found] == [1, 1]
    # A hair: that of attention, and with the same experts.
    shipped = worst(policy, asked, found)
    assert shipped < ATTENTION_IN_BF16
    assert not stand_in.paused and stand_in.label.startswith("weights-v1-")
    policy.move(4)
    assert worst(policy, asked, found) > 4 * ATTENTION_IN_BF16, "or the bound says nothing"
    sampler.update(2)
    found = sampler.sample(asked, 1.0)
    assert worst(policy, asked, found) < ATTENTION_IN_BF16
    assert [path.name for path in (tmp_path / "handed").iterdir()] == [stand_in.label]
    order = [call for call, _ in stand_in.calls]
    half = order[: len(order) // 2]
    assert half.index("pause") < half.index("collective_rpc") < half.index("reset_prefix_cache")
    assert half.index("reset_prefix_cache") < half.index("resume") == len(half) - 1


def test_a_reload_that_changed_nothing_is_seen_and_serves_nobody(open_sampler, stand_in):
    sampler, policy = open_sampler(merge_aware=True)
    policy.move(5)
    sampler.update(1)
    stand_in.loads = False
    policy.move(6)
    with pytest.raises(
        MachineError,
        match=r"holds the same weights as before in the .* \(4 such parts\); it stays paused",
    ):
        sampler.update(2)
    assert stand_in.paused and stand_in.label.endswith("-incomplete")


@pytest.mark.parametrize("kind", ["experts", "self_attn"])
def test_a_reload_that_left_a_part_out_is_seen(open_sampler, stand_in, kind):
    sampler, policy = open_sampler(merge_aware=True)
    policy.move(5)
    sampler.update(1)
    reload = stand_in.collective_rpc

    def in_part(fields):
        # As vLLM 0.32 did with experts in bf16: old tensors are put back, the answer is 200.
        old = dict(stand_in.engine.shipped.named_parameters())
        told = reload(fields)
        for name, new in stand_in.engine.shipped.named_parameters():
            if "layers.1." in name and kind in name:
                new.data.copy_(old[name])
        return told

    stand_in.collective_rpc = in_part
    policy.move(6)
    part = {"experts": "experts", "self_attn": "attention"}[kind]
    with pytest.raises(MachineError, match=rf"same weights as before in the {part} of layer 1 \(1"):
        sampler.update(2)
    assert stand_in.paused


def test_weights_that_are_there_are_not_shipped_again(open_sampler, stand_in):
    for merge_aware in (False, True):
        sampler, policy = open_sampler(merge_aware=merge_aware)
        policy.move(7)
        sampler.update(1)
        count = len(stand_in.calls)
        sampler.update(1)  # before an evaluation, and before the next phase
        assert len(stand_in.calls) == count
        assert sampler.sample(requests(tokens=1), 1.0)[0].version == 1


def test_the_same_weights_again_are_no_mistake(open_sampler, stand_in):
    sampler, policy = open_sampler(merge_aware=True)
    policy.move(5)
    sampler.update(1)
    sampler.update(2)  # a step with a learning rate of 0
    assert sampler.sample(requests(tokens=1), 1.0)[0].version == 2


def test_an_adapter_that_was_rounded_is_not_shipped_unless_the_record_says_so(
    open_sampler, stand_in, tmp_path
):
    sampler, policy = open_sampler(merge_aware=True)
    policy.move(5)
    record = {"base": {"name": str(policy.checkpoint.path)}, "recipe": {"lora": {}}}
    from gptoss_tune.rollout.server.handover import ShippedWeights, write_record
    from gptoss_tune.train.resume.adapter_files import save_adapter

    save_adapter(policy.model, tmp_path / "adapter")
    write_record(tmp_path / "adapter", record)
    shipped = ShippedWeights(sampler._server, policy.checkpoint, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(MachineError, match="does not say that the rounded weights were trained"):
        shipped.hand_over(tmp_path / "adapter", 1)
    assert not list((tmp_path / "out").iterdir()) and not stand_in.calls


def test_a_run_that_goes_on_compares_with_what_the_server_holds(
    open_sampler, stand_in, tmp_path, capsys
):
    sampler, policy = open_sampler(merge_aware=True)
    policy.move(5)
    sampler.update(1)
    sampler, _ = open_sampler(merge_aware=True)
    sampler.update(2)  # the same weights: none of the server's may change, as the base's would
    held = stand_in.label
    assert held.startswith("weights-v2-") and (tmp_path / "handed" / held).is_dir()
    stand_in.loads = False
    sampler, _ = open_sampler(merge_aware=True)
    policy.move(6)
    with pytest.raises(MachineError, match=r"holds the same weights as before .*\(4 such parts\)"):
        sampler.update(3)
    # Killed in the middle, or its folder removed: nothing to compare with, said once.
    sampler, _ = open_sampler(merge_aware=True)
    capsys.readouterr()
    sampler.update(4)
    said = capsys.readouterr().err
    assert said.count("seen by the mismatch KL alone") == 1 and "-incomplete, which is not" in said


@pytest.mark.parametrize(
    "merge_aware, told",
    [
        (False, r"load_lora_adapter .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.*--enable-lora"),
        (True, r"weight_checker .*VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_without_the_calls_is_refused_with_the_flags(
    open_sampler, stand_in, merge_aware, told, tmp_path
):
    stand_in.lora = stand_in.dev = False
    sampler, _ = open_sampler(merge_aware=merge_aware)
    with pytest.raises(MachineError, match=told):
        sampler.update(0)
    assert not list((tmp_path / "handed").glob(".*")), "nothing half-written is left"


def test_a_folder_that_the_server_does_not_see_is_told(open_sampler, stand_in):
    words = {"error": {"message": "Loading lora policy failed: No adapter found for /elsewhere"}}
    stand_in.load_lora_adapter = lambda fields: (404, words)
    sampler, _ = open_sampler()
    told = r"No adapter found .*method\.server_folder must be at this path for the server too\)$"
    with pytest.raises(MachineError, match=told):
        sampler.update(0)


def test_an_adapter_that_only_one_process_of_the_server_knows_is_refused(open_sampler, stand_in):
    stand_in.load_lora_adapter = lambda fields: (200, b"Success")
    sampler, _ = open_sampler()
    with pytest.raises(MachineError, match="--api-server-count 1"):
        sampler.update(0)
