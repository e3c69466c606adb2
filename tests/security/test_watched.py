"""The demo, two ranks and a Hub of one's own: every process of them watched, C++ and Rust too."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
spec = importlib.util.spec_from_file_location(
    "hub_server_for_the_watch", HERE.parent / "export" / "hub" / "hub_server.py"
)
hub_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub_server)

ROW = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
Seen = namedtuple("Seen", "place events native")


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    """The library that tells native connections; without a compiler only Python is watched."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = tmp_path_factory.mktemp("preload") / "connect.so"
    source = HERE / "watched" / "connect.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def watched(preload, tmp_path_factory):
    """Return a function that runs commands with every process of theirs watched."""

    def run(name, *commands, **setting):
        place = tmp_path_factory.mktemp(name)
        for folder in ("work", "home", "tmp", "seen"):
            (place / folder).mkdir()
        prepare = setting.pop("prepare", None)
        if prepare:
            prepare(place / "work")
        paths = [str(HERE / "watched"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(paths),
            "WATCHED": str(place / "seen"),
            "HOME": str(place / "home"),
            "TMPDIR": str(place / "tmp"),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
            **({"LD_PRELOAD": str(preload)} if preload else {}),
            **setting,
        }
        for command in commands:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=place / "work",
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
        files = list((place / "seen").glob("*.jsonl"))
        events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        native = {
            tuple(line.split())
            for file in (place / "seen").glob("*.native")
            for line in file.read_text().splitlines()
        }
        return Seen(place, events, native)

    return run


def strangers(seen, *, port=None):
    """``(how, host, port)`` of what was reached or asked for, but this machine, and that port."""
    asked = {("native", host.removeprefix("::ffff:"), number) for host, number in seen.native}
    for _, kind, event, arguments in seen.events:
        if kind != "network":
            continue
        if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
            host, number = arguments[0] or "", (*arguments, 0)[1] or 0
            if host in (socket.gethostname(), socket.getfqdn()):
                continue  # a launcher asks what this machine is called
        else:
            # The other events tell an address as the text of a tuple, or a path.
            host, _, number = str(arguments[0]).strip("()").partition(", ")
            number = 0 if event == "socket.bind" else number.partition(",")[0]
        asked.add((event, host.strip("'"), str(number)))
    loopback = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "")
    return {
        (event, host, number)
        for event, host, number in asked
        if not host.startswith(("/", "unix"))
        and (host not in loopback or (port and number not in ("0", "", port)))
    }


@pytest.mark.slow
def test_the_watch_sees_python_and_native_code(watched, preload):
    """The control: an address that nobody answers, asked by Python and by the C library."""
    python = "import socket; socket.socket().connect_ex(('127.9.9.9', 9))"
    torch = (
        "from torch.distributed import DistError, TCPStore; from datetime import timedelta\n"
        "try:\n    TCPStore('127.8.8.8', 9, 2, False, timedelta(seconds=1))\n"
        "except DistError:\n    pass\n"
    )
    code = f"{python}\n{torch}"
    seen = watched(
        "control", ["-m", "control"], prepare=lambda p: (p / "control.py").write_text(code)
    )
    found = {host for _, host, _ in strangers(seen)}
    assert found == ({"127.9.9.9", "127.8.8.8"} if preload else {"127.9.9.9"})


@pytest.mark.slow
def test_the_demo_connects_to_nothing_and_stays_in_its_folders(watched):
    """Its own way, launcher and merge included, with one row, which it learns in six steps."""
    changes = ["train.max_steps=6", "data.train=row.jsonl"]
    seen = watched(
        "demo",
        ["-m", "gptoss_tune", "demo", "--folder", "demo", *changes],
        prepare=lambda place: (place / "row.jsonl").write_text(json.dumps(ROW)),
    )
    assert (seen.place / "work" / "demo" / "merged" / "config.json").exists()
    ran = " ".join(sorted({process for process, _, _, _ in seen.events}))
    for part in ("launch", "gptoss_tune/train/__main__.py", "merge"):
        assert part in ran, f"{part} was not watched: {ran}"
    assert not strangers(seen)
    assert not outside(seen)


def outside(seen):
    allowed = [str(seen.place / name) for name in ("work", "tmp", "home/.cache")]
    found = set()
    for process, kind, event, arguments in seen.events:
        if kind != "write":
            continue
        named = {"os.rename": arguments[:2], "shutil.copyfile": arguments[1:2]}
        for path in named.get(event, arguments[:1]):
            full = os.path.normpath(os.path.join(seen.place / "work", str(path)))
            if isinstance(path, str) and not full.startswith((*allowed, "/dev/")):
                found.add((process, event, path))
    return found


RECIPE = """
model: {{name_or_path: {base}, dtype: float32}}
lora: {{rank: 2}}
data: {{train: rows.jsonl, max_length: 128}}
train: {{output_dir: run, max_steps: 1, activation_checkpointing: none, save_steps: 1,
         per_device_train_batch_size: 1}}
"""


def prepared(base):
    def prepare(place):
        (place / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 2)
        (place / "recipe.yaml").write_text(RECIPE.format(base=base))

    return prepare


@pytest.mark.slow
def test_two_ranks_speak_to_each_other_and_to_nobody_else(watched, preload, original):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", *address]
    command = [*launcher, "-m", "gptoss_tune.train", "recipe.yaml"]
    seen = watched("ranks", command, prepare=prepared(original))
    assert json.loads((seen.place / "work/run/run.json").read_text())["environment"][
        "processes"
    ] == 2  # fmt: skip
    if preload:
        assert ("127.0.0.1", str(port)) in {(h.removeprefix("::ffff:"), n) for h, n in seen.native}
    assert not strangers(seen)
    assert not outside(seen)


@pytest.mark.slow
def test_names_on_the_hub_are_asked_of_that_host_and_of_no_other(watched, original):
    """A base by name for a chat and a training, and a push: each the Hub of HF_ENDPOINT."""
    commands = [
        ["chat", "me/base", "--prompt", "hello", "--max-new-tokens", "1"],
        ["train", "recipe.yaml"],
        ["push", "run", "--repo", "me/x"],
    ]
    with hub_server.Hub() as hub:
        content = {path.name: path.read_bytes() for path in original.iterdir()}
        hub.repos["me/base"] = {"private": False, "files": content, "commits": ["first"]}
        port = str(hub.server.server_port)
        seen = watched(
            "hub",
            [str(HERE / "audited.py"), "report.json", json.dumps(commands)],
            prepare=prepared("me/base"),
            HF_ENDPOINT=hub.url,
            HF_TOKEN=hub_server.TOKEN,
            HF_HUB_DISABLE_XET="1",
        )
        report = json.loads((seen.place / "work" / "report.json").read_text())
        assert report["codes"] == [0, 0, 0]
        assert hub.repos["me/x"]["files"]
        assert hub.count("GET", "/me/base/resolve/") >= len(content) - 1
        asked = {path for _, path in hub.requests}
    assert not [path for path in asked if "telemetry" in path or "agent" in path]
    assert hub.agents and not [agent for agent in hub.agents if "torch/" in agent]
    assert not strangers(seen, port=port)
