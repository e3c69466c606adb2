"""Pages: templates that escape what they are given, and the style sheet of the report.

Every text that comes from a run, a recipe or a dataset goes through the filter ``shown``, which
spells out what is invisible, and is escaped by the template engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from gptoss_tune.display import one_line, visible
from gptoss_tune.report.parts.style import POLICY, STYLE
from gptoss_tune.report.parts.text import count, duration, figure, size

_HERE = Path(__file__).parent
_STATIC: Final = {".js": "text/javascript", ".css": "text/css"}


class Pages:
    """Draws the pages of one server.

    Attributes:
        folder: Below which the runs lie, as the user wrote it.
    """

    def __init__(self, folder: Path, action_token: str) -> None:
        """Read templates from beside this file."""
        self.folder = folder
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "shown": lambda value: visible(str(value)),
            "named": lambda value: one_line(str(value)),
            "count": count,
            "duration": duration,
            "figure": figure,
            "size": size,
        }
        self._environment.globals |= {"action_token": action_token, "folder": str(folder)}

    def page(self, template: str, status: int = 200, **given: Any) -> Response:
        """Return a whole page."""
        return HTMLResponse(self.part(template, **given), status)

    def part(self, template: str, **given: Any) -> str:
        """Return the HTML of a template."""
        return self._environment.get_template(template).render(**given)


def style_sheet() -> Response:
    """Return the report's style with what these pages add."""
    own = (_HERE / "static" / "ui.css").read_text(encoding="utf-8")
    return Response(f"{STYLE}\n{own}", media_type="text/css")


def static_file(name: str) -> Response:
    """Return a file of this package, by its name alone."""
    for path in (_HERE / "static").iterdir():
        if path.name == name and path.suffix in _STATIC:
            return Response(path.read_bytes(), media_type=_STATIC[path.suffix])
    return Response("no such file\n", 404, media_type="text/plain")


def foreign_page(html: str) -> Response:
    """Return a page of the report or preview, which may be framed and may do nothing."""
    policy = f"{POLICY}; frame-ancestors 'self'; sandbox allow-popups"
    return HTMLResponse(html, headers={"content-security-policy": policy})
