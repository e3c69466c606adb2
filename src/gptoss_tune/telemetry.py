"""Telemetry of other libraries: switched off once, before any of them is imported.

They read these variables when they are imported, so ``run_command`` calls this first. One place
beats the trainer, the tracker and the chat each remembering their own: what one of them forgets is
sent. A user's own setting of a variable stays.
"""

from __future__ import annotations

import os

SWITCHES = {
    # huggingface_hub: its reports, and torch's version in the name that it tells a server;
    # transformers, TRL (each trainer that is made), trackio and gradio report through it.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # datasets counts every loading of a set by a request of its own.
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    # wandb's service reports errors to its makers, offline too.
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # Plugins of pydantic watch what is validated; to look for some costs a tenth of a second.
    "PYDANTIC_DISABLE_PLUGINS": "1",
}


def switch_off_telemetry() -> None:
    """Set the variables of ``SWITCHES`` that the user has not set."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
