"""Settings of every test process."""

import os

import pytest
import torch

from gptoss_tune.telemetry import switch_off_telemetry

# What a command does first; tests call what is below the commands.
switch_off_telemetry()
# Triton reads this when a kernel is defined, so it has to be set before anything imports triton;
# importing torch does not. Where there is a GPU the same tests run on it, compiled.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The suite runs one process per core.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def two_layer_base(tmp_path_factory):
    """A tiny base in the released layout, for rooms that only need one to train."""
    from gptoss_tune.testing.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("two-layers") / "base"
    return tiny_checkpoint(folder, seed=1, layers=2, experts=4, hidden=64, intermediate=96)


@pytest.fixture(scope="session")
def device():
    """Where a test's tensors go: a GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(config, items):
    """Skip tests of kernels that cannot run here; deselect those that need a GPU."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if parameters.get("backend") == "triton" and not item.get_closest_marker("gpu"):
            item.add_marker("triton")
        if item.get_closest_marker("interpreter") and not interpreted:
            reason = "Triton's interpreter is off, and the tensors are on the CPU"
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker("triton") and not (interpreted or torch.cuda.is_available()):
            reason = "Triton's interpreter is off, and there is no GPU"
            item.add_marker(pytest.mark.skip(reason=reason))
    if torch.cuda.is_available():
        return
    needy = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=needy)
