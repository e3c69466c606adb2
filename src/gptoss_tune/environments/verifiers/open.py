"""Loads an environment of ``verifiers``, or its tasks.

Loading one runs its code. It replaces the handlers of SIGINT and SIGTERM, which are put back.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any, Final, cast

from gptoss_tune.environments.handlers import handlers_kept
from gptoss_tune.environments.verifiers.fit import components, obstacle
from gptoss_tune.environments.verifiers.loop import SharedLoop
from gptoss_tune.environments.verifiers.played import VerifiersEnvironment, WithUser
from gptoss_tune.error_hints import missing_extra
from gptoss_tune.errors import DataError, MachineError, RecipeError
from gptoss_tune.files.atomic import replacing
from gptoss_tune.recipe.contradictions.rewards import FLOAT

_INSTALL: Final = "pip install 'gptoss-tune[verifiers]'"


def load(name: str, **settings: Any) -> type[VerifiersEnvironment]:
    """Load an installed environment by its name and wrap it.

    Args:
        name: As ``verifiers.load_environment`` takes it.
        settings: Handed to the environment.

    Raises:
        MachineError: verifiers is not installed, or of a version without such environments.
        RecipeError: The environment cannot be loaded, or not be played here.
    """
    vf = _package()
    with handlers_kept():
        try:
            environment = vf.load_environment(name, **settings)
        except Exception as error:
            raise RecipeError(
                f"--environment verifiers:{name}: verifiers cannot load it "
                f"({type(error).__name__}: {error}); install its package, and see that its module "
                "has load_environment()"
            ) from error
    made = wrap(environment)
    # As the package names the module of an environment.
    module = sys.modules.get(name.rpartition("/")[2].replace("-", "_"))
    made.made_of = (*made.made_of, *_files(module))
    return made


def wrap(environment: Any) -> type[VerifiersEnvironment]:
    """Return a class whose objects play one episode of an environment each.

    Args:
        environment: Made by ``verifiers.load_environment``, or by hand.

    Raises:
        RecipeError: It cannot be played here; the message says why.
    """
    vf = _package()
    why = obstacle(environment, vf)
    if why is not None:
        raise RecipeError(f"{type(environment).__name__} of verifiers cannot be played here: {why}")
    scored = tuple(components(environment.rubric))
    answers = type(environment).env_response is not vf.SingleTurnEnv.env_response
    with_user = answers and not isinstance(environment, vf.ToolEnv)
    abstract = importlib.import_module("verifiers.clients").Client
    client = type("NoClient", (abstract,), dict.fromkeys(abstract.__abstractmethods__, _no_client))
    made = type(
        f"Played{type(environment).__name__}",
        (WithUser if with_user else VerifiersEnvironment,),
        {
            "__doc__": f"An episode of {type(environment).__name__} of verifiers.",
            "made_of": _files(type(environment), *(each.function for each in scored)),
            "components": (*(each.name for each in scored), FLOAT),
            "_played": environment,
            "_client": client(None),
            "_scored": scored,
            "_plain_tools": _plain_tools(environment, vf),
            "_loop": SharedLoop(),
        },
    )
    return cast(type[VerifiersEnvironment], made)


def write_rows(name: str, path: str | Path, *, split: str = "train", **settings: Any) -> int:
    """Write the tasks of an installed environment as rows for ``data``; return how many.

    Args:
        name: As ``verifiers.load_environment`` takes it.
        path: A JSON Lines file, replaced whole.
        split: ``train`` or ``eval``.
        settings: Handed to the environment.

    Raises:
        DataError: A row holds what JSON does not, or the environment has no such tasks.
        MachineError: verifiers is not installed.
        RecipeError: The environment cannot be loaded.
    """
    vf = _package()
    with handlers_kept():
        try:
            environment = vf.load_environment(name, **settings)
            built = {"train": environment.build_dataset, "eval": environment.build_eval_dataset}
            rows = built[split]()
        except Exception as error:
            raise RecipeError(f"verifiers cannot load {name!r}: {error}") from error
    if rows is None or not len(rows):
        raise DataError(f"{name} of verifiers has no tasks for {split}")
    with replacing(Path(path)) as file:
        for number, row in enumerate(rows):
            try:
                text = json.dumps(row, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise DataError(f"{name}, task {number} of {split}: no JSON ({error})") from None
            file.write(f"{text}\n")
    return len(rows)


def _package() -> Any:
    # By name: types are checked where it is not installed, because it brings thirty packages.
    try:
        package = importlib.import_module("verifiers")
        for part in ("MultiTurnEnv", "SingleTurnEnv", "ToolEnv", "load_environment"):
            getattr(package, part)
    except (ModuleNotFoundError, AttributeError) as error:
        absent = missing_extra("verifiers")
        raise MachineError(
            absent
            or f"verifiers {_version()} has no environments of the kind that is known here "
            f"({error}); expected 0.2 or 0.3: {_INSTALL}"
        ) from None
    return package


def _version() -> str:
    return str(getattr(importlib.import_module("verifiers"), "__version__", "of no known version"))


def _files(*objects: Any) -> tuple[Path, ...]:
    """Return the files of classes, functions and modules that have one, each once."""
    found: dict[Path, None] = {}
    for each in objects:
        with contextlib.suppress(TypeError):  # built in, or of no kind that has a file
            if (file := inspect.getsourcefile(inspect.unwrap(each))) is not None:
                found[Path(file)] = None
    return tuple(found)


def _plain_tools(environment: Any, vf: Any) -> dict[str, Any]:
    """Return the tools that are plain functions and are called as such."""
    if not isinstance(environment, vf.ToolEnv) or (
        type(environment).call_tool is not vf.ToolEnv.call_tool
    ):
        return {}
    tools = environment.tool_map
    return {name: tool for name, tool in tools.items() if not inspect.iscoroutinefunction(tool)}


async def _no_client(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the run plays the model; an environment cannot ask one here")
