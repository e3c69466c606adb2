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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from gptoss_tune.environments.bounded import reason
from gptoss_tune.environments.environment import Environment
from gptoss_tune.environments.handlers import handlers_kept
from gptoss_tune.environments.rows import RowTools
from gptoss_tune.errors import RecipeError
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings
from gptoss_tune.recipe.contradictions.rewards import require_known

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import MethodSection

_METHODS: Final = {"reset": 2, "tools": 0, "reward": 1}
"""What a class must have, and how many arguments each is called with."""
_OPTIONAL: Final = {"reply": 1}
_LIBRARIES: Final = {"verifiers": "gptoss_tune.environments.verifiers.open"}
"""Libraries of environments, and what opens one of theirs by its name; it needs their extra."""
_OURS: Final = Path(__file__).parents[1]
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


def environment_for(spec: str | None, method: MethodSection) -> Callable[[], Environment] | None:
    """Return the class of the command line, where the recipe has a use for it.

    Args:
        spec: As ``load_environment`` takes it; ``None``: none was named.
        method: The recipe's.

    Raises:
        RecipeError: It cannot be had; the method plays no episodes, or names an environment too;
            or a reward has a weight that nobody is known to give.
    """
    if method.name != "grpo":
        if spec is None:
            return None
        raise RecipeError(
            f"--environment: got {spec!r} with method.name {method.name}, which plays no "
            "episodes; remove it, or set method.name to grpo"
        )
    if spec is not None and method.environment != "rows":
        raise RecipeError(
            f"--environment: got {spec!r} with method.environment {method.environment}, expected "
            "one of them; remove one: a class offers tools of its own, python too where it writes "
            "it down"
        )
    made = None if spec is None else load_environment(spec)
    named = getattr(made, "components", None)  # an object of the class may know more
    given = named if isinstance(named, tuple | list | set | frozenset) else None
    require_known(method.rewards, own=made is not None, given=given)
    return made


def files_of(spec: str, made: Callable[[], Environment]) -> list[Path]:
    """Return the files whose code an environment is: its module's, its class's, what it wraps.

    Args:
        spec: As ``load_environment`` takes it.
        made: What that returned.
    """
    module = sys.modules.get(spec.partition(":")[0])
    named = None if spec.partition(":")[0] in _LIBRARIES else getattr(module, "__file__", None)
    found = [Path(named)] if named else []
    try:
        source = inspect.getsourcefile(made)  # pyright: ignore[reportArgumentType]
    except TypeError:  # a class of C
        source = None
    wrapped = getattr(made, "made_of", ())
    for path in (*([Path(source)] if source else []), *wrapped):
        # What wraps one is ours, and known by its version.
        if path not in found and _OURS not in path.parents:
            found.append(path)
    return [path for path in found if path.is_file()]


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
