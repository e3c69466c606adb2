"""Environments by name: those that come along, and a class of the user's own.

A class is named on the command line, ``--environment shop:Shop``, and imported from the current
directory or from what is installed; ``verifiers:NAME`` is an environment of that library. A recipe
cannot name one: recipes are exchanged, and importing a module runs it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, cast

from gptoss_tune.environments.bounded import reason
from gptoss_tune.environments.environment import Environment
from gptoss_tune.environments.handlers import handlers_kept
from gptoss_tune.environments.rows import RowTools
from gptoss_tune.errors import RecipeError
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings

_METHODS: Final = {"reset": 2, "tools": 0, "reward": 1}
"""What a class must have, and how many arguments each is called with."""
_OPTIONAL: Final = {"reply": 1}
_LIBRARIES: Final = {"verifiers": "gptoss_tune.environments.verifiers.open"}
"""Libraries of environments, and what opens one of theirs by its name; it needs their extra."""
_SPEC: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def built_in(
    name: Literal["rows", "python"], *, reading: ReadSettings = AS_IT_STANDS, tool_seconds: float
) -> Callable[[], Environment]:
    """Return what makes an environment that comes along, one for each episode.

    Args:
        name: As in the recipe.
        reading: How the recipe has rows read.
        tool_seconds: What one call may take.

    Raises:
        MachineError: It runs code of the model, which this machine does not hold back.
    """
    if name == "rows":
        return partial(RowTools, reading)
    # The sandbox is for those who run code: no other task needs what it loads.
    from gptoss_tune.environments.python_tool import CodeTools
    from gptoss_tune.grading.code.protection import require

    require()
    return partial(CodeTools, reading, tool_seconds=tool_seconds)


def load_environment(spec: str) -> Callable[[], Environment]:
    """Return the class that ``module:Class`` names; it is called for each episode.

    Args:
        spec: A module that can be imported, the current directory's before others, and a class; or
            ``verifiers:NAME``.

    Raises:
        RecipeError: There is no such module or class, importing it fails, or it is no environment.
    """
    library, _, name = spec.partition(":")
    if library in _LIBRARIES:
        return importlib.import_module(_LIBRARIES[library]).load(name)
    if not _SPEC.fullmatch(spec):
        raise RecipeError(
            f"--environment is {spec[:100]!r}; expected module:Class, such as shop:Shop for the "
            "class Shop in shop.py"
        )
    module_name, class_name = library, name
    module = _imported(module_name, spec)
    found = getattr(module, class_name, None)
    if found is None:
        named = [name for name, value in vars(module).items() if _is_own(value, module_name)]
        there = f"it has {', '.join(sorted(named)[:8])}" if named else "it defines no class"
        raise RecipeError(f"--environment {spec}: {module_name} has no {class_name}; {there}")
    if not inspect.isclass(found):
        raise RecipeError(
            f"--environment {spec}: {class_name} is {type(found).__name__}; expected a class that "
            "is called without arguments for each episode"
        )
    _check(found, spec)
    return cast(Callable[[], Environment], found)


def _imported(name: str, spec: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        with handlers_kept():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise RecipeError(
                f"--environment {spec}: there is no module {name}, neither in {folder} nor "
                "installed; check the name, or start in the folder where its file lies"
            ) from None
        raise RecipeError(
            f"--environment {spec}: importing {name} fails: {reason(error)}; install what it needs"
        ) from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise RecipeError(
            f"--environment {spec}: importing {name} fails: {reason(error)}; correct the module"
        ) from error


def _is_own(value: object, module: str) -> bool:
    return inspect.isclass(value) and value.__module__ == module


def _check(found: type, spec: str) -> None:
    """Refuse a class that lacks a method, or whose methods take other arguments."""
    missing = [name for name in _METHODS if not callable(getattr(found, name, None))]
    if missing:
        raise RecipeError(
            f"--environment {spec}: {found.__name__} has no {' and no '.join(missing)}; an "
            "environment has reset(row, seed), tools() and reward(outcome)"
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise RecipeError(
            f"--environment {spec}: {found.__name__}() cannot be called without arguments "
            f"({error}); give them defaults"
        ) from None
    except ValueError:
        pass  # a class of C says nothing of its arguments
    for name, count in (_METHODS | _OPTIONAL).items():
        method = getattr(found, name, None)
        if method is None:
            continue
        if inspect.iscoroutinefunction(method):
            raise RecipeError(
                f"--environment {spec}: {found.__name__}.{name} is async; write a plain function"
            )
        own = inspect.getattr_static(found, name)
        given = [object()] * (count + (not isinstance(own, staticmethod | classmethod)))
        try:
            inspect.signature(method).bind(*given)
        except TypeError as error:
            raise RecipeError(
                f"--environment {spec}: {found.__name__}.{name} takes other arguments than the "
                f"{count} it is called with ({error})"
            ) from None
        except ValueError:
            continue
