"""llama.cpp and transformers on the same weights: the same likeliest tokens.

Where two tokens are as likely as bf16 can tell, either may come first: transformers itself, in fp32
instead of bf16, goes another way there. So llama.cpp is held against transformers in bf16, and is
to differ from it on no more questions than transformers in fp32 does, and one in twelve.
"""

import pytest
import torch

from gptoss_tune.evaluate.generate import Sampling

pytestmark = pytest.mark.slow


def ids_of(answerer, question):
    row = {"messages": [{"role": "user", "content": question}], "reasoning_effort": "low"}
    return answerer.prompt(row)


def compare(answerer, models, greedy, questions, kind):
    """Equal answers of llama.cpp, and of transformers in fp32, with transformers in bf16."""
    equal = equal_in_fp32 = tokens = same = 0
    for question in questions:
        ids = ids_of(answerer, question)
        expected, precise = (greedy(model, ids) for model in models)
        found = list(answerer.engine.stream(ids, Sampling(40, 0.0)))
        equal, equal_in_fp32 = equal + (found == expected), equal_in_fp32 + (precise == expected)
        tokens += len(expected)
        pairs = zip(expected, found, strict=False)
        same += next((n for n, (a, b) in enumerate(pairs) if a != b), len(expected))
    print(
        f"{kind}: {equal} of {len(questions)} answers equal, {same} of {tokens} tokens before the "
        f"first difference; transformers in fp32: {equal_in_fp32} answers"
    )
    return equal, equal_in_fp32


@pytest.mark.parametrize("kind", ["bf16", "mxfp4"])
def test_greedy_tokens_are_those_of_transformers(trained, opened, plain, greedy, questions, kind):
    folder = getattr(trained, kind)
    answerer = opened(trained.gguf if kind == "mxfp4" else trained.gguf_bf16)
    models = plain(folder), plain(folder, torch.float32)
    learnt, unseen = questions
    equal, _ = compare(answerer, models, greedy, learnt, f"{kind}, trained questions")
    assert equal == len(learnt)
    equal, precise = compare(answerer, models, greedy, unseen, f"{kind}, other questions")
    assert equal >= precise - len(unseen) // 12
    assert equal > len(unseen) // 2


def test_the_base_alone_gives_other_answers(trained, opened, questions):
    # Else equal tokens would say nothing of the weights.
    ids = [ids_of(opened(trained.gguf), question) for question in questions[0]]
    tuned, base = (opened(folder).engine for folder in (trained.gguf, trained.base_gguf))
    answers = [[list(e.stream(each, Sampling(8, 0.0))) for each in ids] for e in (tuned, base)]
    assert sum(a == b for a, b in zip(*answers, strict=True)) == 0


def test_factors_beside_the_base_give_the_tokens_of_peft(
    trained, opened, plain, greedy, questions, tmp_path_factory
):
    from gptoss_tune.export.gguf.lora import write_lora
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.weights.adapter import open_adapter

    adapter = open_adapter(trained.run, open_checkpoint(trained.base))
    file = write_lora(adapter, tmp_path_factory.mktemp("lora") / "mine")
    answerer = opened(trained.base_gguf, file)
    folder = trained.run / "adapter"
    models = tuple(plain(trained.base, d, folder) for d in (torch.bfloat16, torch.float32))
    learnt, unseen = questions
    equal, _ = compare(answerer, models, greedy, learnt, "base + LoRA, trained questions")
    assert equal == len(learnt)
    equal, precise = compare(answerer, models, greedy, unseen, "base + LoRA, other questions")
    assert equal >= precise - len(unseen) // 12
