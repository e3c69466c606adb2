"""What vLLM's answer is made of, and every answer that is not what was asked for."""

import base64
import copy
import io

import numpy as np
import pytest

from gptoss_tune.rollout.sampler import Request
from gptoss_tune.rollout.server.answers import (
    OddAnswer,
    Sizes,
    Weights,
    completion_fields,
    other_weights,
    read_answer,
)

SIZES = Sizes(vocabulary=201_088, layers=2, experts=32, experts_per_token=4)
REQUEST = Request((11, 12, 13), 3, 2**63 + 5)
TOKENS = [7, 200012]
EXPERTS = np.arange(4 * 2 * 4, dtype=np.uint8).reshape(4, 2, 4)
ADAPTER, SHIPPED = Weights(3, "policy-v3-a"), Weights(3, "base", "policy-v3-a")


def in_base64(array):
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def good():
    choice = {
        "index": 0,
        "text": "seven",
        "finish_reason": "stop",
        "stop_reason": 200012,
        "token_ids": TOKENS,
        "prompt_token_ids": [11, 12, 13],
        "logprobs": {
            "tokens": ["token_id:7", "token_id:200012"],
            "token_logprobs": [-0.5, -1.25],
        },
        "routed_experts": in_base64(EXPERTS),
        "weight_versions": [{"version": "policy-v3-a", "start": 0, "end": 2}],
    }
    return {"model": "policy-v3-a", "choices": [choice]}


def test_an_answer_is_read_as_it_is():
    assert other_weights(good(), ADAPTER) is None
    found = read_answer(good(), REQUEST, ADAPTER, SIZES)
    assert found.token_ids == (7, 200012) and found.version == 3
    assert found.logps.dtype == np.float32 and found.logps.tolist() == [-0.5, -1.25]
    assert found.choices.dtype == np.uint8 and np.array_equal(found.choices, EXPERTS)


def test_wider_experts_are_the_same_and_none_are_none():
    answer = good()
    answer["choices"][0]["routed_experts"] = in_base64(EXPERTS.astype(np.int32))
    assert np.array_equal(read_answer(answer, REQUEST, ADAPTER, SIZES).choices, EXPERTS)
    answer["choices"][0]["routed_experts"] = None
    assert read_answer(answer, REQUEST, ADAPTER, SIZES).choices is None


def test_a_seed_fits_the_servers_integers():
    fields = completion_fields(REQUEST, ADAPTER, 1.0)
    assert fields["seed"] == 5 and "return_weight_versions" not in fields
    assert completion_fields(REQUEST, SHIPPED, 1.0)["return_weight_versions"] is True


def at(**choice):
    def change(answer):
        answer["choices"][0].update(choice)

    return change


def logprobs(**fields):
    return lambda answer: answer["choices"][0]["logprobs"].update(fields)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda a: a.update(choices=[]), "expected one choice"),
        (lambda a: a.update(choices=a["choices"] * 2), "expected one choice"),
        (at(token_ids=None), "return_token_ids"),
        (at(token_ids=[7, "x"]), "expected ids from 0"),
        (at(token_ids=[7, 201_088]), "expected ids from 0 to 201087"),
        (at(prompt_token_ids=[11, 12]), "3 ids back, got 2 others"),
        (at(prompt_token_ids=None), "got no others"),
        (at(token_ids=[200012, 7]), "goes on behind it"),
        (at(token_ids=[7, 8]), "without a token that ends it"),
        (at(token_ids=[7, 8, 9, 200012]), "at most 3 tokens, got 4"),
        (at(logprobs=None), "expected 2 log-probabilities, got none"),
        (logprobs(token_logprobs=[-0.5]), "expected 2 log-probabilities, got 1"),
        (logprobs(token_logprobs=[-0.5, None]), "expected log-probabilities, got None"),
        (logprobs(token_logprobs=[-0.5, float("nan")]), "got nan"),
        (logprobs(token_logprobs=[-0.5, 0.25]), "got 0.25"),
        (logprobs(tokens=["token_id:7", "token_id:8"]), "other tokens than its token_ids"),
        (at(routed_experts="!"), "NumPy array in base64"),
        (
            at(routed_experts=in_base64(EXPERTS[:3])),
            r"expected experts \(4, 2, 4\), got \(3, 2, 4\)",
        ),
        (at(routed_experts=in_base64(EXPERTS.astype(float))), "of float64"),
        (at(routed_experts=in_base64(EXPERTS + 1)), "from 0 to 31, got 32"),
        (at(routed_experts=in_base64(np.array([object()]))), "NumPy array in base64"),
    ],
)
def test_an_odd_answer_is_refused(change, told):
    answer = copy.deepcopy(good())
    change(answer)
    with pytest.raises(OddAnswer, match=told):
        read_answer(answer, REQUEST, ADAPTER, SIZES)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda a: a.update(model="policy-v2-a"), "policy-v2-a"),
        (at(weight_versions=[{"version": "policy-v2-a", "start": 0, "end": 2}]), "policy-v2-a"),
        (
            at(
                weight_versions=[
                    {"version": "policy-v3-a", "start": 0, "end": 1},
                    {"version": "policy-v4-a", "start": 1, "end": 2},
                ]
            ),
            "policy-v4-a",
        ),
    ],
)
def test_other_weights_are_named(change, told):
    answer = {**good(), "model": "base"}
    change(answer)
    assert other_weights(answer, SHIPPED) == told


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda a: a.pop("model"), "name of the model in every answer"),
        (at(weight_versions=None), "weight_versions"),
        (at(weight_versions=[]), "of 0 tokens, expected 2"),
        (at(weight_versions=[{"version": "policy-v3-a", "start": 0, "end": 1}]), "of 1 tokens"),
        (at(weight_versions=[{"version": "policy-v3-a", "start": 1, "end": 2}]), "without a gap"),
    ],
)
def test_an_answer_that_does_not_tell_its_weights_is_refused(change, told):
    answer = {**good(), "model": "base"}
    change(answer)
    with pytest.raises(OddAnswer, match=told):
        other_weights(answer, SHIPPED)


def test_an_answer_that_is_cut_at_its_longest_is_whole():
    answer = good()
    answer["choices"][0].update(token_ids=[7, 8, 9], finish_reason="length", routed_experts=None)
    answer["choices"][0]["logprobs"] = {
        "tokens": ["token_id:7", "token_id:8", "token_id:9"],
        "token_logprobs": [-1, -2, -3],
    }
    assert read_answer(answer, REQUEST, ADAPTER, SIZES).token_ids == (7, 8, 9)
