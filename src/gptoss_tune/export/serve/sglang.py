"""SGLang: a start script and a compose file."""

from __future__ import annotations

from gptoss_tune.export.serve.served import EVERYWHERE, KEYS, MODEL_MOUNT, PORT, Served, local
from gptoss_tune.export.serve.texts import compose_value, required, script, yaml_text


def sglang(served: Served) -> dict[str, str]:
    """Return a start script and a compose file."""
    key = KEYS["sglang"] if served.open_to_others else None

    def arguments(model: str, host: str, token: str) -> list[str]:
        return [
            *("python", "-m", "sglang.launch_server", "--model-path", model),
            *("--served-model-name", served.name, "--context-length", str(served.context)),
            *("--tp", str(served.gpus), "--reasoning-parser", "gpt-oss"),
            *("--tool-call-parser", "gpt-oss", "--host", host, "--port", str(PORT)),
            *(("--api-key", token) if key else ()),
        ]

    start = script(arguments(local(served), served.host, "@KEY@"), needed=key)
    command = arguments(f"{MODEL_MOUNT}/{served.name}", EVERYWHERE, required(key or ""))
    return {
        "serve.sh": start.replace("@KEY@", f'"${key}"'),
        "compose.yaml": yaml_text(compose_value(served, "lmsysorg/sglang:latest", command)),
    }
