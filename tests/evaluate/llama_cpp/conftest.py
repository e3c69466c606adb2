"""A tiny model that was trained until its logits are sharp, as safetensors and as GGUF files.

Random tiny models have logits so flat that the rounding of either engine decides which is largest.
"""

import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROWS = [json.loads(line) for line in Path("data/tiny/train.jsonl").read_text().splitlines()]
UNSEEN = [
    "Name a fruit.",
    "Grüße aus Köln, wie geht es?",
    "हिन्दी में लिखो",
    "1234567 + 89?",
    "def f(x):\n    return x",
    "What does <|end|> mean?",
    "😀 👩‍👩‍👧‍👦",
    "  spaces   and\n\n\tlines ",
    *(
        json.loads(line)["prompt"]
        for line in Path("data/tiny/labels.jsonl").read_text().splitlines()
    ),
][:36]
STOPS = [200_002, 200_012, 199_999]


def train(folder):
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.testing.tiny import tiny_checkpoint
    from gptoss_tune.train.run import train

    base = tiny_checkpoint(folder / "base")
    changes = [f"model.name_or_path={base}", f"train.output_dir={folder / 'run'}"]
    train(load_recipe("tiny/qlora", changes))
    return base, folder / "run"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folders of the base, the run, and what it is merged into, by the format's name."""
    from gptoss_tune.workflows.finished_run import merge

    folder = tmp_path_factory.mktemp("llama")
    base, run = train(folder)
    merged = {}
    for name in ("bf16", "mxfp4", "gguf-bf16", "gguf"):
        merged[name] = merge([run], folder / name, format=name, base=base, accept_loss=True).folder
    base_gguf = merge([], folder / "base-gguf", base=base, format="gguf").folder
    return SimpleNamespace(folder=folder, base=base, run=run, base_gguf=base_gguf, **named(merged))


def named(folders):
    return {name.replace("-", "_"): folder for name, folder in folders.items()}


@pytest.fixture(scope="session")
def random_base(tmp_path_factory):
    from gptoss_tune.testing.tiny import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("random") / "base", layers=2, experts=4)


@pytest.fixture(scope="session")
def random_gguf(random_base):
    """A random tiny model as a GGUF file; its answers mean nothing and are long."""
    from gptoss_tune.workflows.finished_run import merge

    return merge([], random_base.with_name("tiny"), base=random_base, format="gguf").folder


@pytest.fixture(scope="session")
def answerer(random_gguf):
    from gptoss_tune.evaluate.llama_cpp.answerer import open_gguf_answerer
    from gptoss_tune.evaluate.trained_as import TrainedAs

    today = datetime.date.today().isoformat()
    found = open_gguf_answerer(str(random_gguf), TrainedAs(date=today), context=512, threads=1)
    yield found
    found.close()


@pytest.fixture(scope="session")
def opened():
    """Return a function from a GGUF and adapters to its answerer; each is loaded once."""
    from gptoss_tune.evaluate.llama_cpp.answerer import gguf_trained_as, open_gguf_answerer

    kept = {}

    def answerer(name, *adapters):
        if (name, adapters) not in kept:
            kept[name, adapters] = open_gguf_answerer(
                str(name), gguf_trained_as(str(name)), context=2048, adapters=adapters, threads=1
            )
        return kept[name, adapters]

    yield answerer
    for each in kept.values():
        each.close()


@pytest.fixture(scope="session")
def questions():
    """The questions that were trained, and others that were not."""
    return [row["messages"][0]["content"] for row in ROWS], UNSEEN


@pytest.fixture(scope="session")
def plain():
    """Return a function that loads a folder, and an adapter on it, in plain transformers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Mxfp4Config

    def load(folder, dtype=torch.bfloat16, adapter=None):
        packed = "quantization_config" in json.loads((folder / "config.json").read_text())
        options = {"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        return model if adapter is None else PeftModel.from_pretrained(model, adapter)

    return load


@pytest.fixture(scope="session")
def greedy():
    """Return a function from a model and ids to the tokens that transformers generates."""

    def answer(model, ids, most=40):
        asked = torch.tensor([ids])
        with torch.no_grad():
            found = model.generate(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=STOPS,
                pad_token_id=STOPS[-1],
            )
        return found[0, len(ids) :].tolist()

    return answer
