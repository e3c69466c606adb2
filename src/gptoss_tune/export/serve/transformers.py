"""``transformers serve``: a start script."""

from __future__ import annotations

from gptoss_tune.export.serve.served import PORT, Served, local
from gptoss_tune.export.serve.texts import script


def transformers(served: Served) -> dict[str, str]:
    """Return a start script."""
    command = ["transformers", "serve", local(served), "--host", served.host]
    command += ["--port", str(PORT), "--continuous-batching"]
    return {"serve.sh": script(command, exports={"HF_HUB_OFFLINE": "1"}, package="transformers")}
