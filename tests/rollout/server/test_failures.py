"""What a server may answer instead, and what becomes of it: asked again, counted, or told."""

import copy
import socket
import threading
import time

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.rollout.sampler import Request
from gptoss_tune.rollout.server import completions

ASKED = [Request((200006, 1428, 200008, 5501, 25), 2, seed) for seed in range(3)]


@pytest.fixture
def ready(open_sampler, stand_in):
    """A sampler whose weights are handed over."""
    sampler, _ = open_sampler()
    sampler.update(7)
    return sampler


def times(count, answer):
    """Answer so the first ``count`` times."""
    return lambda number, fields: answer if number < count else None


def test_a_busy_server_is_asked_again(ready, stand_in):
    stand_in.before = times(2, (503, {"error": {"message": "loading"}}))
    found = ready.sample(ASKED, 1.0)
    assert len(found) == 3 and len(stand_in.asked) == 5
    assert ready.counts == {"tried_again": 2}


def test_a_broken_server_ends_it_in_its_own_words(ready, stand_in):
    stand_in.before = times(99, (500, {"error": {"message": "EngineCore died"}}))
    with pytest.raises(
        MachineError, match=r'policy.*HTTP 500, it says: "EngineCore died"; tried 4 times'
    ):
        ready.sample(ASKED[:1], 1.0)
    assert len(stand_in.asked) == 4


def test_a_refusal_is_not_asked_again(ready, stand_in):
    stand_in.before = times(99, (400, {"error": {"message": "prompt is too long"}}))
    with pytest.raises(MachineError, match=r'HTTP 400, it says: "prompt is too long"'):
        ready.sample(ASKED[:1], 1.0)
    assert len(stand_in.asked) == 1


def test_an_adapter_that_is_not_there_any_more_is_told(ready, stand_in):
    stand_in.engine.adapters.clear()
    with pytest.raises(MachineError, match=r"HTTP 404.*does not exist.*--api-server-count"):
        ready.sample(ASKED[:1], 1.0)


def test_answers_of_other_weights_are_sampled_again_and_counted(ready, stand_in):
    other = "policy-v6-0123456789ab"
    stand_in.before = times(2, lambda answer: {**answer, "model": other})
    found = ready.sample(ASKED, 1.0)
    assert [one.version for one in found] == [7, 7, 7] and len(stand_in.asked) == 5
    assert ready.counts == {"other_weights": 2}
    stand_in.before = lambda number, fields: lambda answer: {**answer, "model": other}
    with pytest.raises(
        MachineError, match=rf"expected an answer of policy-v7-\w+, got one of {other}; tried 4"
    ):
        ready.sample(ASKED[:1], 1.0)


def test_every_token_has_to_be_of_the_shipped_weights(open_sampler, stand_in):
    sampler, _ = open_sampler(merge_aware=True)
    sampler.update(1)
    label = stand_in.label

    def half(answer):
        odd = copy.deepcopy(answer)
        spans = [("policy-v0-0", 0, 1), (label, 1, len(odd["choices"][0]["token_ids"]))]
        odd["choices"][0]["weight_versions"] = [
            {"version": version, "start": start, "end": end} for version, start, end in spans
        ]
        return odd

    stand_in.before = times(1, half)
    assert sampler.sample(ASKED[:1], 1.0)[0].version == 1
    assert sampler.counts == {"other_weights": 1}
    stand_in.tells_versions = False
    with pytest.raises(MachineError, match=r"version of the weights of every token.*vLLM"):
        sampler.sample(ASKED[:1], 1.0)


def test_another_run_at_the_same_server_is_seen(open_sampler, stand_in):
    sampler, _ = open_sampler(merge_aware=True)
    sampler.update(1)
    stand_in.label = "policy-v9-of-another"
    with pytest.raises(MachineError, match="got one of policy-v9-of-another"):
        sampler.sample(ASKED[:1], 1.0)


@pytest.fixture
def hanging(ready, stand_in):
    """A server that takes the question and never answers; ``dropped`` tells of closed ends."""
    dropped, accepted, over = threading.Event(), threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def serve():
        held = []
        while not over.is_set():
            try:
                one = listener.accept()[0]
                one.settimeout(0.01)
                held.append(one)
                accepted.set()
            except TimeoutError:
                pass
            for one in list(held):
                try:
                    if one.recv(65536) == b"":
                        dropped.set()
                        held.remove(one)
                except TimeoutError:
                    pass
                except OSError:
                    dropped.set()
                    held.remove(one)
        for one in held:
            one.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready._server.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    ready.accepted, ready.dropped = accepted, dropped
    yield ready
    over.set()
    thread.join()
    listener.close()


