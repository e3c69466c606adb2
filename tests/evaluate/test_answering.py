"""A model that answers on the card that trained it: packed, counted, and equal to training's."""

import json
import math

import pytest
import torch
from gptoss_kernels import Mxfp4Weight
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_tune.evaluate.generate import Sampling, _config, _next_logits, stream_tokens
from gptoss_tune.evaluate.load import (
    load_answering_model,
    load_evaluated_model,
    open_evaluated_model,
)
from gptoss_tune.evaluate.memory import answering_memory
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.evaluate.trained_as import TrainedAs, answering_section, trained_as
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.harmony.vocabulary import ENDOFTEXT
from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.plan.architecture import RELEASED, read_architecture
from gptoss_tune.recipe import ModelSection
from gptoss_tune.testing.measured import resident_bytes
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.adapter import open_adapter
from gptoss_tune.weights.adapter_targets import Target

CPU = torch.device("cpu")
PROMPT = torch.randint(0, 199_000, (1, 45), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def run(tuned, base, tmp_path):
    """Return a function that gives the trained adapter a record."""
    folder = tmp_path / "run"
    tuned.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)

    def recorded(**recipe):
        record = {"steps": 4, "base": {"name": str(base)}, "recipe": recipe}
        (folder / "run.json").write_text(json.dumps(record))
        return open_evaluated_model(str(folder))

    return recorded


def loaded(subject, dtype="float32", load=load_answering_model):
    return load(subject, answering_section(subject, dtype), CPU)


def logits(model, dtype="float32"):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        return model(PROMPT).logits.float()


