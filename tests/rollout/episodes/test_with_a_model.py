"""A whole episode in a model's own arithmetic: what the sample says is what training computes."""

import numpy as np
import pytest
import torch

from gptoss_tune.environments import Tool
from gptoss_tune.model.build import build
from gptoss_tune.model.routing import recording
from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.rollout.play import Limits, Player
from gptoss_tune.weights import open_checkpoint

CALL = (
    "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.price <|constrain|>json<|message|>{"item": "pear"}<|call|>'
)
FINAL = "<|channel|>analysis<|message|>Told.<|end|><|start|>assistant<|channel|>final<|message|>"
SAID = (CALL, FINAL + "3<|return|>", FINAL + "6<|return|>")
LARGEST_DIFFERENCE = 2e-5
"""Of log-probabilities in fp32, decoded token by token and computed as one row: 5e-6 was seen."""

SHARE_EQUAL = 0.995
"""Of experts chosen in both ways; a tie may go either way."""


class Talks:
    def reset(self, row, seed):
        self.questions = ["And two?"]

    def tools(self):
        return [Tool("price", "", None, lambda item: "3")]

    def reward(self, outcome):
        return 1.0

    def reply(self, given):
        return self.questions.pop() if self.questions else None


@pytest.fixture(scope="module")
def model(two_layer_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("episode")
    (folder / "recipe.yaml").write_text(
        f"model: {{name_or_path: {two_layer_base}, dtype: float32}}\n"
        "lora: {rank: 4, expert_rank: 2}\n"
        "data: {train: rows.jsonl, max_length: 512}\n"
        "train: {output_dir: run, max_steps: 4, activation_checkpointing: none}\n"
    )
    recipe = load_recipe(folder / "recipe.yaml")
    built = build(recipe, open_checkpoint(two_layer_base), "cpu").model
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in sorted(built.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    return built


@pytest.fixture
def dictated(monkeypatch, vocabulary):
    """Let the own sampler draw given tokens, each with the log-probability that it really has."""
    said = [vocabulary.encoding.encode(text, allowed_special="all") for text in SAID]
    left = {}

    def choose(logits, temperature, generators, *_):
        tokens = []
        for draws in generators:
            answer = left.setdefault(draws.initial_seed(), said[len(left) % len(said)][:])
            tokens.append(answer.pop(0))
        chosen = torch.tensor(tokens)
        logps = (logits.float() / temperature).log_softmax(-1)
        return chosen, logps.gather(1, chosen[:, None])[:, 0]

    monkeypatch.setattr("gptoss_tune.rollout.own.choose", choose)


@pytest.fixture
def episode(model, dictated, renderer, task_of, row, judge_all):
    sampler = OwnSampler(model, batch=4)
    player = Player(sampler, renderer, Talks, judge_all, Limits(100, 8, 1000, 5.0))
    (played,) = player.play([(task_of(row), 0, 1)], temperature=1.0)
    return played


def recomputed(model, sample, choices):
    ids = torch.from_numpy(sample.input_ids).long()[None]
    drawn = torch.from_numpy(sample.sampled)[None]
    weights = drawn.roll(-1, 1).float()
    weights[0, -1] = 0
    chosen = torch.from_numpy(choices)[None]
    with torch.no_grad():
        out = model(
            ids, shift_labels=ids.roll(-1, 1), loss_weights=weights, choices=chosen, use_cache=False
        )
    return -out.token_losses[0, :-1].numpy()[sample.sampled[1:]]


def test_samples_hold_what_training_computes_with_their_own_experts(model, episode):
    assert (episode.outcome.ended, len(episode.samples)) == ("answer", 2)
    assert sum(int(s.sampled.sum()) for s in episode.samples) == episode.outcome.tokens
    for sample in episode.samples:
        assert sample.choices.shape[0] == len(sample.input_ids)
        told = sample.logps[sample.sampled]
        again = recomputed(model, sample, sample.choices)
        assert np.abs(again - told).max() < LARGEST_DIFFERENCE
        # They are those of the whole row, each at its place, whichever turn recorded them.
        ids = torch.from_numpy(sample.input_ids).long()[None]
        with torch.no_grad(), recording(model) as recorded:
            model(ids, use_cache=False)
        whole = recorded.take().numpy()
        assert (sample.choices[:-1] == whole[:-1]).mean() > SHARE_EQUAL
        assert (sample.choices[:-2] == whole[1:-1]).mean() < 0.9
        assert (sample.choices[-1] == sample.choices[-2]).all()
