"""A tiny base with a short window, an adapter on it, and both in plain transformers and PEFT."""

import json
import math

import pytest
import torch

from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.build import build
from gptoss_tune.recipe import load_recipe
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint

SIZES = {"layers": 2, "experts": 4, "hidden": 64, "intermediate": 96}


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Its window of 32 is shorter than any prompt, so decoding has to forget."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("evaluate") / "base", seed=5, **SIZES)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 32}))
    return folder


@pytest.fixture(scope="session")
def vocabulary():
    return load_vocabulary()


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as JSON Lines and return the path as a recipe spells it."""

    def write(name, *rows):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "thinking": thought},
        ]
    }
    for question, thought, answer in (
        ("Capital of France?", "A city on the Seine.", "Paris"),
        ("2 + 2?", "Add them up, one by one.", "4"),
        ("Opposite of hot?", "Temperature.", "cold, and in some ways icy"),
    )
]


@pytest.fixture
def references(write_rows):
    return write_rows("references.jsonl", *CONVERSATIONS)


@pytest.fixture
def recipe(tmp_path, base, references):
    """Return a function from overrides to a recipe on the tiny base."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\n"
        "lora: {rank: 4, expert_rank: 2}\n"
        f"data: {{train: {references}, max_length: 256}}\n"
        f"train: {{output_dir: {tmp_path / 'run'}, max_steps: 4, learning_rate: 5e-3, "
        "per_device_train_batch_size: 2, activation_checkpointing: full}\n",
        encoding="utf-8",
    )
    return lambda *overrides: load_recipe(path, overrides)


def randomise(model, scale=0.3):
    """Give every factor values, as training would; PEFT starts B at zero."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(scale * values / math.sqrt(parameter.shape[-1]))


@pytest.fixture
def tuned(recipe, base):
    """The model that training holds, with adapters that act."""
    model = build(recipe(), open_checkpoint(str(base)), "cpu").model
    randomise(model)
    return model


@pytest.fixture
def plain(tuned, base, tmp_path):
    """The same base and adapters in plain transformers and PEFT, fp32, eager attention."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Mxfp4Config

    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    model = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    ).float()
    return PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()


@pytest.fixture(scope="session")
def answerer(base):
    """The base, loaded once to be talked to, in fp32."""
    from gptoss_tune.evaluate.conversation import open_answerer
    from gptoss_tune.evaluate.load import open_evaluated_model
    from gptoss_tune.evaluate.trained_as import TrainedAs, answering_section

    subject = open_evaluated_model(str(base))
    section = answering_section(subject, "float32")
    return open_answerer(subject, TrainedAs("low"), section, torch.device("cpu"))


@pytest.fixture
def by_heart(answerer):
    """Let the model say given text, as one that has learned it by heart would."""
    handles = []

    def learn(text):
        encoding = load_vocabulary().encoding
        script = iter(encoding.encode(text, allowed_special="all"))

        def favour(module, inputs, logits):
            token = next(script, None)
            if token is not None:
                logits[..., token] += 1e4
            return logits

        while handles:
            handles.pop().remove()
        handles.append(answerer._model.lm_head.register_forward_hook(favour))

    yield learn
    while handles:
        handles.pop().remove()