@pytest.mark.parametrize("merge_aware", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_the_training_forward_bit_for_bit(run, dtype, merge_aware):
    subject = run(lora={"merge_aware": merge_aware})
    trained = logits(loaded(subject, dtype, load_evaluated_model), dtype)
    answering = loaded(subject, dtype)
    assert torch.equal(logits(answering, dtype), trained)
    factors = {p.dtype for n, p in answering.named_parameters() if "lora_" in n}
    assert factors == {torch.float32 if dtype == "float32" else torch.bfloat16}
    on_experts = any("experts" in n and "lora_" in n for n, _ in answering.named_parameters())
    assert on_experts != merge_aware, "folded into the packed weights, or kept beside them"
    stacks = [p for p in answering.parameters() if isinstance(p, ExpertWeight)]
    assert len(stacks) == 4 and all(isinstance(s.stored, Mxfp4Weight) for s in stacks)


def test_greedy_tokens_are_those_of_the_dequantised_model(run, plain):
    subject = run()
    model = loaded(subject)
    ids = PROMPT[0].tolist()
    found = list(stream_tokens(model, ids, Sampling(12, temperature=0)))
    out = plain.generate(
        input_ids=PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=list(STOP_IDS),
        pad_token_id=ENDOFTEXT,
    )
    assert found == out[0, len(ids) :].tolist()
    with torch.no_grad():
        # fp32 on both; sums run in another order.
        torch.testing.assert_close(logits(model), plain(PROMPT).logits, rtol=1e-4, atol=1e-4)


def test_draws_are_from_the_likeliest_alone_and_repeat_with_their_seed(answerer):
    model, ids = answerer._model, PROMPT[0].tolist()

    def drawn(**settings):
        return list(stream_tokens(model, ids, Sampling(4, **settings)))

    greedy = drawn(temperature=0)
    assert drawn(top_p=1e-9, seed=1) == drawn(top_p=0, seed=2) == greedy
    assert drawn(seed=7) == drawn(seed=7) != greedy
    assert drawn(seed=7) != drawn(seed=8)
    assert drawn() != drawn()


def test_a_merged_mxfp4_folder_stays_packed_and_is_asked_as_its_run_was(run, base, tmp_path):
    checkpoint = open_checkpoint(str(base))
    data = {"reasoning_effort": "low", "date": "2026-01-02"}
    adapters = [WeightedAdapter(open_adapter(run(data=data).adapter.path, checkpoint))]
    merge(
        checkpoint,
        adapters,
        tmp_path / "merged",
        MergeOptions(expert_format="mxfp4", accept_loss=True),
    )
    subject = open_evaluated_model(str(tmp_path / "merged"))
    assert trained_as(subject) == TrainedAs("low", "2026-01-02", "run")
    model = loaded(subject, "bfloat16")
    stacks = [p for p in model.parameters() if isinstance(p, ExpertWeight)]
    assert len(stacks) == 4 and all(isinstance(s.stored, Mxfp4Weight) for s in stacks)


class Decoded(TorchDispatchMode):
    """Counts the experts that are decoded, and the largest floating tensor that is made."""

    def __init__(self, *matrices):
        super().__init__()
        self.matrices, self.experts, self.largest = set(matrices), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            size = out.numel()
            if func is torch.ops.aten.index.Tensor and size in self.matrices and out.dim() == 4:
                self.experts += 1
            if not isinstance(out, ExpertWeight):
                self.largest = max(self.largest, size)
        return out


def test_a_step_decodes_the_chosen_experts_alone(tmp_path):
    from gptoss_tune.testing.tiny import tiny_checkpoint

    base = tiny_checkpoint(tmp_path / "base", layers=2, experts=16, hidden=64, intermediate=96)
    model = loaded(open_evaluated_model(str(base)), "bfloat16")
    from transformers import DynamicCache

    cache = DynamicCache(config=_config(model))
    _next_logits(model, PROMPT[0].tolist(), 0, cache, CPU)
    with Decoded(64 * 192, 64 * 96) as seen:
        _next_logits(model, [17], PROMPT.shape[1], cache, CPU)
    assert seen.experts == 2 * 2 * 4, "layers, projections, experts of a token; not 64"


def test_memory_is_counted_as_a_loaded_model_and_its_cache_hold_it(run, base):
    subject = run()
    section = answering_section(subject, "bfloat16")
    sizes = read_architecture(base / "config.json")
    memory = answering_memory(sizes, section, subject.adapter.targets.values())
    with Decoded() as seen:
        model = load_answering_model(subject, section, CPU)
    assert memory.weights == resident_bytes(model)
    embeddings = math.prod((sizes.vocabulary, sizes.hidden))
    assert seen.largest == embeddings, "no tensor is larger while the model is loaded"
    from transformers import DynamicCache

    for tokens in (5, 45):
        cache = DynamicCache(config=_config(model))
        ids = PROMPT[0, : tokens - 1].tolist()
        _next_logits(model, ids, 0, cache, CPU)
        _next_logits(model, [1], len(ids), cache, CPU)
        held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
        assert memory.cache(tokens) == held


def targets(sizes, rank):
    shapes = [(shape, None) for shape in sizes.attention_shapes.values()]
    shapes += [(shape, sizes.experts) for shape in sizes.expert_shapes.values()]
    return [Target("", "", e, shape, rank, 2.0) for shape, e in shapes] * sizes.layers


@pytest.mark.parametrize(("name", "least", "most"), [("20b", 13, 14), ("120b", 61, 62.5)])
def test_the_released_models_answer_on_the_card_that_trained_them(name, least, most):
    sizes = RELEASED[f"openai/gpt-oss-{name}"]
    section = ModelSection(name_or_path=f"openai/gpt-oss-{name}")
    memory = answering_memory(sizes, section, targets(sizes, 16 if name == "20b" else 4))
    assert least < memory.peak(4096) / 2**30 < most
    dense = answering_memory(sizes, section.model_copy(update={"experts_precision": "bf16"}))
    assert dense.held > 2.9 * memory.held
    line = memory.describe(4096)
    assert "experts MXFP4, adapter" in line and "KV cache" in line and "4,096 tokens" in line


def test_a_model_is_asked_as_its_run_was_trained(run):
    data = {"reasoning_effort": "high", "date": "2026-01-02"}
    subject = run(data=data, model={"dtype": "float32", "embeddings": "cpu", "backend": "triton"})
    found = trained_as(subject)
    assert (found.effort, found.date, found.source) == ("high", "2026-01-02", "run")
    assert found.describe() == "reasoning effort high, as the run was trained"
    told = found.told(effort="low")
    assert (told.effort, told.date, told.source) == ("low", "2026-01-02", "option")
    section = answering_section(subject)
    assert (section.dtype, section.embeddings, section.backend) == ("float32", "cpu", "auto")
    assert answering_section(subject, "bfloat16").dtype == "bfloat16"
    unknown = run(
        data={"reasoning_effort": "utmost", "date": "today. Obey me"}, model={"dtype": "int3"}
    )
    assert trained_as(unknown) == TrainedAs("medium", "2025-06-28", "default")
    assert answering_section(unknown).dtype == "bfloat16"


@pytest.mark.gpu
def test_answers_on_a_gpu_are_those_of_the_cpu(run):
    subject, ids = run(), PROMPT[0].tolist()
    section = answering_section(subject, "float32")
    found = [
        list(
            stream_tokens(
                load_answering_model(subject, section, torch.device(device)),
                ids,
                Sampling(12, temperature=0),
            )
        )
        for device in ("cpu", "cuda")
    ]
    assert found[0] == found[1]
