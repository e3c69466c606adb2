"""The page of a recipe: its form, its mistakes beside their fields, and what it would do."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gptoss_tune.display import shown_safely
from gptoss_tune.errors import GptossTuneError, RecipeError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.plan.gpus import DEFAULT_GPU, GPUS, card
from gptoss_tune.plan.plan import plan as make_plan
from gptoss_tune.plan.strategy import refuse_unspreadable
from gptoss_tune.recipe.dump import resolved_lines
from gptoss_tune.recipe.load import load_recipe, read_recipe_values, recipe_of_settings
from gptoss_tune.recipe.mistakes import Mistake, RecipeMistakes
from gptoss_tune.ui.jobs import Jobs
from gptoss_tune.ui.pages import Pages
from gptoss_tune.ui.recipe import files
from gptoss_tune.ui.recipe.fields import field_of, groups
from gptoss_tune.ui.recipe.plan_view import plan_view
from gptoss_tune.ui.recipe.values import Value, changed_yaml, form_values, method_of, settings_of

_NAME: Final = "the form"
_OPEN: Final = ("model", "data", "method", "train")
"""Sections of which a recipe says something, and the choice of the method."""
_FIRST: Final = str(PurePath("gpt-oss-20b", "qlora.yaml"))
_SAMPLES: Final = 8
_MOST_GPUS: Final = 65_536


class RecipePage:
    """The page of the recipes of the current folder."""

    def __init__(self, pages: Pages, jobs: Jobs) -> None:
        """Open nothing yet."""
        self._pages, self._jobs = pages, jobs

    def page(self, request: Request) -> Response:
        """Return the form, filled from the recipe that is asked for."""
        name = request.query_params.get("file", _first_choice())
        refused, values = "", {}
        if name:
            try:
                path = files.chosen(name)
                values = read_recipe_values(path)
                load_recipe(path)
            except GptossTuneError as error:
                refused = shown_safely(str(error))
        filled = form_values(values)
        shipped, local = files.shipped_recipes(), files.local_recipes()
        said = {key.rpartition(".")[0] for key in filled}
        return self._pages.page(
            "recipe.html",
            file=name,
            name=next((one.name for one in shipped if one.path == name), name),
            refused=refused,
            groups=groups(),
            values=filled,
            method=method_of(values),
            opened={*_OPEN, *said},
            shipped=shipped,
            local=local,
            gpus=[gpu.name for gpu in GPUS],
            default_gpu=DEFAULT_GPU,
            saved_as=name if any(one.path == name for one in local) else "my-recipe.yaml",
        )

    def check(self, body: dict[str, Any]) -> Response:
        """Return the recipe of a form as YAML, or its mistakes, each by its field."""
        form = _form(body)
        try:
            text = _yaml(form)
        except RecipeMistakes as error:
            method = str(form.get("method.name") or "sft")
            return JSONResponse({"mistakes": [_shown(one, method) for one in error.mistakes]})
        return JSONResponse({"mistakes": [], "yaml": text})

    def plan(self, body: dict[str, Any]) -> Response:
        """Return the plan of a form as HTML."""
        count = body.get("gpus") or None
        if count is not None and not (type(count) is int and 1 <= count <= _MOST_GPUS):
            raise RecipeError(f"got {count!r} GPUs, expected a whole number from 1")
        made = make_plan(
            recipe_of_settings(settings_of(_form(body)), _NAME),
            card(str(body.get("gpu") or DEFAULT_GPU)),
            gpus=count,
        )
        return JSONResponse({"html": self._pages.part("plan.html", view=plan_view(made))})

    def save(self, body: dict[str, Any]) -> Response:
        """Write the recipe of a form into a file; ask before one is replaced."""
        name, overwrite = str(body.get("path", "")), body.get("overwrite") is True
        try:
            path = files.save(name, _yaml(_form(body)), overwrite=overwrite)
        except files.FileExists as error:
            return JSONResponse({"asks": str(error)}, 409)
        return JSONResponse({"path": path})

    def preview(self, body: dict[str, Any]) -> Response:
        """Start ``preview`` on the recipe of a form."""
        page = self._jobs.folder / "preview.html"
        page.unlink(missing_ok=True)
        words = ["preview", self._draft(body), "--html", str(page), "--n", str(_SAMPLES)]
        return self._started("preview", words, page)

    def check_data(self, body: dict[str, Any]) -> Response:
        """Start ``check-data`` on the recipe of a form."""
        return self._started("check-data", ["check-data", self._draft(body)])

    def train(self, body: dict[str, Any]) -> Response:
        """Start ``train`` on a saved recipe that says what the form does."""
        name = str(body.get("path", ""))
        path = files.chosen(name)
        if _lines(path) != _yaml(_form(body)):
            raise RecipeError(f"{name} does not say what the form says; save the recipe first")
        return self._started("train", ["train", files.typed(path)])

    def _started(self, kind: str, words: list[str], page: Any = None) -> Response:
        job = self._jobs.start(kind, words, page)
        return JSONResponse({"number": job.number, "command": job.command})

    def _draft(self, body: dict[str, Any]) -> str:
        """Write the recipe of a form beside the jobs and return where."""
        path = self._jobs.folder / "recipe.yaml"
        write_text(path, _yaml(_form(body)))
        return str(path)


def _first_choice() -> str:
    """Return the recipe that the page opens with: the smallest real one."""
    return next((one.path for one in files.shipped_recipes() if one.path.endswith(_FIRST)), "")


def _form(body: dict[str, Any]) -> dict[str, Value]:
    """Return the fields of a form; what is no text is left out."""
    sent = body.get("form")
    found: dict[str, Value] = {}
    for key, value in (sent if isinstance(sent, dict) else {}).items():
        if isinstance(value, str):
            found[key] = value
        elif isinstance(value, list):
            found[key] = [entry for entry in value if isinstance(entry, str)]
    return found


def _yaml(form: dict[str, Value]) -> str:
    """Return the recipe of a form as YAML: what it says beyond the defaults.

    Raises:
        RecipeMistakes: With every mistake in it.
    """
    made = recipe_of_settings(settings_of(form), _NAME)
    refuse_unspreadable(_NAME, made.model, made.train, made.distributed)
    return changed_yaml(resolved_lines(made))


def _lines(path: Any) -> str:
    """Return what a recipe's file says beyond the defaults."""
    return changed_yaml(resolved_lines(load_recipe(path)))


def _shown(mistake: Mistake, method: str) -> dict[str, str]:
    """Return a mistake for the page: its field, if it has one, and what to do."""
    field = field_of(mistake.key, method)
    said = f"got {mistake.got}, expected {mistake.expected}; {mistake.todo}"
    inside = field is not None and mistake.key != field.key
    return {
        "field": "" if field is None else field.identity,
        "key": shown_safely(mistake.key),
        "message": shown_safely(f"{mistake.key}: {said}" if inside else said),
    }
