"""``transformers serve``: a start script."""

from __future__ import annotations

from gptoss_tune.export.serve.served import PORT, Served, local
from gptoss_tune.export.serve.texts import script


def transformers(served: Served) -> dict[str, str]:
    """Return a start script."""
    command = ["transformers", "serve", local(served), "--host", served.host]
    return {"serve.sh": script([*command, "--port", str(PORT), "--continuous-batching"])}
