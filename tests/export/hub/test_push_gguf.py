"""A GGUF is verified, then pushed with a card that says how to run it, and nothing else is."""

import pytest
import yaml
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.workflows.finished_run import merge

REPO = "someone/tuned-gguf"
pytestmark = pytest.mark.slow


@pytest.fixture
def gguf(run, tmp_path):
    return merge([run], tmp_path / "tuned", format="gguf-bf16").folder


def push(run, folder, *more):
    words = ["push", str(run), "--repo", REPO, "--merged", str(folder), "--no-logits"]
    return CliRunner().invoke(app, [*words, "--base-name", "openai/gpt-oss-20b", *more])


def test_a_gguf_is_verified_then_pushed(hub, run, gguf):
    result = push(run, gguf)
    assert result.exit_code == 0, (result.output, result.exception)
    files = hub.repos[REPO]["files"]
    (name,) = [name for name in files if name.endswith(".gguf")]
    assert files[name] == (gguf / name).read_bytes()
    assert not [name for name in files if name.endswith((".safetensors", ".jinja"))]
    card = files["README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "gguf" and "gguf" in head["tags"]
    assert head["base_model"] == "openai/gpt-oss-20b"
    assert head["base_model_relation"] == "finetune"
    for command in (f"llama-server -hf {REPO} --jinja", f"ollama run hf.co/{REPO}"):
        assert command in card
    assert f"`{name}`" in card and "from_pretrained" not in card
    assert "## Verified before upload\n\n- " in card and "failed" not in card
    assert "LICENSE" in files and "NOTICE" in files


def test_a_gguf_of_the_base_is_never_uploaded(hub, run, base, tmp_path):
    folder = merge([], tmp_path / "of-base", base=base, format="gguf-bf16").folder
    result = push(run, folder)
    assert isinstance(result.exception, CheckpointError)
    assert hub.repos == {} and {method for method, _ in hub.requests} <= {"GET", "HEAD"}


def test_a_flipped_bit_and_what_no_merge_wrote_are_never_uploaded(hub, run, gguf):
    (gguf / "notes.bin").write_bytes(b"mine")
    result = push(run, gguf)
    assert isinstance(result.exception, CheckpointError)
    assert "'notes.bin', which no merge writes" in str(result.exception)
    (gguf / "notes.bin").unlink()
    (file,) = gguf.glob("*.gguf")
    content = bytearray(file.read_bytes())
    content[-9] ^= 0x10
    file.write_bytes(content)
    assert isinstance(push(run, gguf).exception, CheckpointError)
    assert isinstance(push(run, file).exception, CheckpointError)
    assert hub.repos == {}
