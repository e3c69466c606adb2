"""verify --served against servers on loopback: transformers' own, and one that tells logprobs."""

import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.export.verify.layerwise import LayerwiseModel
from gptoss_tune.export.verify.server import SERVED_PROMPTS, verify_served
from gptoss_tune.weights import open_checkpoint


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory, lab):
    """A change large enough that the first choices differ from the base's."""
    folder = tmp_path_factory.mktemp("served")
    adapter = lab.adapter(base, folder / "adapter", scale=0.3)
    lab.merge(base, adapter, folder / "merged")
    return folder


@functools.cache
def first_choices(path):
    """The likeliest next token of every prompt with its log-probability, in bf16 as a server's."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    prompts = [tokenizer.encode(p, add_special_tokens=False).ids for p in SERVED_PROMPTS]
    rows = LayerwiseModel(open_checkpoint(path), dtype=torch.bfloat16).last_logits(prompts)
    values, tokens = rows.log_softmax(-1).max(-1)
    texts = [tokenizer.decode([t], skip_special_tokens=False) for t in tokens.tolist()]
    return dict(zip(SERVED_PROMPTS, zip(texts, values.tolist(), strict=True), strict=True))


class Completions:
    """The completions API over one checkpoint's own logits."""

    def __init__(self, checkpoint, *, logprobs=True, offset=0.0):
        answers = first_choices(checkpoint.path)

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if wanted.get("logprobs") and not logprobs:
                    self.send_response(422)
                    self.end_headers()
                    return
                text, value = answers[wanted["prompt"]]
                choice = {"text": text}
                if logprobs:
                    choice["logprobs"] = {"token_logprobs": [value + offset]}
                data = json.dumps({"choices": [choice]}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("logprobs", [True, False])
def test_the_right_model_is_green_and_the_base_red(base, tuned, lab, logprobs):
    merged, _ = lab.open(tuned / "merged")
    bare, _ = lab.open(base)
    with Completions(merged, logprobs=logprobs) as server:
        right = verify_served(server.url, "m", merged, bare)
    assert right.passed is True, right
    assert ("distance" in right.figures) == logprobs
    with Completions(bare, logprobs=logprobs) as server:
        wrong = verify_served(server.url, "m", merged, bare)
    assert wrong.passed is False, wrong
    assert wrong.figures["gap"] > 10 * right.figures["gap"] + 0.1


def test_other_log_probabilities_are_red(base, tuned, lab):
    merged, _ = lab.open(tuned / "merged")
    bare, _ = lab.open(base)
    with Completions(merged, offset=-0.5) as server:
        check = verify_served(server.url, "m", merged, bare)
    assert check.passed is False and check.figures["distance"] > 0.4


def test_a_model_like_its_base_cannot_be_told_apart(base, lab):
    bare, _ = lab.open(base)
    with Completions(bare) as server:
        check = verify_served(server.url, "m", bare, bare)
    assert check.passed is None and "cannot tell" in check.detail


def test_no_server(base, lab):
    bare, _ = lab.open(base)
    with pytest.raises(MachineError, match="gave no completion for model 'm'"):
        verify_served("http://127.0.0.1:9", "m", bare, bare)


def test_command(base, tuned, lab):
    bare, _ = lab.open(base)
    arguments = ["verify", str(tuned / "merged"), "--adapter", str(tuned / "adapter")]
    arguments += ["--base", str(base), "--no-logits"]
    with Completions(bare) as server:
        result = CliRunner().invoke(app, [*arguments, "--served", server.url])
    assert isinstance(result.exception, CheckpointError) and "served" in str(result.exception)


@pytest.mark.slow
def test_transformers_serve(base, tuned, lab):
    for module in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(module, reason="transformers serve needs it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    merged, _ = lab.open(tuned / "merged")
    bare, _ = lab.open(base)
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", str(merged.path), "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--device", "cpu"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        check = verify_served(url, str(merged.path), merged, bare)
        assert check.passed is True, check
    finally:
        process.terminate()
        process.wait(timeout=30)
