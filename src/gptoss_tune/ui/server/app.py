"""The application: which address is which page, and how a body and an error are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gptoss_tune.display import shown_safely
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.ui.access import Access, Guarded
from gptoss_tune.ui.chat.routes import ChatPage
from gptoss_tune.ui.jobs import Job, Jobs
from gptoss_tune.ui.pages import Pages, foreign_page, static_file, style_sheet
from gptoss_tune.ui.recipe.routes import RecipePage
from gptoss_tune.ui.runs.routes import RunPages

_LARGEST_BODY: Final = 256 << 10
Action = Callable[[dict[str, Any]], Response]


class Services:
    """What the pages of one server share: its folder, its jobs, its chat.

    Attributes:
        folder: Below which the runs lie.
        access: The tokens.
        jobs: What was started.
        chat: The page of the chat, which owns the loaded model.
    """

    def __init__(self, folder: Path, access: Access) -> None:
        """Start nothing."""
        self.folder, self.access = folder, access
        self.jobs = Jobs()
        self.pages = Pages(folder, access.action_token)
        self.runs = RunPages(folder, self.pages)
        self.recipe = RecipePage(self.pages, self.jobs)
        self.chat = ChatPage(folder, self.pages, self.jobs.folder)

    def close(self) -> list[Job]:
        """End what was started; return the trainings, which go on."""
        self.chat.close()
        return self.jobs.close()


def application(services: Services) -> ASGIApp:
    """Return the application of a server's services, behind its access."""
    runs, recipe, chat = services.runs, services.recipe, services.chat
    app = Starlette(
        routes=[
            Route("/", runs.listed),
            Route("/run", runs.run),
            Route("/run/live", runs.live),
            Route("/run/report", runs.report),
            _post("/run/stop", runs.stop),
            Route("/recipe", recipe.page),
            _post("/recipe/check", recipe.check),
            _post("/recipe/plan", recipe.plan),
            _post("/recipe/save", recipe.save),
            _post("/recipe/preview", recipe.preview),
            _post("/recipe/check-data", recipe.check_data),
            _post("/recipe/train", recipe.train),
            Route("/job", lambda request: _job(services.jobs, request)),
            Route("/job/page", lambda request: _job_page(services.jobs, request)),
            _post("/job/stop", lambda body: _stop_job(services.jobs, body)),
            Route("/chat", chat.page),
            Route("/chat/events", chat.events),
            _post("/chat/load", chat.load),
            _post("/chat/unload", chat.unload),
            _post("/chat/begin", chat.begin),
            _post("/chat/ask", chat.ask),
            _post("/chat/stop", chat.stop),
            Route("/style.css", lambda request: style_sheet()),
            Route("/static/{name}", lambda request: static_file(request.path_params["name"])),
        ],
        exception_handlers={
            404: lambda request, error: services.pages.page("missing.html", 404, what="page"),
            GptossTuneError: _told,
        },
    )
    return Guarded(app, services.access)


def _told(request: Request, error: Exception) -> Response:
    """Return an error of ours as it would stand in a terminal."""
    return JSONResponse({"error": shown_safely(str(error))}, 422)


def _post(path: str, action: Action) -> Route:
    """Return the route of what changes something: a JSON object in, on a thread of its own."""

    async def endpoint(request: Request) -> Response:
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _LARGEST_BODY:
                return JSONResponse({"error": "this is more than a form can hold"}, 413)
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return JSONResponse({"error": "expected one JSON object"}, 400)
        return await run_in_threadpool(action, body)

    return Route(path, endpoint, methods=["POST"])


def _job(jobs: Jobs, request: Request) -> Response:
    """Return what a job has written since, and whether it runs."""
    job = jobs.get(_whole(request.query_params.get("number")))
    if job is None:
        return JSONResponse({"error": "there is no such job"}, 404)
    code = job.code  # asked before the output, or its last lines would be missed
    output, end = job.output(_whole(request.query_params.get("from")))
    return JSONResponse(
        {
            "command": job.command,
            "output": output,
            "end": end,
            "code": code,
            "page": job.page is not None and job.page.is_file(),
        }
    )


def _job_page(jobs: Jobs, request: Request) -> Response:
    job = jobs.get(_whole(request.query_params.get("number")))
    if job is None or job.page is None or not job.page.is_file():
        return Response("there is no such page\n", 404, media_type="text/plain")
    return foreign_page(job.page.read_text(encoding="utf-8"))


def _stop_job(jobs: Jobs, body: dict[str, Any]) -> Response:
    job = jobs.get(_whole(body.get("number")))
    if job is None:
        return JSONResponse({"error": "there is no such job"}, 404)
    job.stop()
    return JSONResponse({})


def _whole(value: object) -> int:
    """Return a whole number from 0 of what was sent, 0 for anything else."""
    word = str(value)
    return int(word) if word.isascii() and word.isdigit() and len(word) < 16 else 0
