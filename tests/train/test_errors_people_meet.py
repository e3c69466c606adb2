"""What goes wrong around a run ends in one message with what to do, and exit code 3 or 2."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptoss_tune.error_hints import cause_of
from gptoss_tune.errors import MachineError
from gptoss_tune.train.distributed.device import refuse_unusable_gpu

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

# One process for all cases: each is the command with other overrides.
CASES = """
import contextlib, io, json, sys
from gptoss_tune.errors import run_command
from gptoss_tune.train import __main__
ended = {}
for name, words in json.loads(sys.argv[1]).items():
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_command(lambda: __main__._train(words), debug=False)
        except SystemExit as error:
            code = error.code
    ended[name] = [code, said.getvalue()]
print("ENDED" + json.dumps(ended))
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does, with the status that a repository's name asks for."""

    def do_GET(self):
        status = next((n for n in (401, 403, 404) if f"/s{n}" in self.path), 404)
        self.send_response(status)
        codes = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}
        if status in codes:
            self.send_header("X-Error-Code", codes[status])
            self.send_header("X-Error-Message", "loopback says no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *arguments):
        pass


def ended(cases, tmp_path, **environment):
    return told(
        subprocess.run(
            [sys.executable, "-c", CASES, json.dumps(cases)],
            env={**ENVIRONMENT, "HF_HOME": str(tmp_path / "hub"), **environment},
            capture_output=True,
            text=True,
            timeout=400,
        )
    )


def told(done):
    lines = [line for line in done.stdout.splitlines() if line.startswith("ENDED")]
    assert lines, done.stderr
    return json.loads(lines[0].removeprefix("ENDED"))


WORDS = {
    "base 401": (3, "hf auth login"),
    "base gated": (3, "accept its licence"),
    "data 401": (3, "check the name"),
    "data gated": (3, "hf auth login"),
    "data moved on the Hub": (3, "check the name"),
    "data moved": (2, "did you mean"),
    "no GPU for triton": (3, "model.backend: "),
    "no GPU for paged": (3, "there is no GPU here"),
}


@pytest.fixture(scope="module")
def answers(base, rows, tmp_path_factory):
    """Return exit code and message of every case that the server or the recipe causes."""
    folder = tmp_path_factory.mktemp("met")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\ndata: {{train: {rows}}}\n"
        f"train: {{output_dir: {folder / 'run'}, max_steps: 1, activation_checkpointing: none}}\n"
    )

    def words(name, *overrides):
        return [str(recipe), f"train.output_dir={folder / name.replace(' ', '-')}", *overrides]

    overrides = {
        "base 401": ["model.name_or_path=x/s401"],
        "base gated": ["model.name_or_path=x/s403"],
        "data 401": ["data.train=x/s401"],
        "data gated": ["data.train=x/s403"],
        "data moved on the Hub": ["data.train=x/s404"],
        "data moved": [f"data.train={rows.with_name('row.jsonl')}"],
        "no GPU for triton": ["model.backend=triton"],
        "no GPU for paged": ["train.optim=paged_adamw_8bit"],
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        cases = {name: words(name, *more) for name, more in overrides.items()}
        url = f"http://127.0.0.1:{server.server_port}"
        # The interpreter of the other tests would be a GPU to the triton backend.
        yield ended(cases, folder, HF_ENDPOINT=url, TRITON_INTERPRET="0")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_one_message_with_what_to_do(answers, name):
    code, said = answers[name]
    expected, words = WORDS[name]
    assert words in said and "Traceback" not in said, said
    assert said.count("error: ") == 1
    assert code == expected


@pytest.mark.slow
def test_hub_offline_and_port_in_use(base, rows, forked_python, tmp_path):
    """A port on which nobody listens, and one that is taken."""
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{name_or_path: {base}, dtype: float32}}\ndata: {{train: {rows}}}\n"
        f"train: {{output_dir: {tmp_path / 'run'}, max_steps: 1}}\n"
    )
    recipe = str(tmp_path / "recipe.yaml")
    with socket.socket() as closed, socket.socket() as taken:
        closed.bind(("127.0.0.1", 0))
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cases = {
            "base": [recipe, "model.name_or_path=x/base"],
            "data": [recipe, "data.train=x/data", f"train.output_dir={tmp_path / 'other'}"],
        }
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        offline = ended(cases, tmp_path, HF_ENDPOINT=url)
        rank = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        rank["MASTER_PORT"] = str(taken.getsockname()[1])
        cases = json.dumps({"port": [recipe]})
        port = told(forked_python(["-c", CASES, cases], **rank))
    for code, said in offline.values():
        assert code == 3 and "Hub" in said and "Traceback" not in said, said
    code, said = port["port"]
    assert code == 3 and rank["MASTER_PORT"] in said and "--main_process_port" in said, said


@pytest.mark.slow
def test_a_mistake_that_all_ranks_see_is_said_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "3"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    command += ["-m", "gptoss_tune.train", str(tmp_path / "absent.yaml")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1 and "no such file" in done.stderr


@pytest.mark.parametrize(
    "error, words",
    [
        (
            RuntimeError("The NVIDIA driver on your system is too old (found version 11040)"),
            "11040",
        ),
        (RuntimeError("Found no NVIDIA driver on your system."), "nvidia-smi"),
        (AssertionError("Torch not compiled with CUDA enabled"), "torch build with CUDA"),
        (RuntimeError("CUDA error: invalid device ordinal"), "--num_processes"),
        (RuntimeError("CUDA error: no kernel image is available for execution"), "get_arch_list"),
        (OSError(errno.EMFILE, "Too many open files", "/a/b"), "/a/b: too many files are open"),
        (RuntimeError("shape mismatch"), None),
        (AssertionError("ours"), None),
    ],
)
def test_causes(error, words):
    told = cause_of(error)
    assert (told is None) if words is None else (words in told)


def test_a_gpu_that_torch_cannot_use_is_no_reason_for_the_cpu(tmp_path, monkeypatch):
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        pytest.skip("needs a torch built for the CPU")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    refuse_unusable_gpu(tmp_path / "absent")
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(MachineError, match="built for the CPU"):
        refuse_unusable_gpu(tmp_path / "nvidiactl")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refuse_unusable_gpu(tmp_path / "nvidiactl")
