"""Answers 404 to all but the OpenAI API and the probes: vLLM asks for its key under /v1 alone.

vLLM's key protects the paths below ``/v1``, ``/v2`` and ``/inference``; ``/invocations`` gives the
same answers to whoever asks. This is an ASGI middleware for ``vllm serve --middleware``; it is
written into bundles as a file of its own and imports nothing.
"""

OPEN = ("/health", "/ping", "/version", "/metrics")
"""Paths without a key: probes and Prometheus."""


class OnlyV1:
    """Lets the paths below ``/v1`` and those of ``OPEN`` through."""

    def __init__(self, app):
        """Stand before ``app``."""
        self.app = app

    async def __call__(self, scope, receive, send):
        """Answer a request, or hand it on."""
        path = scope.get("path", "")
        known = path.startswith("/v1/") or path in OPEN
        if scope["type"] == "lifespan" or known:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            kind = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 404, "headers": kind})
            await send({"type": "http.response.body", "body": b"not served here\n"})
        else:
            await send({"type": "websocket.close", "code": 1008})
