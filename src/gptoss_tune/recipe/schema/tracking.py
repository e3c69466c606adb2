"""The recipe's ``tracking`` section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from gptoss_tune.recipe.schema.value_types import Section, Text, Unique, listed, refuse

Tracker = Literal[
    "azure_ml",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "flyte",
    "kubeflow",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
]
"""What Transformers' trainer reports to, under its names; wandb and trackio have their own keys."""


def _trackers(value: Any) -> Any:
    """Read one name as a list of it; refuse the two that have a setting of their own."""
    names = listed(value)
    for own, setting in (("wandb", "wandb: online"), ("trackio", "trackio: local")):
        if isinstance(names, list) and own in names:
            raise refuse("a tracker without a setting of its own", f"set tracking.{setting}")
    return names


class TrackingSection(Section):
    """Where metrics go beside the run's own metrics.jsonl."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; the key is read from its own login, never from a recipe."""
    trackio: Literal["disabled", "local"] = "disabled"
    """trackio, in the run's own folder: no server and no Space; needs the extra trackio."""
    report_to: Annotated[
        list[Tracker],
        BeforeValidator(_trackers, json_schema_input_type=Tracker | list[Tracker]),
        Unique,
    ] = []
    """Other trackers, each Transformers' own callback, set by the library's own variables."""
    project: Text | None = None
    """Project in wandb or trackio; null: gptoss-tune."""
    run_name: Text | None = None
    """Name of the run in the tracker; null: the last part of output_dir."""
    entity: Text | None = None
    """The wandb user or team; null: the login's own."""
    group: Text | None = None
    """Runs of one group stand together in wandb, such as those of a sweep."""
    tags: Annotated[
        list[Text], BeforeValidator(listed, json_schema_input_type=Text | list[Text]), Unique
    ] = []
    """Labels of the run in wandb."""
