"""A tracker that is asked for and not installed is told before anything is loaded."""

import sys

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.recipe.schema import TrackingSection
from gptoss_tune.train.metrics.installed import refuse_missing_tracker


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_is_one_line_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    value = "offline" if name == "wandb" else "local"
    with pytest.raises(MachineError) as told:
        refuse_missing_tracker(TrackingSection(**{name: value}))
    assert str(told.value).startswith(
        f"tracking.{name} is {value}, and this needs the extra '{name}': "
        f'pip install "gptoss-tune[{name}]"'
    )
    assert "\n" not in str(told.value)
    refuse_missing_tracker(TrackingSection())


def test_all_missing_trackers_are_told_at_once(monkeypatch):
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MachineError, match=r"\[wandb\]") as told:
        refuse_missing_tracker(TrackingSection(wandb="online", trackio="local"))
    assert "[trackio]" in str(told.value)


def test_a_tracker_of_transformers_that_is_not_installed_is_named_with_its_package():
    with pytest.raises(
        MachineError, match=r"report_to: flyte needs flytekit.*pip install flytekit"
    ):
        refuse_missing_tracker(TrackingSection(report_to=["tensorboard", "flyte"]))
    refuse_missing_tracker(TrackingSection(report_to="tensorboard"))
