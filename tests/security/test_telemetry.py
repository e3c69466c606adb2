"""What the libraries themselves make of the switches: asked in a process after a real command."""

import json
import os
import subprocess
import sys

import pytest

from gptoss_tune.telemetry import SWITCHES

AFTER_A_COMMAND = """
import json, sys
from gptoss_tune.cli import main
sys.argv = ["gptoss-tune", "schema"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
from datasets import config
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers
from transformers.utils.hub import http_user_agent
found = {
    "hub": constants.HF_HUB_DISABLE_TELEMETRY,
    "counts": config.HF_UPDATE_DOWNLOAD_COUNTS,
    "agent": build_hf_headers(token=False)["user-agent"],
    "transformers": http_user_agent(),
}
print()
print(json.dumps(found))
"""


def after_a_command(**setting):
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", AFTER_A_COMMAND],
        env={**environment, **setting},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("setting", [{}, {"HF_HUB_DISABLE_TELEMETRY": "0"}], ids=["unset", "on"])
def test_libraries_report_nothing_unless_the_user_says_so(setting):
    found = after_a_command(**setting)
    assert not found["counts"]
    assert found["hub"] is not bool(setting)
    assert ("torch/" in found["agent"]) is bool(setting)
    assert ("telemetry/off" in found["transformers"]) is not bool(setting)
