"""Secrets that lie about on a machine are in nothing that a run writes, shows or sends."""

import base64
import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location(
    "hub_server_for_canaries", HERE.parent / "export" / "hub" / "hub_server.py"
)
hub_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub_server)

LOCAL_TRACKIO = "local" if importlib.util.find_spec("trackio") else "disabled"  # an extra

COMMANDS = """
import json, pathlib, sys
from gptoss_tune.cli import main
for command in json.loads(sys.argv[1]):
    if command[0] == "endpoint":
        import huggingface_hub
        huggingface_hub.constants.ENDPOINT = command[1]
        continue
    if command[0] == "poison":  # a base whose first step is not finite
        from safetensors.torch import load_file, save_file
        for file in pathlib.Path(command[1]).glob("*.safetensors"):
            tensors = load_file(file)
            for name, tensor in tensors.items():
                if name.endswith("o_proj.weight"):
                    tensor[3, 5] = float("nan")
            save_file(tensors, file, {"format": "pt"})
        continue
    sys.argv = ["gptoss-tune", *command]
    try:
        main()
        print(command[0], "ended with 0")
    except SystemExit as ended:
        print(command[0], "ended with", ended.code or 0)
"""


BAD = ("model.name_or_path=bad", "train.output_dir=stopped", "guard.max_nonfinite_steps=0",
       "tracking.wandb=disabled")  # fmt: skip


def secret(channel):
    """A secret of no known shape, so that no pattern can find it; unlike in every channel."""
    return f"zq{channel}" + base64.b32encode(channel.encode() * 3).decode().rstrip("=").lower()[:24]


CHANNELS = (
    *("hftoken", "hubtoken", "wandbkey", "netrc", "hfcache", "gitremote", "override", "proxy"),
    *("awssecret", "openaikey", "ownsecret", "endpoint", "gitcredentials", "dataurl", "comment"),
)
SECRETS = {channel: secret(channel) for channel in CHANNELS}
# What a push sends as its Authorization header must have the hub's own form.
SECRETS["hftoken"] = hub_server.TOKEN


def forms(text):
    """The spellings in which a secret could be hidden from a search for itself."""
    raw = text.encode()
    yield raw
    yield text.encode("utf-16-le")
    yield raw.hex().encode()
    for offset in range(3):
        # Base64 of a longer text holds one of three spellings, whose ends depend on the rest.
        coded = base64.b64encode(b"\0" * offset + raw)
        yield coded[4 if offset else 0 : -4]


