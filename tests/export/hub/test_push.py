"""push against a hub on loopback, through the real client of huggingface_hub."""

import json
import logging
import traceback

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, HubError
from gptoss_tune.export.hub.answers import without_tokens
from gptoss_tune.export.hub.files import collect
from gptoss_tune.export.hub.push import push
from gptoss_tune.run.checkpoints import publish

REPO = "me/tuned"


def test_a_run_is_pushed_private_with_its_card(hub, run, base, TOKEN):
    arguments = ["push", str(run), "--repo", REPO, "--base-name", "openai/gpt-oss-20b"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    repo = hub.repos[REPO]
    assert repo["private"] is True and len(repo["commits"]) == 1
    files = repo["files"]
    expected = {
        *("README.md", "LICENSE", "NOTICE", "adapter_config.json", "adapter_model.safetensors"),
        *("loss.svg", "recipe.yaml", "run_card.json"),
    }
    assert set(files) == expected
    assert (
        files["adapter_model.safetensors"]
        == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    )
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "openai/gpt-oss-20b"
    card = files["README.md"].decode()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "base_model": "openai/gpt-oss-20b",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["gpt-oss", "gptoss-tune", "lora"],
        "datasets": ["someone/dataset"],
        "model-index": [
            {
                "name": REPO.partition("/")[2],
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": "held-out rows of the run", "type": "private"},
                        "metrics": [
                            {"type": "loss", "value": 0.5, "name": "loss on held-out rows"}
                        ],
                    }
                ],
            }
        ],
    }
    for words in (
        "PeftModel",
        "vllm",
        "0.25",
        "torch 2.13.0",
        "chat.jsonl",
        "loss.svg",
        "24 factors",
    ):
        assert words in text, words
    everything = b"".join(files.values())
    assert b"/home/someone" not in everything and str(base).encode() not in everything
    assert TOKEN.encode() not in everything and TOKEN not in result.output
    assert yaml.safe_load(files["recipe.yaml"])["model"]["name_or_path"] == "openai/gpt-oss-20b"
    assert files["loss.svg"].startswith(b"<svg")


def test_the_uploaded_adapter_works_on_the_base(hub, run, base, tmp_path, lab):
    checkpoint, adapters = lab.open(base, run)
    files = collect(adapters[0].adapter, checkpoint, REPO, base_name="openai/gpt-oss-20b")
    push(files, REPO, message="m")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in hub.repos[REPO]["files"].items():
        (copy / name).write_bytes(content)
    lab.open(base, copy)
    assert load_file(copy / "adapter_model.safetensors")


def test_a_merged_folder_is_verified_then_pushed(hub, run, base, merged, tmp_path, lab):
    arguments = ["push", str(run), "--repo", REPO, "--merged", str(merged), "--public"]
    arguments += ["--base-name", "openai/gpt-oss-20b", "--no-logits"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    repo = hub.repos[REPO]
    assert repo["private"] is False
    assert repo["files"]["model.safetensors"] == (merged / "model.safetensors").read_bytes()
    card = repo["files"]["README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model_relation"] == "finetune" and head["library_name"] == "transformers"
    assert "- changes: passed" in card


def test_a_merged_folder_that_is_the_base_is_never_uploaded(hub, run, dense_base):
    arguments = ["push", str(run), "--repo", REPO, "--merged", str(dense_base)]
    arguments += ["--base-name", "openai/gpt-oss-20b", "--no-logits"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, CheckpointError)
    assert "does not hold what was trained" in str(result.exception)
    assert hub.repos == {} and {method for method, _ in hub.requests} <= {"GET", "HEAD"}


def test_a_flipped_bit_in_an_adapter_is_never_uploaded(hub, run):
    (run / "adapter" / "README.md").unlink()
    publish(run / "adapter", run / "hashed", run_id="x", step=1)
    (run / "hashed").rename(run / "adapter")
    weights = run / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 0x10
    weights.write_bytes(content)
    arguments = ["push", str(run), "--repo", REPO, "--base-name", "openai/gpt-oss-20b"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, CheckpointError), result.exception
    assert "adapter_model.safetensors is not the file that was written" in str(result.exception)
    assert hub.repos == {}


def test_a_base_without_a_public_name_is_asked_for(hub, run):
    result = CliRunner().invoke(app, ["push", str(run), "--repo", REPO])
    assert isinstance(result.exception, CheckpointError) and "--base-name" in str(result.exception)


def test_pushing_again_sends_nothing_twice(hub, some_files):
    files = dict(some_files)
    first = push(files, REPO, message="one")
    again = push(files, REPO, message="two")
    assert hub.count("PUT", "/storage/") == 1
    assert hub.repos[REPO]["commits"] == ["one"] and again.commit == first.commit
    push({**files, "run_card.json": b"{}"}, REPO, message="three")
    assert hub.count("PUT", "/storage/") == 1
    assert hub.repos[REPO]["files"]["run_card.json"] == b"{}"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["/api/repos/create", "/storage/", "/commit/", "/preupload/"])
