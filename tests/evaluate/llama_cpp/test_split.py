"""llama.cpp loads a model in several files, and answers as from one."""

import pytest

from gptoss_tune.evaluate.answering.sampling import Sampling
from gptoss_tune.workflows.finished_run import merge

GREEDY = Sampling(12, 0.0)


@pytest.mark.slow
def test_a_model_in_several_files_answers_as_in_one(random_base, answerer, opened, tmp_path):
    out = tmp_path / "tiny"
    merge([], out, base=random_base, format="gguf", max_shard_size=20_000_000, verified=False)
    assert len(list(out.glob("*-of-00004.gguf"))) == 4
    prompt = answerer.prompt({"messages": [{"role": "user", "content": "Hello there"}]})
    expected = list(answerer.engine.stream(prompt, GREEDY))
    assert len(expected) == 12
    assert list(opened(out).engine.stream(prompt, GREEDY)) == expected
