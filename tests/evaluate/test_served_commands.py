"""The commands of lm-eval and inspect-ai are run, against a server whose right answers are known.

Neither can be installed beside this package's own libraries (inspect-ai's s3fs holds fsspec at one
release), so they are looked for in an environment of their own::

    python -m venv .venv-benchmarks
    .venv-benchmarks/bin/pip install "lm-eval[api]" inspect-ai openai
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptoss_tune.evaluate.inspect_ai import served_inspect_command
from gptoss_tune.evaluate.lm_eval import served_lm_eval_command

ROOT = Path(__file__).resolve().parents[2]
BESIDE = os.environ.get("GPTOSS_TUNE_BENCHMARKS", ROOT / ".venv-benchmarks" / "bin")
# What is asked, what is right, what the server answers, and what it thinks.
ROWS = [
    ("What is 2 + 2?", "4", "4", "Add them: 5?"),
    ("What is 3 * 5?", "15", "15", "Q: three times five"),
    ("What is 10 - 7?", "3", "4", "It is 3."),  # right in the thought alone
    ("What is 9 / 3?", "3", "3", "Nine thirds."),
    ("What is 8 + 8?", "16", "Sixteen", "16"),  # likewise
]
PLANTED = 3 / 5


@pytest.fixture
def server():
    """A server that answers from a table, thoughts apart; yields its address and what it got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def send(self, status, body):
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            there = self.path == "/v1/models"
            self.send(200 if there else 404, {"object": "list", "data": [{"id": "tuned"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((self.path, body))
            if self.path != "/v1/chat/completions":
                self.send(404, {"error": {"message": "not here"}})
                return
            asked = json.dumps(body["messages"][-1])
            answer, thought = next((row[2], row[3]) for row in ROWS if row[0] in asked)
            message = {"role": "assistant", "content": answer, "reasoning_content": thought}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            about = {"id": "1", "object": "chat.completion", "created": 1, "model": "tuned"}
            self.send(200, {**about, "choices": [choice], "usage": usage})

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}/v1", got
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def folder(tmp_path):
    rows = [json.dumps({"question": row[0], "answer": row[1]}) for row in ROWS]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def run(command, folder):
    """Run a printed command as a shell does, with the programs of the benchmarks' environment."""
    path = f"{BESIDE}{os.pathsep}{os.environ['PATH']}"
    program = next(w for w in shlex.split(command) if not re.match(r"[A-Z_]+=", w))
    if shutil.which(program, path=path) is None:
        pytest.skip(f"{program} is not installed in {BESIDE}, see the top of this file")
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=kept | offline | {"PATH": path, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_lm_eval_scores_what_the_server_answers(server, folder):
    url, got = server
    (folder / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs: {data_files: {test: sums.jsonl}}\n"
        "test_split: test\noutput_type: generate_until\n"
        'doc_to_text: "{{question}} Answer with the number alone."\ndoc_to_target: "{{answer}}"\n'
        'generation_kwargs: {until: ["Q:"]}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    command = served_lm_eval_command(url, "tuned", tasks=["sums"], include=".", out="results")
    run(command, folder)
    (path,) = (folder / "results").rglob("results_*.json")
    assert json.loads(path.read_text())["results"]["sums"]["exact_match,none"] == PLANTED
    assert len(got) == len(ROWS) and {place for place, _ in got} == {"/v1/chat/completions"}
    for _, body in got:
        # Messages, no text to go on with; and no stop text of the task, which a thought may hold.
        assert [m["role"] for m in body["messages"]] == ["user"] and body["model"] == "tuned"
        assert body["stop"] == ["<|return|>"] and body["max_tokens"] == 4096


@pytest.mark.slow
def test_inspect_scores_what_the_server_answers(server, folder):
    url, got = server
    (folder / "sums.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import FieldSpec, json_dataset\n"
        "from inspect_ai.scorer import match\n"
        "from inspect_ai.solver import generate\n\n\n"
        "@task\ndef sums():\n"
        "    fields = FieldSpec(input='question', target='answer')\n"
        "    rows = json_dataset('sums.jsonl', fields)\n"
        "    return Task(dataset=rows, solver=[generate()], scorer=match())\n"
    )
    command = served_inspect_command(url, "tuned", task="sums.py", logs="logs")
    run(f"INSPECT_LOG_FORMAT=json INSPECT_DISPLAY=plain {command}", folder)
    (path,) = (folder / "logs").glob("*.json")
    log = json.loads(path.read_text())
    assert log["status"] == "success"
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == PLANTED
    assert {place for place, _ in got} == {"/v1/chat/completions"}
    assert all(body["max_tokens"] == 4096 for _, body in got)
    # The thoughts are kept apart from what is scored.
    assert all(
        sample["output"]["completion"] == row[2]
        for sample, row in zip(log["samples"], ROWS, strict=True)
    )


def test_the_commands_name_a_chat_api():
    lm_eval = shlex.split(served_lm_eval_command("http://host:1/v1/", "my model"))
    assert "--model=local-chat-completions" in lm_eval and "--apply_chat_template" in lm_eval
    assert any("base_url=http://host:1/v1/chat/completions,model=my model," in w for w in lm_eval)
    inspect = shlex.split(served_inspect_command("http://host:1/v1/", "my model"))
    assert inspect[:4] == ["LOCAL_API_KEY=none", "inspect", "eval", "inspect_evals/gsm8k"]
    assert "--model=openai-api/local/my model" in inspect
    assert "--model-base-url=http://host:1/v1" in inspect
