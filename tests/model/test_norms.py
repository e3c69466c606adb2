"""RMSNorm modules are swapped on the instance, and nothing else notices."""

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from gptoss_tune.model.attention import set_attention
from gptoss_tune.model.norms import set_norms


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (1, 17), generator=torch.Generator().manual_seed(4))


def test_outputs_and_names_do_not_change(small_model, tokens):
    model = small_model(adapted=False)
    set_attention(model)
    expected, names = model(tokens).logits, list(model.state_dict())
    assert set_norms(model) == 2 * 2 + 1
    assert not any(isinstance(module, GptOssRMSNorm) for module in model.modules())
    assert list(model.state_dict()) == names
    assert torch.equal(model(tokens).logits, expected)


def test_inside_peft_nothing_changes_either(small_model, tokens):
    model = small_model()
    set_attention(model)
    expected = model(tokens).logits
    assert set_norms(model) == 5
    assert torch.equal(model(tokens).logits, expected)


def test_a_model_without_norms_of_gpt_oss_is_refused():
    with pytest.raises(ValueError, match="holds no GptOssRMSNorm"):
        set_norms(torch.nn.Linear(2, 2))
