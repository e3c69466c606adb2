"""Packing changes how rows are laid out and nothing that is learnt."""

import pytest
import torch
from gptoss_kernels.testing import relative_rms
from safetensors.torch import load_file

from gptoss_tune.train.run import train


@pytest.mark.slow
def test_a_packed_run_learns_what_an_unpacked_one_does(recipe, losses, tmp_path):
    """All six rows are in every step of both runs: as a batch of six, and in one packed row."""
    common = ("train.max_steps=3", "train.lr_scheduler_type=constant", "data.max_length=1024")
    folders = {name: tmp_path / name for name in ("padded", "packed")}
    settings = {
        "padded": ("train.per_device_train_batch_size=6",),
        "packed": ("train.per_device_train_batch_size=1", "data.packing=true"),
    }
    for name, folder in folders.items():
        train(recipe(*common, *settings[name], f"train.output_dir={folder}"))
    expected, actual = losses(folders["padded"]), losses(folders["packed"])
    assert actual.keys() == expected.keys() == {1, 2, 3}
    assert expected[3] < expected[1], "something has to be learnt for this to mean anything"
    for step, loss in expected.items():
        assert actual[step] == pytest.approx(loss, rel=1e-5)
    tensors = [load_file(f / "adapter" / "adapter_model.safetensors") for f in folders.values()]
    flat = [torch.cat([part[name].flatten() for name in sorted(part)]) for part in tensors]
    assert relative_rms(flat[1], flat[0]) < 1e-4  # Adam divides small gradients by themselves
