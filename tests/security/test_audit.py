"""What the commands connect to, run and write, seen by the interpreter's own audit events."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


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
        "train: {output_dir: run, max_steps: 1, checkpointing: none, save_steps: 1}\n"
        "tracking: {wandb: offline}\n"
    )
    commands = [
        ["tiny", "base", "--layers", "1", "--experts", "2"],
        ["check", "recipe.yaml"],
        ["plan", "recipe.yaml"],
        ["preview", "recipe.yaml", "--n", "1", "--html", "preview.html"],
        ["check-data", "recipe.yaml", "--out", "data.json"],
        ["train", "recipe.yaml"],
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
        # Whatever still reaches for the outside would fail here, and be seen.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "NO_COLOR": "1",
    }
    report = place / "report.json"
    command = [sys.executable, str(HERE / "audited.py"), str(report), json.dumps(commands)]
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert report.exists(), done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["codes"] == [0] * len(commands), (found["codes"], done.stdout, done.stderr[-3000:])
    return place, found["events"]


def of(events, kind):
    return [(command, event, arguments) for command, k, event, arguments in events if k == kind]


def test_the_watch_sees_what_it_is_there_to_see(tmp_path):
    """The control: a command that is told to use the network, and one that writes outside."""
    report = tmp_path / "report.json"
    url = "http://127.0.0.1:9"
    commands = [["schema"], ["verify", "nothing", "--served", url, "--adapter", "someone/else"]]
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HOME": str(tmp_path)}
    subprocess.run(
        [sys.executable, str(HERE / "audited.py"), str(report), json.dumps(commands)],
        env=environment,
        capture_output=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
    )
    found = json.loads(report.read_text())
    assert found["codes"][0] == 0 and found["codes"][1] != 0


def test_no_connection_is_made(seen):
    """Only wandb's own process on this machine is spoken to; torch looks for a free local port."""
    _, events = seen
    strange = []
    for command, event, arguments in of(events, "network"):
        local = isinstance(arguments[0], str) and arguments[0].startswith("/")
        loopback = str(arguments[0]).startswith(("('127.0.0.1'", "('::1'", "127.0.0.1"))
        if not (command == "train" and (local or loopback)):
            strange.append((command, event, arguments))
    assert not strange


def test_programs_that_are_run(seen):
    """git for the commit, wandb's service, and what libraries ask of the machine on import."""
    _, events = seen
    found = {(command, Path(str(a[0])).name) for command, _, a in of(events, "program")}
    strange = {
        (c, p) for c, p in found if not (c == "train" and p in ("git", "uname", "wandb-core"))
    }
    assert not strange, strange


def test_nothing_is_written_outside(seen):
    place, events = seen
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
    place, events = seen
    imported = [a[1] for _, _, a in of(events, "import")]
    assert imported, "the watch saw no import from a file"
    assert not [path for path in imported if str(path).startswith(str(place))]


def test_nothing_is_unpickled(seen):
    """Of what is read: names are looked up by a pickle only where a library copies objects."""
    _, events = seen
    assert {a[0] for _, _, a in of(events, "pickle")} <= {"copyreg", "builtins", "collections"}
