"""Embeddings in host memory: the same numbers, and nothing brings the table back."""

import pytest
import torch

from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.host_embedding import HostEmbedding, keep_embeddings_on_host

CPU = torch.device("cpu")


def test_losses_and_gradients_do_not_change(small_model, randomise_adapters):
    model = small_model()
    randomise_adapters(model)
    set_attention(model)
    tokens = torch.randint(0, 97, (2, 13), generator=torch.Generator().manual_seed(4))
    batch = {"input_ids": tokens, "shift_labels": tokens, "loss_weights": torch.ones(2, 13)}

    def results():
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss_sum
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    expected = results()
    assert keep_embeddings_on_host(model, CPU) == 97 * 32 * 4
    assert keep_embeddings_on_host(model, CPU) == 0, "a second call has nothing to move"
    set_attention(model)  # asks the embeddings for their dtype
    actual = results()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_trainer_that_moves_the_model_leaves_the_table(small_model):
    model = small_model(adapted=False)
    keep_embeddings_on_host(model, CPU)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, HostEmbedding)
    assert not list(embedding.parameters()) and not list(embedding.buffers())
    embedding.to("meta")
    assert embedding.weight.device == CPU


def test_the_result_is_on_the_device_of_the_layers():
    embedding = HostEmbedding(torch.ones(5, 2), torch.device("meta"))
    assert embedding(torch.tensor([1, 2])).device.type == "meta"


def test_mistakes_are_named(small_model):
    model = small_model(adapted=False)
    model.get_input_embeddings().weight.requires_grad_()
    with pytest.raises(ValueError, match="are trained"):
        keep_embeddings_on_host(model, CPU)
    tied = small_model(adapted=False)
    tied.lm_head.weight = tied.get_input_embeddings().weight
    with pytest.raises(ValueError, match="lm_head's weight"):
        keep_embeddings_on_host(tied, CPU)
