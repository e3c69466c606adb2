"""Answers of the model in training, against ``generate`` of plain transformers with plain PEFT."""

import pytest
import torch

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.generate import (
    Generation,
    Sampling,
    Stopped,
    answer,
    answer_batches,
    evaluating,
    without_adapters,
)
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.harmony.vocabulary import ENDOFTEXT

LENGTHS = (3, 45, 37)


@pytest.fixture
def prompts():
    """Shorter and longer than the window of 32, so that a batch needs padding."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 199_000, (n,), generator=generator).tolist() for n in LENGTHS]


def generated(plain, prompt, tokens):
    ids = torch.tensor([prompt])
    out = plain.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(STOP_IDS),
        pad_token_id=ENDOFTEXT,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_answers_are_those_of_plain_transformers(tuned, plain, prompts):
    expected = [generated(plain, prompt, 12) for prompt in prompts]
    assert len({tuple(ids) for ids in expected}) == len(prompts)
    for batch_size in (1, 2):
        with evaluating(tuned):
            found = answer(tuned, prompts, Generation(12, batch_size=batch_size), Ranks())
        assert found == expected


def test_without_adapters_the_answers_are_the_bases(tuned, plain, prompts):
    requires = {n for n, p in tuned.named_parameters() if p.requires_grad}
    with evaluating(tuned):
        adapted = answer(tuned, prompts[:2], Generation(6), Ranks())
        with without_adapters(tuned):
            found = answer(tuned, prompts[:2], Generation(6), Ranks())
        again = answer(tuned, prompts[:2], Generation(6), Ranks())
    with plain.disable_adapter():
        expected = [generated(plain, prompt, 6) for prompt in prompts[:2]]
    assert found == expected
    assert adapted == again != found
    assert {n for n, p in tuned.named_parameters() if p.requires_grad} == requires


def test_an_answer_ends_with_its_stop_token(tuned, prompts):
    """A head that favours one token ends at once; the others of the batch go on."""
    with evaluating(tuned):
        free = answer(tuned, prompts, Generation(8), Ranks())
        for stop in STOP_IDS:
            tuned.get_base_model().lm_head.weight.data[stop] = 0
        # The head's row for a token that the first answer has in its middle becomes <|call|>'s.
        head = tuned.get_base_model().lm_head.weight.data
        head[STOP_IDS[1]] = head[free[1][3]] * 1.001
        found = answer(tuned, prompts, Generation(8), Ranks())
    at = free[1].index(free[1][3])
    assert found[1] == [*free[1][:at], STOP_IDS[1]]
    assert any(len(ids) == 8 for ids in found)


def test_draws_do_not_depend_on_the_batch_and_leave_the_random_state(tuned, prompts):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with evaluating(tuned):
        one, two, other = (
            answer(tuned, prompts, Generation(3, 1.0, batch_size, seed), Ranks())
            for batch_size, seed in ((1, 0), (2, 0), (2, 1))
        )
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_signal_ends_an_answer(tuned, prompts):
    asked = iter([False, False, True])
    with evaluating(tuned), pytest.raises(Stopped):
        answer(tuned, prompts, Generation(8), Ranks(), lambda: next(asked))
    with pytest.raises(StopIteration):
        next(asked)


def test_modes_come_back_one_by_one(tuned):
    tuned.train()
    part = tuned.get_base_model().model.layers[0]
    part.eval()
    with evaluating(tuned):
        assert not any(m.training for m in tuned.modules())
    assert tuned.training and not part.training


def test_batches_for_a_benchmark_give_the_same_greedy_answers(tuned, prompts):
    with evaluating(tuned):
        expected = answer(tuned, prompts, Generation(8), Ranks())
        for batch_size in (1, 2, 3):
            found = list(answer_batches(tuned, prompts, Sampling(8, 0.0), batch_size))
            assert [dict(found)[n] for n in range(len(prompts))] == expected
            longest_first = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
            assert [n for n, _ in found] == longest_first


def test_what_is_drawn_for_a_prompt_does_not_depend_on_those_beside_it(tuned, prompts):
    def drawn(asked, seed, batch_size=3):
        return dict(answer_batches(tuned, asked, Sampling(8, 5.0, seed=seed), batch_size))

    with evaluating(tuned):
        together = drawn(prompts, 1)
        assert drawn([prompts[2]], 1)[0] == together[2]
        assert drawn(prompts[::-1], 1, batch_size=1)[0] == together[2]
        assert drawn(prompts, 2) != together == drawn(prompts, 1)
