"""What int8 and NF4 cost in exactness, for lm_head and attention: relative RMS errors, on a CPU.

    python kernels/bench/precision/measure.py [--write kernels/bench/results/precision.md]

Two tables. The first takes weights of the released sizes, drawn with three kinds of statistics (no
released weights are read here), and compares each form with the same bf16 weight in float64: the
weight itself, what the layer gives, the gradient of what it reads and, of lm_head, of the loss.
The second takes a tiny random model in float32 and compares its logits and the gradients of its
adapters with those of the model whose weights are not rounded.

It takes three minutes on two cores and 6 GiB, most of them for the released lm_head in float64.

N tokens, H inputs, V outputs.
"""

import argparse
import datetime
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from gptoss_kernels import PackedWeight, linear_cross_entropy, packed_linear, quantize_int8
from gptoss_kernels.packed_linear import tiles

TOKENS = 64
SHAPES = {"q_proj": (4096, 2880), "o_proj": (2880, 4096), "lm_head": (201_088, 2880)}
STATISTICS = {
    "normal": "normal, 0.02",
    "outlier inputs": "as normal, with 1 input of 200 ten times as large",
    "heavy tails": "Student's t with 4 degrees of freedom, 0.02",
}


def drawn(rows, inputs, kind, generator):
    """Return a bf16 weight ``[rows, inputs]`` of one kind of ``STATISTICS``."""
    weight = torch.empty(rows, inputs, dtype=torch.bfloat16)
    outliers = torch.randperm(inputs, generator=generator)[: inputs // 200]
    for first, stop in tiles(rows):
        part = torch.randn(stop - first, inputs, generator=generator) * 0.02
        if kind == "outlier inputs":
            part[:, outliers] *= 10
        if kind == "heavy tails":
            chi = torch.randn(4, stop - first, inputs, generator=generator).square_().mean(0)
            part /= chi.sqrt_()
        weight[first:stop] = part
    return weight


class Dense:
    """A bf16 weight that says its rows, as the packed ones do."""

    def __init__(self, weight):
        self.weight, self.shape = weight, weight.shape
        self.dtype, self.device = weight.dtype, weight.device

    def rows(self, first, stop):
        return self.weight[first:stop]


class Int8ByRow(Dense):
    """One scale a row: what blocks are measured against."""

    def rows(self, first, stop):
        part = self.weight[first:stop].float()
        scale = part.abs().amax(1, keepdim=True) / 127
        return ((part / scale).round_() * scale).bfloat16()


def forms(weight):
    """Yield the name, bits a weight and the packed form of ``weight``."""
    from gptoss_tune.model.packed.layers import Nf4Linear

    yield "bf16", 16.0, Dense(weight)
    yield "int8", 8.25, quantize_int8(weight)
    yield "int8, one scale a row", 8.0, Int8ByRow(weight)
    yield "nf4", 4.13, Nf4Linear(weight, None, "model.head_precision")


class Error:
    """A relative RMS that is added up part by part."""

    def __init__(self):
        self.difference = self.size = 0.0

    def add(self, actual, expected):
        self.difference += float((actual.double() - expected.double()).square().sum())
        self.size += float(expected.double().square().sum())

    def __str__(self):
        assert self.size > 0
        return f"{100 * (self.difference / self.size) ** 0.5:.2f} %"


def weight_error(packed, exact):
    found = Error()
    for first, stop in tiles(exact.shape[0]):
        found.add(packed.rows(first, stop), exact[first:stop])
    return found


def exact_products(x, grad, weight):
    """Return ``x @ W.T`` and ``grad @ W`` in float64."""
    outputs, total = [], torch.zeros(x.shape, dtype=torch.float64)
    for first, stop in tiles(weight.shape[0]):
        part = weight[first:stop].double()
        outputs.append(x.double() @ part.T)
        total += grad[:, first:stop].double() @ part
    return torch.cat(outputs, 1), total


def layer_rows(name, kind, generator):
    """Yield a line of the first table for each form of one weight."""
    weight = drawn(*SHAPES[name], kind, generator)
    x = torch.randn(TOKENS, weight.shape[1], generator=generator).bfloat16()
    grad = torch.randn(TOKENS, weight.shape[0], generator=generator).bfloat16()
    labels = torch.randint(0, weight.shape[0], (TOKENS,), generator=generator)
    output, back = exact_products(x, grad, weight)
    if name == "lm_head":
        exact_losses = output.logsumexp(1) - output.gather(1, labels[:, None])[:, 0]
        loss_grad = torch.softmax(output, 1)
        loss_grad[torch.arange(TOKENS), labels] -= 1
        _, loss_back = exact_products(x, loss_grad, weight)
    for form, bits, packed in forms(weight):
        assert isinstance(packed, PackedWeight)
        entry = [name, kind, form, f"{bits:g}", str(weight_error(packed, weight))]
        reads = x.clone().requires_grad_()
        actual = packed_linear(reads, packed)
        actual.backward(grad)
        for ours, exact in ((actual.detach(), output), (reads.grad, back)):
            error = Error()
            error.add(ours, exact)
            entry.append(str(error))
        if name == "lm_head":
            reads = x.clone().requires_grad_()
            total, losses = linear_cross_entropy(reads, packed, labels, torch.ones(TOKENS))
            total.backward()
            error = Error()
            error.add(reads.grad, loss_back)
            off = (losses.double() - exact_losses).abs().mean()
            entry += [str(error), f"{off:.4f}"]
        else:
            entry += ["", ""]
        yield entry


SETTINGS = {
    "attention int8": {"linear_precision": "int8"},
    "attention nf4": {"linear_precision": "nf4"},
    "lm_head int8": {"head_precision": "int8"},
    "lm_head nf4": {"head_precision": "nf4"},
    "both int8": {"linear_precision": "int8", "head_precision": "int8"},
    "both nf4": {"linear_precision": "nf4", "head_precision": "nf4"},
    "lm_head on the host": {"head": "cpu"},
    "computed in bf16": {"dtype": "bfloat16"},
    "both int8, in bf16": {
        "linear_precision": "int8",
        "head_precision": "int8",
        "dtype": "bfloat16",
    },
}


def tiny_rows():
    """Yield a line of the second table for each of ``SETTINGS``."""
    from gptoss_tune.testing.tiny import tiny_checkpoint
    from gptoss_tune.weights import open_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        base = tiny_checkpoint(Path(folder) / "base", seed=3, layers=4, experts=8, hidden=256)
        opened = open_checkpoint(str(base))
        logits, grads, loss, chosen = tiny_model(opened, {})
        for name, settings in SETTINGS.items():
            free = tiny_model(opened, settings)
            moved = [
                (ours.sort(-1).values != theirs.sort(-1).values).any(-1).float().mean()
                for ours, theirs in zip(indices(free[3]), indices(chosen), strict=True)
            ]
            entry = [name, f"{100 * float(sum(moved)) / len(moved):.1f} %"]
            for result in (free, tiny_model(opened, settings, chosen)):
                of_logits, of_grads = Error(), Error()
                of_logits.add(result[0], logits)
                for key, grad in grads.items():
                    of_grads.add(result[1][key], grad)
                entry += [str(of_logits), str(of_grads)]
            yield [*entry, f"{abs(free[2] - loss):.5f}"]


def indices(chosen):
    """Return the experts that every layer's router chose in the first pass."""
    return [outputs[0][-1] for outputs in chosen]


def tiny_model(opened, settings, routing=None):
    """Return logits, gradients, mean loss of 64 random tokens, and what the routers said.

    With ``routing``, what another model's routers said is taken instead.
    """
    from gptoss_tune.model.load import load_base
    from gptoss_tune.model.lora import add_adapters
    from gptoss_tune.recipe.schema import LoraSection, ModelSection

    values = {"name_or_path": str(opened.path), "dtype": "float32", **settings}
    model = load_base(opened, ModelSection.model_validate(values))
    torch.manual_seed(0)
    model = add_adapters(model, LoraSection(rank=8)).train()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = torch.Generator().manual_seed(sum(map(ord, name)))
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=own) * 0.02)
    said = []
    for number, layer in enumerate(model.get_base_model().model.layers):
        said.append([])

        def hook(router, inputs, output, number=number):
            passed = len(said[number])
            said[number].append(tuple(part.detach() for part in output))
            if routing is not None:  # the experts are the other's, their weights its own
                logits, scores, _ = output
                experts = routing[number][passed][-1]
                weights = logits.gather(-1, experts).softmax(-1)
                assert weights.shape == scores.shape
                return logits, weights.to(scores.dtype), experts
            return None

        layer.mlp.router.register_forward_hook(hook)
    ids = torch.randint(0, 199_998, (1, TOKENS), generator=generator)
    cast = settings.get("dtype") == "bfloat16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits.float()
        out = model(
            ids, shift_labels=ids.roll(-1, 1), loss_weights=torch.ones(1, TOKENS), use_cache=False
        )
    out.loss_sum.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return logits, grads, float(out.loss_sum.detach()) / TOKENS, said