def test_a_server_that_hangs_is_given_up(hanging):
    hanging._seconds, hanging._tries = 0.3, 2
    with pytest.raises(MachineError, match=r"no whole answer within 0.3 s; tried 2 times"):
        hanging.sample(ASKED[:1], 1.0)
    assert hanging.counts == {"tried_again": 2} and hanging.dropped.wait(5)


def test_a_signal_ends_requests_under_way(hanging):
    begin = time.monotonic()
    with pytest.raises(Stopped):
        hanging.sample(ASKED, 1.0, hanging.accepted.is_set)
    assert time.monotonic() - begin < hanging._seconds
    assert hanging.dropped.wait(5), "the server is told to stop generating"
    assert hanging.counts == {}


def test_a_server_that_is_gone_is_told(ready, stand_in):
    stand_in.close()
    stand_in.close = lambda: None
    with pytest.raises(MachineError, match=r"refused.*tried 4 times"):
        ready.sample(ASKED[:1], 1.0)


def test_a_failed_request_ends_those_beside_it(ready, stand_in):
    stand_in.before = lambda number, fields: (
        (400, {"message": "no"}) if fields["seed"] == 2 else None
    )
    with pytest.raises(MachineError, match='it says: "no"'):
        ready.sample([ASKED[2], *ASKED], 1.0)


def test_the_key_comes_from_the_environment_and_is_not_shown(open_sampler, stand_in, monkeypatch):
    stand_in.key = "sesame-open-now"
    with pytest.raises(MachineError, match=r"models: .*HTTP 401.*set the variable VLLM_API_KEY"):
        open_sampler()
    monkeypatch.setenv("VLLM_API_KEY", "sesame-open-now")
    sampler, _ = open_sampler()
    sampler.update(0)
    assert len(sampler.sample(ASKED, 1.0)) == 3
    stand_in.key = "another"
    with pytest.raises(MachineError, match=r"completions: .*HTTP 401.*VLLM_API_KEY") as told:
        sampler.sample(ASKED[:1], 1.0)
    assert "sesame" not in str(told.value) and "[hidden]" in str(told.value)
    with pytest.raises(MachineError, match=r"load_lora_adapter .*HTTP 401.*VLLM_API_KEY"):
        sampler.update(1)


def test_log_probabilities_are_those_of_the_drawn_tokens(ready, stand_in):
    with pytest.raises(
        MachineError, match=r"tells raw_logprobs.*--logprobs-mode processed_logprobs"
    ):
        ready.sample(ASKED[:1], 0.7)
    assert not stand_in.asked
    stand_in.mode = "processed_logprobs"
    ready.sample(ASKED[:1], 0.7)
    assert stand_in.asked[0]["temperature"] == 0.7
    stand_in.dev = False
    ready.sample(ASKED[:1], 0.7)  # asked once


def test_nothing_of_the_servers_defaults_takes_part(ready, stand_in):
    ready.sample(ASKED[:1], 1.0)
    (fields,) = stand_in.asked
    neutral = {
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": [200002, 200012, 199999],
    }
    assert {key: fields.get(key) for key in neutral} == neutral
    assert (fields["prompt"], fields["seed"]) == (list(ASKED[0].prompt), 0)


def test_no_proxy_of_the_environment_is_asked(open_sampler, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    sampler, _ = open_sampler()
    sampler.update(0)
    assert len(sampler.sample(ASKED[:1], 1.0)) == 1


def test_the_checksums_of_many_workers_are_read(open_sampler, stand_in, monkeypatch):
    of_one = stand_in.engine.checksum()
    many = {f"dp0:pp0:pcp0:tp{n}:{name}": "0" * 64 for n in range(400) for name in of_one}
    assert sum(map(len, many)) + 64 * len(many) > 1 << 20
    stand_in.weight_checker = lambda fields: (200, {"checksums": many})
    sampler, _ = open_sampler(merge_aware=True)
    assert sampler._handover._checksums() == many
    monkeypatch.setattr(completions, "LONGEST_ANSWER", 64)
    with pytest.raises(MachineError, match=r"weight_checker \(its answer has more than 64 bytes"):
        sampler._handover._checksums()


def test_no_requests_are_no_answers(ready, stand_in):
    assert ready.sample([], 1.0) == [] and not stand_in.asked
