"""Bundles that really start, as far as it goes without a GPU: transformers, the middleware."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from gptoss_tune.export.serve.deployment.only_v1 import OnlyV1


@pytest.mark.slow
def test_the_script_starts_the_installed_transformers(bundles, served, tmp_path, free_tcp_port):
    """``serve.sh`` as it is, on another port: the model answers under the name that is told."""
    files = bundles.write(served, "transformers", tmp_path / "out")
    script = tmp_path / "out/serve.sh"
    script.write_text(files["serve.sh"].replace("--port 8000", f"--port {free_tcp_port}"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [script], env=environment, stdout=out, stderr=out, start_new_session=True
        )
    url = f"http://127.0.0.1:{free_tcp_port}"
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            time.sleep(0.5)
        asked = re.search(r"-d '(.*)'", files["README.md"])[1]
        body = json.dumps({**json.loads(asked), "max_tokens": 2}).encode()
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 2
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)
    assert re.search(r"^transformers \d", log.read_text(), re.MULTILINE)


def test_a_web_framework_takes_the_middleware():
    """FastAPI as vLLM adds it: only the API and the probes are reached."""
    app = FastAPI()
    for path in ("/v1/models", "/health", "/invocations", "/load"):
        app.add_api_route(path, lambda: "reached")
    app.add_middleware(OnlyV1)
    client = TestClient(app)
    told = {path: client.get(path).status_code for path in (r.path for r in app.routes)}
    assert told["/v1/models"] == told["/health"] == 200
    assert told["/invocations"] == told["/load"] == told["/docs"] == 404
    assert client.get("/v1/../invocations").status_code == 404