def found_in(data):
    """The channels whose secrets are in ``data``, also where it was compressed."""
    readings = [data]
    for decompress in (zlib.decompress, gzip.decompress):
        try:
            readings.append(decompress(data))
        except (zlib.error, OSError, EOFError):
            continue
    return {
        channel
        for channel, text in SECRETS.items()
        for form in forms(text)
        for reading in readings
        if form in reading
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run on a machine full of secrets; what it showed, and what a hub received."""
    place = tmp_path_factory.mktemp("canaries")
    home, work = place / "home", place / "work"
    (home / "hf").mkdir(parents=True)
    work.mkdir()
    plant(home, work)
    with hub_server.Hub() as hub:
        bodies = record_bodies(hub)
        push = ["push", "run", "--repo", "me/x", "--base-name", "openai/gpt-oss-20b"]
        commands = [
            ["tiny", "base", "--layers", "1", "--experts", "2"],
            ["tiny", "bad", "--layers", "1", "--experts", "2"],
            ["poison", "bad"],
            ["check", "recipe.yaml", f"tracking.api_key={SECRETS['override']}", "--debug"],
            ["check", "recipe.yaml", f"data.train=https://u:{SECRETS['dataurl']}@x.test/d.jsonl"],
            ["check-data", "recipe.yaml", "--out", "data.json"],
            ["launch", "recipe.yaml", "--slurm", "--out", "job.sbatch"],
            ["train", "recipe.yaml"],
            ["train", "recipe.yaml", *BAD, "--debug"],
            ["report", "run"],
            ["merge", "run", "--out", "merged"],
            # To the endpoint with a password, which the client sends instead of the token.
            push,
            ["endpoint", hub.url],
            push,
        ]
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            cwd=work,
            env=environment(home, hub),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        ended = re.findall(r"^([\w-]+) ended with (\d+)", done.stdout, re.MULTILINE)
        assert "".join(code for _, code in ended) == "002200020030", (ended, done)
        assert hub.repos["me/x"]["files"]
        return work, home, done, bodies


def plant(home, work):
    """Leave the secrets that are files, and the recipe with one in a comment."""
    (home / ".netrc").write_text(f"machine huggingface.co login me password {SECRETS['netrc']}\n")
    (home / ".netrc").chmod(0o600)
    (home / "hf" / "token").write_text(SECRETS["hfcache"])
    (home / ".git-credentials").write_text(f"https://u:{SECRETS['gitcredentials']}@github.com\n")
    remote = f"https://u:{SECRETS['gitremote']}@github.com/u/r.git"
    for arguments in (["init", "--quiet"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", *arguments], cwd=work, check=True)
    commit = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet"]
    subprocess.run([*commit, "--allow-empty", "--message", "x"], cwd=work, check=True)
    rows = HERE.parents[1] / "data" / "tiny" / "train.jsonl"
    (work / "recipe.yaml").write_text(
        f"# my key: {SECRETS['comment']}\n"
        "model: {name_or_path: base, dtype: float32}\n"
        "lora: {rank: 2}\n"
        f"data: {{train: {rows}, max_length: 256}}\n"
        "train: {output_dir: run, max_steps: 1, activation_checkpointing: none, save_steps: 1}\n"
        f"tracking: {{wandb: offline, trackio: {LOCAL_TRACKIO}}}\n"
        "evaluation: {prompts: prompts.jsonl, max_new_tokens: 2, eval_steps: 1}\n"
    )
    (work / "prompts.jsonl").write_text(json.dumps({"prompt": "2 + 2?", "answer": "4"}) + "\n")


def environment(home, hub):
    user_and_hub = hub.url.replace("://", f"://u:{SECRETS['endpoint']}@")
    return {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": SECRETS["hftoken"],
        "HUGGING_FACE_HUB_TOKEN": SECRETS["hubtoken"],
        "WANDB_API_KEY": SECRETS["wandbkey"],
        "AWS_SECRET_ACCESS_KEY": SECRETS["awssecret"],
        "OPENAI_API_KEY": SECRETS["openaikey"],
        "MY_OWN_SETTING": SECRETS["ownsecret"],
        "HF_ENDPOINT": user_and_hub,
        "HF_HUB_DISABLE_XET": "1",
        "HTTPS_PROXY": f"http://u:{SECRETS['proxy']}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
    }


def record_bodies(hub):
    """Keep the body of every request that the hub gets."""
    bodies, answer = [], hub.route

    def route(method, path, body):
        bodies.append(f"{method} {path}\n".encode() + body)
        return answer(method, path, body)

    hub.route = route
    return bodies


def test_the_search_finds_what_is_there():
    """The control: each channel, plain, in base64, in hex, compressed."""
    for channel, text in SECRETS.items():
        for offset in range(3):
            around = b"x" * offset + text.encode() + b"yy"
            for data in (around, base64.b64encode(around), around.hex().encode()):
                assert channel in found_in(data), (channel, data)
                assert channel in found_in(zlib.compress(data))
                assert channel in found_in(gzip.compress(data))
    assert found_in(b"nothing of the kind") == set()


def test_no_secret_is_in_any_file_that_was_written(run):
    """recipe.yaml is the user's own, and .git; all else came from the tool and its libraries."""
    work, home, _, _ = run
    own = {work / "recipe.yaml", home / ".netrc", home / "hf" / "token", home / ".git-credentials"}
    searched = 0
    for root in (work, home):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and path not in own:
                if ".git" in path.relative_to(root).parts:
                    continue
                searched += 1
                assert not found_in(path.read_bytes()), path
    assert searched > 50
    places = [
        *("run/run.json", "run/report.html", "run/metrics.jsonl", "run/layers.jsonl", "data.json"),
        *("run/evaluation/step-0.json", "run/evaluation/step-1.json", "job.sbatch", "run/adapter"),
        *("stopped/nonfinite/step-1-rank-0.json", "stopped/report.html", "run/checkpoint-1"),
    ]
    if LOCAL_TRACKIO == "local":
        places.append("run/trackio/gptoss-tune.db")
    assert not [name for name in places if not (work / name).exists()]
    assert list((work / "run" / "wandb").rglob("*.wandb")), "wandb recorded the run"
    record = json.loads((work / "run" / "run.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{40}(-\w+)?", record["environment"]["git_commit"])


def test_no_secret_is_shown(run):
    _, _, done, _ = run
    assert "ended with" in done.stdout and "tracking.api_key" in done.stderr
    assert done.stderr.count("Traceback") == 2, "both errors under --debug show one"
    assert not found_in(done.stdout.encode()) and not found_in(done.stderr.encode())


def test_no_secret_is_sent_but_in_the_header_for_it(run):
    _, _, _, bodies = run
    assert len(bodies) > 4
    assert not [body[:200] for body in bodies if found_in(body)]
