"""gptoss-tune init: what it writes fits and loads, and what it cannot do it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_tune.cli.recipe import init as command
from gptoss_tune.plan.gpus import DetectedGpu, card
from gptoss_tune.plan.plan import plan
from gptoss_tune.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[3]
RTX4090 = DetectedGpu("NVIDIA GeForce RTX 4090", 23.99, card("rtx4090-24gb"))


@pytest.mark.parametrize(
    ("shape", "model", "gpu", "count"),
    [
        ("chat", "20b", "rtx4080-16gb", 1),
        ("thinking", "20b", "rtx4090-24gb", 1),
        ("tools", "120b", "h100-80gb", 1),
        ("pairs", "20b", "rtx4080-16gb", 1),
        ("labels", "120b", "rtx4090-24gb", 8),
        ("text", "20b", "rtx4080-16gb", 1),
        ("alpaca", "20b", "rtx4090-24gb", 1),
        ("odd", "20b", "h200-141gb", 2),
    ],
)
def test_what_is_written_loads_and_fits(write, init, shape, model, gpu, count):
    path = write(shape, 400)
    arguments = ["--data", path, "--model", model, "--gpu", gpu, "--gpus", str(count), "--yes"]
    result = init(*arguments)
    assert result.exit_code == 0, result.output
    recipe = load_recipe(f"{shape}.yaml")
    assert plan(recipe, card(gpu)).fits
    assert recipe.distributed.num_processes == count
    assert recipe.method.name == {"pairs": "dpo", "labels": "kto"}.get(shape, "sft")
    assert recipe.data.eval_fraction == 0.1
    assert recipe.train.output_dir == f"runs/{shape}"
    said = result.output.splitlines()
    assert [line.split("  # ")[0].strip() for line in said[-3:]] == [
        f"gptoss-tune preview {shape}.yaml",
        f"gptoss-tune train {shape}.yaml",
        f"gptoss-tune chat runs/{shape}",
    ]
    # Only what differs from the defaults, so that it can be read.
    assert len(Path(f"{shape}.yaml").read_text().splitlines()) < 32


def test_the_next_command_reads_the_data(write, init, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write("odd")
    assert init("--data", "odd.jsonl", "--gpu", "4090", "-y").exit_code == 0
    from typer.testing import CliRunner

    from gptoss_tune.cli import app

    checked = CliRunner().invoke(app, ["check-data", "odd.yaml", "--json"])
    assert checked.exit_code == 0
    splits = json.loads(checked.stdout)["splits"]
    assert sum(split["samples"] for split in splits.values()) == 40


def test_the_same_answers_give_the_same_recipe(write, init, tmp_path):
    write("chat", 1500)
    arguments = ["--data", "chat.jsonl", "--gpu", "4090", "-y", "--out"]
    for name in ("one.yaml", "two.yaml"):
        assert init(*arguments, name).exit_code == 0
    assert (tmp_path / "one.yaml").read_text() == (tmp_path / "two.yaml").read_text()


def test_thoughtless_rows_are_trained_at_low_effort(write, init):
    write("chat")
    assert init("--data", "chat.jsonl", "--gpu", "4090", "-y").exit_code == 0
    assert load_recipe("chat.yaml").data.reasoning_effort == "low"
    write("thinking")
    assert init("--data", "thinking.jsonl", "--gpu", "4090", "-y").exit_code == 0
    assert load_recipe("thinking.yaml").data.reasoning_effort == "medium"


def test_thoughts_in_the_text_are_split_off(write, init):
    write("tagged")
    assert init("--data", "tagged.jsonl", "--gpu", "4090", "-y").exit_code == 0
    data = load_recipe("tagged.yaml").data
    assert (data.thinking_tags, data.reasoning_effort) == ("split", "medium")


def test_the_page_shows_what_is_written(init, tmp_path):
    data = "data/conversations/tools.jsonl"
    (tmp_path / data).parent.mkdir(parents=True)
    (tmp_path / data).write_bytes((ROOT / data).read_bytes())
    assert init("--data", data, "--gpu", "4090", "-y").exit_code == 0
    page = (ROOT / "docs" / "first-recipe.md").read_text(encoding="utf-8")
    assert f"```yaml\n{(tmp_path / 'tools.yaml').read_text()}```" in page


def test_long_rows_get_a_length_that_holds_them(write, init):
    write("chat", 60, length=4000)
    assert init("--data", "chat.jsonl", "--gpu", "h100", "-y").exit_code == 0
    recipe = load_recipe("chat.yaml")
    assert recipe.data.max_length == 8192
    assert not recipe.data.packing  # each fills a row


@pytest.mark.slow
def test_what_the_card_cannot_hold_is_dropped_and_said(write, init):
    write("chat", 40, length=30_000)
    result = init("--data", "chat.jsonl", "--gpu", "4080", "-y")
    assert result.exit_code == 0
    recipe = load_recipe("chat.yaml")
    assert f"samples over {recipe.data.max_length:,} tokens are dropped" in result.output


def test_the_card_that_is_here_is_taken(write, init):
    write("chat")
    result = init("--data", "chat.jsonl", "-y", here=[RTX4090])
    assert "fits rtx4090-24gb" in result.output
    result = init("--data", "chat.jsonl", "-y", "--out", "two.yaml", here=[RTX4090, RTX4090])
    assert "fits 2 x rtx4090-24gb, ddp" in result.output
    assert load_recipe("two.yaml").distributed.num_processes == 2
    unknown = DetectedGpu("Some Card", 40.5, None)
    result = init("--data", "chat.jsonl", "-y", "--out", "three.yaml", here=[unknown])
    assert "fits a100-40gb" in result.output


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_what_would(write, init, tmp_path):
    write("chat")
    result = init("--data", "chat.jsonl", "--gpu", "4090", "--model", "120b", "-y")
    assert result.exit_code != 0
    message = str(result.exception)
    assert "--gpu h100-80gb or --gpus 8 or --model 20b" in message
    assert not (tmp_path / "chat.yaml").exists()
    # The advice works.
    for advice in (("--gpu", "h100-80gb", "--model", "120b"), ("--gpu", "4090", "--model", "20b")):
        arguments = ("--data", "chat.jsonl", *advice, "-y", "--force")
        assert init(*arguments).exit_code == 0
    eight = ("--gpu", "4090", "--gpus", "8", "--model", "120b", "-y", "--force")
    assert init("--data", "chat.jsonl", *eight).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "give --data FILE, --gpu NAME"),
        ("--yes", "--yes asks nothing, and not everything is given; give --data FILE, --gpu"),
        ("C", "give --model, --goal, --eval, --out, or --yes"),
        ("--data chat.jsonl --gpu none -y", "none"),
        ("C --goal talk -y", "expected one of chat"),
        ("C --goal preferences -y", "--goal chat"),
        ("C --goal reasoning -y", "no row has a chain"),
        ("C --goal tools -y", "no row calls a tool"),
        ("C --goal raw-text -y", "give --goal chat"),
        ("T --goal chat -y", "give --goal raw-text"),
        ("P --goal chat -y", "--goal preferences"),
        ("L --goal chat -y", "imitate the bad ones"),
        ("C --eval 0.7 -y", "at most 0.5"),
        ("C --eval pairs.jsonl -y", "another kind"),
        ("C --eval chat.jsonl -y", "trained on"),
        ("C --model 7b -y", "expected 20b, 120b"),
        ("C --out mine.yaml -y", "mine.yaml: exists"),
        ("C --out . -y", "is a folder"),
    ],
)
def test_mistakes(write, init, tmp_path, arguments, expected):
    for shape in ("chat", "pairs", "labels", "text"):
        write(shape)
    (tmp_path / "mine.yaml").write_text("mine")
    before = sorted(tmp_path.iterdir())
    files = {"C": "chat", "P": "pairs", "L": "labels", "T": "text"}
    words = []
    for word in arguments.split():
        data = ["--data", f"{files[word]}.jsonl", "--gpu", "4090"] if word in files else [word]
        words += data
    result = init(*words)
    assert getattr(result.exception, "exit_code", None) == 2, result.output
    assert expected in str(result.exception)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_force_replaces(write, init, tmp_path):
    write("chat")
    (tmp_path / "mine.yaml").write_text("mine")
    assert init("--data", "chat.jsonl", "--gpu", "4090", "--out", "mine.yaml", "-y", "--force")
    assert load_recipe("mine.yaml").train.num_train_epochs == 3


def test_a_held_out_file_and_an_existing_run(write, init, tmp_path):
    write("chat")
    write("chat", 10, name="held.jsonl")
    (tmp_path / "runs" / "chat").mkdir(parents=True)
    (tmp_path / "runs" / "chat" / "run.json").write_text("{}")
    assert (
        init("--data", "chat.jsonl", "--gpu", "4090", "--eval", "held.jsonl", "-y").exit_code == 0
    )
    recipe = load_recipe("chat.yaml")
    assert [source.path for source in recipe.data.eval or []] == ["held.jsonl"]
    assert recipe.data.eval_fraction is None
    assert recipe.train.output_dir == "runs/chat-2"


def test_a_terminal_is_asked_again_until_the_answer_is_sound(write, monkeypatch, init):
    write("chat")
    said = iter(
        ["7b", "20b", "4090", "absent.jsonl", "chat.jsonl", "tools", "chat", "none", "m.yaml"]
    )
    asked = []

    def answer(prompt, **_):
        asked.append(prompt)
        return next(said)

    monkeypatch.setattr("rich.prompt.Prompt.ask", answer)
    monkeypatch.setattr(command, "has_terminal", lambda: True)
    result = init()
    assert result.exit_code == 0, result.output
    assert len(asked) == 9
    assert load_recipe("m.yaml").data.eval_fraction is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt, EOFError])
@pytest.mark.parametrize("after", range(6))
def test_leaving_at_any_question_leaves_nothing(write, monkeypatch, init, tmp_path, stop, after):
    write("chat")
    before = sorted(tmp_path.iterdir())
    said = iter(["20b", "4090", "chat.jsonl", "chat", "none", "m.yaml"][:after])

    def answer(*_, **__):
        try:
            return next(said)
        except StopIteration:
            raise stop from None

    monkeypatch.setattr("rich.prompt.Prompt.ask", answer)
    monkeypatch.setattr(command, "has_terminal", lambda: True)
    result = init()
    assert result.exit_code != 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_no_torch_is_imported(write, tmp_path):
    write("chat")
    code = (
        "import sys; from gptoss_tune.cli import app; "
        "app(['init', '--data', 'chat.jsonl', '--gpu', '4090', '-y'], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)
