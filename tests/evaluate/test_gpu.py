"""The same answers on a GPU, by the kernels that training uses there."""

import pytest
import torch

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.drift import divergence_from_base, read_references
from gptoss_tune.evaluate.generate import Generation, answer, evaluating
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.model.build import build
from gptoss_tune.weights import open_checkpoint


@pytest.mark.gpu
def test_answers_and_divergence_on_a_gpu_are_those_of_the_cpu(
    tuned, recipe, base, tmp_path, vocabulary, references
):
    tuned.save_pretrained(str(tmp_path / "start"), save_embedding_layers=False)
    there = build(
        recipe(f"lora.init_from={tmp_path / 'start'}"), open_checkpoint(str(base)), "cuda"
    ).model
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 199_000, (n,), generator=generator).tolist() for n in (3, 45, 37)]
    examples = read_references(
        [references], Renderer(vocabulary, RenderSettings()), limit=2, max_length=256
    )
    found = []
    for model, device in ((tuned, "cpu"), (there, "cuda")):
        with evaluating(model):
            answers = answer(model, prompts, Generation(12, batch_size=2), Ranks())
            kl = divergence_from_base(model, examples, Ranks(), torch.device(device))["kl"]
        found.append((answers, kl))
    assert found[0][0] == found[1][0]
    # fp32 on both, but TF32 is off by default and sums run in another order on a GPU.
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-3)
