"""What the commands connect to, run and write, seen by the interpreter's own audit events."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@contextlib.contextmanager
def proxy():
    """A proxy that answers nobody and counts who came, other processes' programs too."""
    callers = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            try:
                caller, address = server.accept()
            except OSError:
                return
            callers.append(address)
            caller.close()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", callers
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Run the whole way from base to serving bundle under the audit hook."""
    place = tmp_path_factory.mktemp("audit")
    home, work, tmp = place / "home", place / "work", place / "tmp"
    for folder in (home, work, tmp):
        folder.mkdir()
    recipe = work / "recipe.yaml"
    recipe.write_text(
        "model: {name_or_path: base, dtype: float32}\n"
        "lora: {rank: 2}\n"
        f"data: {{train: {ROOT / 'data' / 'tiny' / 'train.jsonl'}, max_length: 256}}\n"
        "train: {output_dir: run, max_steps: 1, activation_checkpointing: none, save_steps: 1}\n"
        "tracking: {wandb: offline}\n"
    )
    commands = [
        ["tiny", "base", "--layers", "1", "--experts", "2"],
        ["check", "recipe.yaml"],
        ["plan", "recipe.yaml"],
        ["preview", "recipe.yaml", "--n", "1", "--html", "preview.html"],
        ["check-data", "recipe.yaml", "--out", "data.json"],
        ["train", "recipe.yaml"],
        ["report", "run"],
        ["merge", "run", "--out", "merged"],
        ["verify", "merged", "--adapter", "run", "--no-logits"],
        ["adapter", "run", "--for", "vllm", "--out", "served"],
        ["serve-config", "merged", "--target", "vllm", "--out", "bundle"],
        ["chat", "merged", "--prompt", "hello", "--max-new-tokens", "2"],
    ]
    environment = {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        "HOME": str(home),
        "TMPDIR": str(tmp),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
    }
    report = place / "report.json"
    command = [sys.executable, str(HERE / "audited.py"), str(report), json.dumps(commands)]
    with proxy() as (url, callers):
        # What reaches for the outside comes here, wandb's own process included.
        environment |= {"HTTPS_PROXY": url, "HTTP_PROXY": url, "ALL_PROXY": url}
        done = subprocess.run(
            command,
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert report.exists(), done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["codes"] == [0] * len(commands), (found["codes"], done.stdout, done.stderr[-3000:])
    return place, found["events"], callers


def of(events, kind):
    return [(command, event, arguments) for command, k, event, arguments in events if k == kind]


def test_the_watch_sees_what_it_is_there_to_see(tmp_path):
    """The control: a base on the Hub is asked for, and both watches see it."""
    report = tmp_path / "report.json"
    commands = [["merge", "someone/adapter", "--base", "someone/base", "--out", "out"]]
    with proxy() as (url, callers):
        environment = {
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
            "HF_ENDPOINT": "http://hub.invalid",
            "HTTP_PROXY": url,
            "HOME": str(tmp_path),
        }
        command = [sys.executable, str(HERE / "audited.py"), str(report), json.dumps(commands)]
        subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, timeout=600, check=False
        )
        assert callers
    found = json.loads(report.read_text())
    assert found["codes"] == [3] and of(found["events"], "network")


def test_no_connection_is_made(seen):
    """Only wandb's own process on this machine is spoken to; torch looks for a free local port."""
    _, events, _ = seen
    strange = []
    for command, event, arguments in of(events, "network"):
        local = isinstance(arguments[0], str) and arguments[0].startswith("/")
        loopback = str(arguments[0]).startswith(("('127.0.0.1'", "('::1'", "127.0.0.1"))
        if not (command == "train" and (local or loopback)):
            strange.append((command, event, arguments))
    assert not strange


def test_nobody_reaches_a_proxy(seen):
    assert not seen[2]


def test_programs_that_are_run(seen):
    """git for the commit, wandb's service, and what libraries ask of the machine on import."""
    _, events, _ = seen
    found = {(command, Path(str(a[0])).name) for command, _, a in of(events, "program")}
    strange = {
        (c, p) for c, p in found if not (c == "train" and p in ("git", "uname", "wandb-core"))
    }
    assert not strange, strange


def test_nothing_is_written_outside(seen):
    place, events, _ = seen
    allowed = tuple(str(place / name) for name in ("work", "tmp", "home/.cache"))
    strange = set()
    for command, event, arguments in of(events, "write"):
        # Of a copy the second path is written, of a renaming both, of the rest the first.
        named = {"os.rename": arguments[:2], "shutil.copyfile": arguments[1:2]}
        for path in named.get(event, arguments[:1]):
            full = os.path.normpath(os.path.join(place / "work", str(path)))
            if not full.startswith((*allowed, "/dev/")) and isinstance(path, str):
                strange.add((command, event, path))
    assert not strange
    assert {p.name for p in (place / "work").iterdir()} == {
        *("recipe.yaml", "base", "preview.html", "data.json", "run", "merged", "served", "bundle")
    }


def test_no_code_comes_from_the_folders_that_are_read(seen):
    place, events, _ = seen
    imported = [a[1] for _, _, a in of(events, "import")]
    assert imported, "the watch saw no import from a file"
    assert not [path for path in imported if str(path).startswith(str(place))]


def test_nothing_is_unpickled(seen):
    """Of what is read: names are looked up by a pickle only where a library copies objects."""
    _, events, _ = seen
    assert {a[0] for _, _, a in of(events, "pickle")} <= {"copyreg", "builtins", "collections"}
