"""Layouts that are read as they lie: the same tensors, the same logits, the same fingerprint."""

import pytest
import torch

from gptoss_tune.errors import CheckpointError
from gptoss_tune.model.load import load_base
from gptoss_tune.recipe.schema import ModelSection
from gptoss_tune.weights import open_checkpoint

WAYS = [
    "dense values named `_blocks` (transformers 5.5.2 and later)",
    "`model.language_model.`",
    "`module.`, MXFP4",
    "a linear layer an expert (Unsloth)",
    "a linear layer an expert (GPTQModel)",
    "three linear layers an expert",
    "three linear layers an expert (LLM Compressor)",
]
TOKENS = torch.arange(100, 164).reshape(2, 32)


@pytest.fixture(scope="module")
def ours():
    """Return a function from an opened checkpoint to our model's logits in fp32."""

    def compute(checkpoint):
        settings = {"name_or_path": str(checkpoint.path), "dtype": "float32"}
        section = ModelSection(**settings, experts_precision="bf16")
        with torch.no_grad():
            return load_base(checkpoint, section)(TOKENS).logits

    return compute


@pytest.fixture(scope="module")
def expected(bases, ours):
    return ours(open_checkpoint(bases["bf16"]))


@pytest.mark.parametrize("way", WAYS)
def test_the_logits_are_those_of_the_release(ways, bases, tmp_path, ours, expected, way):
    folder = ways.TRANSLATED[way](bases, tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"gptoss-tune convert .* --out DIR"):
        open_checkpoint(folder)
    opened = open_checkpoint(folder, translate=True)
    assert opened.renamed
    assert torch.equal(ours(opened), expected)
    released = open_checkpoint(bases[opened.expert_format])
    assert opened.fingerprint()["content"] == released.fingerprint()["content"]
    assert opened.fingerprint()["weights"] == released.fingerprint()["weights"]
    assert opened.nbytes() == released.nbytes()


def test_the_two_formats_and_plain_transformers_are_one_model(
    bases, ours, expected, released_logits
):
    assert torch.equal(ours(open_checkpoint(bases["mxfp4"])), expected)
    # Another order of the sums; a wrong layout is off by more than the logits themselves.
    assert (expected - released_logits).abs().max() < 1e-3 * released_logits.abs().max()


def test_rows_of_a_stack_are_those_of_the_whole(ways, bases, tmp_path):
    folder = ways.TRANSLATED["three linear layers an expert"](bases, tmp_path / "base")
    opened, released = open_checkpoint(folder, translate=True), open_checkpoint(bases["bf16"])
    for name in released.names():
        assert torch.equal(opened.read(name), released.read(name)), name
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(opened.read_rows(name, 1, 3), released.read(name)[1:3])
    assert not opened.is_stored(name) and opened.is_stored("lm_head.weight")
    opened.prefetch(name)


def test_a_repository_in_the_cache_is_called_by_its_snapshot(ways, bases, tmp_path):
    other = ways.other.cache()(bases, tmp_path / "cache")
    opened = open_checkpoint(other)
    assert opened.path == other / "snapshots" / "commit0" and opened.name == str(opened.path)
    several = ways.other.cache(snapshots=2)(bases, tmp_path / "several")
    assert open_checkpoint(several).path.name == "commit0"  # the one of the branch, not the last
    with pytest.raises(CheckpointError, match="with 2 snapshots and no branch main; name one"):
        open_checkpoint(ways.other.cache(refs=False, snapshots=2)(bases, tmp_path / "two"))


def test_tied_embeddings_are_the_head(ways, bases, tmp_path, ours, logits):
    folder = ways.other.tied(bases, tmp_path / "tied")
    found, plain = ours(open_checkpoint(folder)), logits(folder)
    assert (found - plain).abs().max() < 1e-3 * plain.abs().max()
