"""The routes of the server, and what they do with a request."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gptoss_tune.errors import DataError, GptossTuneError
from gptoss_tune.evaluate.conversation import Answerer
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.evaluate.prompts import LONGEST_CONTEXT
from gptoss_tune.evaluate.server.completions import Completion
from gptoss_tune.evaluate.server.guard import Guard
from gptoss_tune.evaluate.server.queue import AnswerQueue, Finished
from gptoss_tune.evaluate.server.requests import BadRequest, ChatRequest, read_request
from gptoss_tune.evaluate.server.settings import ServerSettings
from gptoss_tune.files import strict_json
from gptoss_tune.run.folder import ADAPTER

LARGEST_BODY: Final = 16 * 2**20
_GONE: Final = 499  # what other servers log for a client that left
_DIGITS = re.compile(r"[^\w./-]+")


def served_name(name: str) -> str:
    """Return the name of a model for clients: the folder of a run or model, or its Hub name."""
    path = Path(name)
    if not path.is_dir():
        return name
    path = path.resolve()
    path = path.parent if path.name == ADAPTER else path
    return _DIGITS.sub("-", path.name) or "model"


def build_app(
    answerer: Answerer,
    usual: Sampling,
    settings: ServerSettings,
    queue: AnswerQueue,
    *,
    instructions: str | None = None,
) -> Starlette:
    """Return the application.

    Args:
        answerer: The model; its name is what clients see.
        usual: Sampling of requests that leave it open.
        settings: Who may ask.
        queue: Computes the answers of ``answerer``.
        instructions: Developer instructions of requests without any.
    """
    api = _Api(answerer, usual, queue, instructions)
    middleware = [Middleware(Guard, settings=settings)]
    if settings.origins:
        cors = {"allow_origins": settings.origins, "allow_methods": ["*"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, **cors))
    return Starlette(
        routes=[
            Route("/health", api.health),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
        ],
        middleware=middleware,
        exception_handlers={
            BadRequest: _bad_request,
            GptossTuneError: _own_error,
            HTTPException: _http_error,
            Exception: _fault,
        },
    )


class _Api:
    """The routes of one model."""

    def __init__(
        self, answerer: Answerer, usual: Sampling, queue: AnswerQueue, instructions: str | None
    ) -> None:
        self._answerer, self._usual, self._queue = answerer, usual, queue
        self._instructions = instructions
        self._name = served_name(answerer.name)
        self._since = int(time.time())
        self._reading = asyncio.Lock()

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self._name:
            raise BadRequest(f"expected {self._name!r}", "model", "model_not_found", 404)
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._since,
            "owned_by": "gptoss-tune",
            "max_model_len": LONGEST_CONTEXT,
        }

    async def chat(self, request: Request) -> Response:
        body = await _json(request)
        asked = read_request(
            body, served=self._name, usual=self._usual, instructions=self._instructions
        )
        async with self._reading:
            prompt = await asyncio.to_thread(self._prompt, asked)
        completion = Completion(self._name, len(prompt), asked.stop)
        if asked.stream:
            chunks = self._chunks(asked, prompt, completion)
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
        whole = asyncio.ensure_future(self._whole(asked, prompt, completion))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                return Response(status_code=_GONE)
            return JSONResponse(whole.result())
        finally:
            for task in (whole, gone):
                task.cancel()

    def _prompt(self, asked: ChatRequest) -> list[int]:
        """Return the ids of what is asked.

        Raises:
            BadRequest: It cannot be read, or is too long.
        """
        try:
            prompt = self._answerer.prompt(asked.row)
        except DataError as error:
            raise BadRequest(str(error), "messages") from None
        longest = LONGEST_CONTEXT - asked.sampling.max_new_tokens
        if len(prompt) > longest:
            raise BadRequest(
                f"the messages have {len(prompt):,} tokens and the answer up to "
                f"{asked.sampling.max_new_tokens:,}; expected {LONGEST_CONTEXT:,} together: "
                "shorten the conversation, or lower max_completion_tokens",
                "messages",
                "context_length_exceeded",
            )
        return prompt

    async def _whole(
        self, asked: ChatRequest, prompt: list[int], completion: Completion
    ) -> dict[str, Any]:
        finished = Finished("stop", 0)
        async with aclosing(self._queue.answer(prompt, asked.sampling)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    finished = event
                else:
                    finished = Finished("stop", event.tokens)
                    list(completion.take(event.delta))
                    if completion.stopped:
                        break
        list(completion.end())
        return completion.whole(*finished)

    async def _chunks(
        self, asked: ChatRequest, prompt: list[int], completion: Completion
    ) -> AsyncIterator[str]:
        yield _event(completion.chunk({"role": "assistant", "content": ""}))
        finished = Finished("stop", 0)
        try:
            async with aclosing(self._queue.answer(prompt, asked.sampling)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        finished = event
                        continue
                    finished = Finished("stop", event.tokens)
                    for delta in completion.take(event.delta):
                        yield _event(completion.chunk(delta))
                    if completion.stopped:
                        break
        except (BadRequest, GptossTuneError) as error:  # the status is sent already
            yield _event(_refusal(error).body())
            return
        for delta in completion.end():
            yield _event(completion.chunk(delta))
        yield _event(completion.chunk({}, finished.ended))
        if asked.usage:
            yield _event(completion.usage_chunk(finished.tokens))
        yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _json(request: Request) -> Any:
    """Return the body of a request.

    Raises:
        BadRequest: It is too large, or no JSON.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise BadRequest(
                f"the body is larger than {LARGEST_BODY // 2**20} MiB; send less", status=413
            )
    try:
        return strict_json.parse(bytes(body))
    except ValueError as error:
        raise BadRequest(f"the body is no JSON ({error}); expected an object") from None


async def _gone(request: Request) -> None:
    """Return when the client of ``request``, whose body was read, has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(error: Exception) -> BadRequest:
    if isinstance(error, BadRequest):
        return error
    status = 400 if isinstance(error, DataError) else 503
    return BadRequest(str(error), status=status)


async def _bad_request(request: Request, error: Exception) -> Response:
    refusal = _refusal(error)
    return JSONResponse(refusal.body(), refusal.status)


_own_error = _bad_request


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = (
        f"{request.method} {request.url.path} is not here; expected POST /v1/chat/completions, "
        "GET /v1/models or GET /health"
    )
    refusal = BadRequest(text, code="not_found", status=error.status_code)
    return JSONResponse(refusal.body(), refusal.status, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    refusal = BadRequest(f"{type(error).__name__}: the server's terminal has more", status=500)
    return JSONResponse(refusal.body(), refusal.status)