OF_THE_TINY_MODEL = (
    "A whole tiny random model (4 layers, 8 experts, hidden 256) with adapters of rank 8 on",
    "everything, against the same one in float32 with nothing rounded. Which experts a token gets",
    "is a choice, and whatever is rounded below a router moves some, of a random model many: the",
    "first figures are with the choices that each model makes, the others with those of the exact",
    "one. A random model also hands a small error on enlarged; compare the rows with each other,",
    'and with "computed in bf16", which every run on a GPU does.',
)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", metavar="FILE", help="write the page here as well")
    parser.add_argument("--only", choices=[*SHAPES, "tiny"], help="one weight, or the tiny model")
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    names = [name for name in SHAPES if given.only in (None, name)]
    rows = [r for name in names for kind in STATISTICS for r in layer_rows(name, kind, generator)]
    head = ["weight", "statistics", "form", "bits", "weight error", "output", "gradient of input"]
    page = ["# What int8 and NF4 cost in exactness", ""]
    page += [f"`python {Path(sys.argv[0]).as_posix()}`, {datetime.date.today()}, on a CPU"]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "bitsandbytes", "peft"))
    page += [f"({platform.machine()}, {libraries}). No GPU was used and nothing was timed.", ""]
    page += [
        "Relative RMS errors of weights that were drawn, not released; what is compared with is"
    ]
    page += ["the same bf16 weight computed in float64. Statistics:", ""]
    page += [f"- {name}: {said}" for name, said in STATISTICS.items()]
    page += ["", *table([*head, "gradient of the loss", "loss, mean \\|error\\|"], rows)]
    if given.only in (None, "tiny"):
        page += ["", *OF_THE_TINY_MODEL, ""]
        heads = ["setting", "tokens with another expert", "logits", "gradients"]
        heads += ["logits, same routing", "gradients, same routing", "\\|loss difference\\|"]
        page += table(heads, tiny_rows())
    text = "\n".join(page) + "\n"
    print(text)
    if given.write:
        Path(given.write).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