@pytest.mark.parametrize(
    "fault",
    [(429, {"Retry-After": "7"}), (503, {}), (500, {}), "cut"],
    ids=["429", "503", "500", "cut"],
)
def test_what_passes_is_waited_out(hub, some_files, no_client_waits, part, fault):
    hub.plant(part, fault, fault)
    waited = []
    push(some_files, REPO, message="m", wait=waited.append)
    assert hub.repos[REPO]["files"]["adapter_model.safetensors"] == b"w" * 10_000
    assert len(hub.repos[REPO]["commits"]) == 1
    if part in ("/api/repos/create", "/commit/"):  # where the client itself does not retry
        assert len(waited) == 2
        if fault != "cut" and fault[0] == 429:
            assert waited == [7.0, 7.0]


def test_a_push_cut_off_in_the_middle_resumes(hub, some_files, no_client_waits):
    files = dict(some_files)
    hub.plant("/commit/", *[(503, {})] * 5)
    with pytest.raises(HubError, match="in each of 5 tries") as caught:
        push(files, REPO, message="m", wait=lambda seconds: None)
    assert caught.value.exit_code == 3
    assert hub.repos[REPO]["files"] == {}
    push(files, REPO, message="m")
    assert hub.count("PUT", "/storage/") == 1
    assert set(hub.repos[REPO]["files"]) == set(files)


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("/api/repos/create", 401, "hf auth login"),
        ("/api/repos/create", 403, "may not write there"),
        ("/commit/", 403, "may not write there"),
        ("/preupload/", 404, "check --repo"),
        ("/commit/", 409, "changed meanwhile"),
        ("/commit/", 413, "smaller --max-shard-size"),
    ],
)
def test_what_does_not_pass_stops_at_once(hub, some_files, part, status, message):
    hub.plant(part, *[(status, {})] * 10)
    if part == "/api/repos/create" and status == 403:
        hub.plant(f"/api/models/{REPO}", *[(404, {})] * 10)
    waited = []
    with pytest.raises(HubError, match=message) as caught:
        push(some_files, REPO, message="m", wait=waited.append)
    assert waited == [] and f"HTTP {status}" in str(caught.value)


def test_a_hub_that_is_not_there(monkeypatch, no_client_waits, TOKEN, some_files):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    waited = []
    with pytest.raises(HubError, match="check the connection") as caught:
        push(
            some_files,
            REPO,
            message="m",
            endpoint="http://127.0.0.1:9",
            wait=waited.append,
        )
    assert waited == [1.0, 2.0, 4.0, 8.0]
    assert caught.value.__cause__ is None


def test_an_existing_public_repository_needs_the_word(hub, some_files):
    hub.repos[REPO] = {"private": False, "files": {}, "commits": []}
    with pytest.raises(HubError, match="exists and is public; say --public"):
        push(some_files, REPO, message="m")
    assert hub.repos[REPO]["files"] == {}
    push(some_files, REPO, message="m", public=True)
    assert hub.repos[REPO]["files"]


def test_tokens_stay_out_of_files_messages_and_logs(hub, some_files, caplog, capfd, TOKEN):
    caplog.set_level(logging.INFO)
    with pytest.raises(
        CheckpointError, match=r"run\.json: holds something that looks like"
    ) as caught:
        push({"run.json": json.dumps({"key": TOKEN}).encode()}, REPO, message="m")
    assert TOKEN not in str(caught.value) and hub.requests == []
    assert without_tokens(f"bad {TOKEN}!") == "bad [hidden]!"
    hub.plant("/commit/", *[(403, {"X-Error-Message": f"token {TOKEN} is not allowed"})] * 3)
    with pytest.raises(HubError) as refused:
        push(some_files, REPO, message="m")
    assert f"Bearer {TOKEN}" in hub.seen_tokens, "the token was in play"
    shown = "".join(traceback.format_exception(refused.value))
    output = capfd.readouterr()
    for text in (shown, caplog.text, output.out, output.err):
        assert TOKEN not in text
