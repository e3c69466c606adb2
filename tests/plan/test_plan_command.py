"""``gptoss-tune plan``: what it prints, as a table and as JSON, and what it does not import."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app


def test_the_command(tmp_path, sound, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(sound)
    runner = CliRunner()
    result = runner.invoke(app, ["plan", "a.yaml", "--gpu", "rtx4090-24gb"])
    assert result.exit_code == 0, result.output
    assert "of 23.5: fits" in result.stdout and "assumed, not measured" in result.stdout
    assert "evaluation" not in result.stdout
    asks = ["evaluation.prompts=p.jsonl", "evaluation.max_new_tokens=64"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    result = runner.invoke(app, ["plan", "a.yaml", *asks, "--gpu", "h100"])
    said = re.search(
        r"evaluation: .* at most \(prompts and drift 2 x .*, 1 answers of", result.stdout
    )
    assert said and re.search(r"in all$", result.stdout, re.M)
    result = runner.invoke(app, ["plan", "a.yaml", "--gpu", "rtx4080-16gb"])
    assert result.exit_code == 3
    assert (
        "does not fit" in result.stdout
        and "train.activation_checkpointing=offload" in result.stdout
    )
    result = runner.invoke(app, ["plan", "a.yaml", "lora.rank=8", "--gpus", "2", "--json"])
    body = json.loads(result.stdout)
    assert body["hours"] == sum(body["hours_by_kind"].values())
    assert body["gpu"]["count"] == 2 and body["parameters"]["expert_rank"] == 8
    parts = {k: v for k, v in body["memory_bytes"].items() if k != "peak"}
    assert sum(parts.values()) == body["memory_bytes"]["peak"]
    assert "\x1b" not in result.stdout


def test_the_reference_pass_is_a_line_of_its_own(tmp_path, sound, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(sound)
    row = {"prompt": "a" * 300, "chosen": "b" * 300, "rejected": "c" * 300}
    (tmp_path / "a.jsonl").write_text((json.dumps(row) + "\n") * 40_000)

    def lines(*overrides):
        result = CliRunner().invoke(app, ["plan", "a.yaml", *overrides, "--gpu", "h100"])
        assert result.exit_code == 0, result.output
        assert max(map(len, result.stdout.splitlines()[1:])) <= 80
        return result.stdout.splitlines()

    epochs = ["train.max_steps=null", "train.num_train_epochs=2", "data.packing=true"]
    said = lines("method.name=dpo", *epochs)
    assert re.search(
        r"^  reference pass, once: \d\.\d minutes \(12,080,000 tokens forward\);\n"
        r"    its peak of 15\.\d\d GiB lies below a training step's$",
        "\n".join(said),
        re.M,
    )
    (tokens,) = (line for line in said if "optimizer steps" in line)
    assert tokens.startswith("  24,160,000 tokens (file bytes / 4, prompts twice)")
    assert said[-1].endswith("in all"), "the reference pass is added, without an evaluation too"
    for overrides in (epochs, ["data.packing=true"]):
        said = lines("method.name=kto", "data.train=owner/rows", *overrides)
        unknown = "  reference pass, once: not known before the data is read (all data forward);"
        assert unknown in said
    for name in ("sft", "simpo", "orpo"):
        assert not any("reference" in line for line in lines(f"method.name={name}", *epochs))


def test_a_plan_imports_nothing_heavy(tmp_path, sound):
    (tmp_path / "a.yaml").write_text(sound)
    code = (
        "import sys\nfrom gptoss_tune.cli import main\n"
        "sys.argv = ['gptoss-tune', 'plan', 'a.yaml']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


TOO_LARGE = [
    ("gpt-oss-20b/qlora", ("train.optim=adamw", "train.activation_checkpointing=none"), "4080"),
    ("gpt-oss-20b/lora", (), "RTX 4090"),
    ("gpt-oss-20b/qlora-128k", (), "4080"),
    ("gpt-oss-120b/qlora-80gb", ("train.optim=adamw", "lora.expert_rank=16"), "h100"),
    ("gpt-oss-120b/qlora", (), "4090"),
    ("gpt-oss-120b/dpo-80gb", (), "a100-40"),
    ("gpt-oss-120b/qlora-8x80gb-ddp", (), "l40s"),
    ("gpt-oss-120b/qlora-8x80gb-fsdp2", (), "4080"),
]


@pytest.mark.parametrize(("name", "overrides", "gpu"), TOO_LARGE)
def test_the_commands_of_the_advice_are_plans_that_fit(name, overrides, gpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    result = runner.invoke(app, ["plan", name, *overrides, "--gpu", gpu])
    assert result.exit_code == 3, result.output
    commands = [line for line in result.stdout.splitlines() if "gptoss-tune plan" in line]
    assert commands and result.stdout.splitlines()[-1] == commands[-1], "it ends with one"
    for command in commands:
        words = shlex.split(command)
        followed = runner.invoke(app, words[1:])
        assert followed.exit_code == 0, (command, followed.output, followed.exception)
        assert ": fits" in followed.stdout
        trained = runner.invoke(app, ["check", *words[2 : words.index("--gpu")]])
        assert trained.exit_code == 0, "train takes the same settings"


@pytest.fixture
def machine(tmp_path, monkeypatch, sound):
    """Return a function that has the driver's tool tell these cards, or be absent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(sound)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "bin").mkdir()

    def tells(*cards):
        tool = tmp_path / "bin" / "nvidia-smi"
        lines = [f"echo 'GPU-{n}, [N/A], {card}'" for n, card in enumerate(cards)]
        tool.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        tool.chmod(0o755)

    return tells


def test_the_card_of_this_machine_is_planned_for(machine):
    machine("NVIDIA GeForce RTX 4090, 24564", "NVIDIA GeForce RTX 4090, 24564")
    runner = CliRunner()
    said = runner.invoke(app, ["plan", "a.yaml"]).stdout.splitlines()
    assert said[:2] == ["a.yaml on rtx4090-24gb", "  this machine: 2 x NVIDIA GeForce RTX 4090"]
    body = json.loads(runner.invoke(app, ["plan", "a.yaml", "--json"]).stdout)
    assert (body["gpu"]["name"], body["gpu"]["from"]) == ("rtx4090-24gb", "detected")
    body = json.loads(runner.invoke(app, ["plan", "a.yaml", "--gpu", "H100", "--json"]).stdout)
    assert (body["gpu"]["name"], body["gpu"]["from"]) == ("h100-80gb", "--gpu")
    said = runner.invoke(app, ["plan", "a.yaml", "--gpus", "4"]).stdout.splitlines()
    assert said[2] == "  the recipe is for 4 of them"


def test_of_several_kinds_the_recipe_takes_the_largest(machine):
    machine("NVIDIA GeForce RTX 3070, 8192", "NVIDIA L40S, 46068", "NVIDIA A100-PCIE-40GB, 40960")
    for gpus, name in (("1", "l40s-48gb"), ("2", "a100-40gb")):
        words = ["plan", "a.yaml", "--gpus", gpus, "--json"]
        assert json.loads(CliRunner().invoke(app, words).stdout)["gpu"]["name"] == name


def test_an_unlisted_card_is_planned_as_a_listed_one_with_no_more_memory(machine):
    machine("NVIDIA GeForce RTX 3070, 8192")
    said = CliRunner().invoke(app, ["plan", "a.yaml"]).stdout.splitlines()
    assert said[0] == "a.yaml on h100-80gb"
    assert said[2:4] == [
        "  8.0 GiB, less than any card that is listed",
        "  planned for h100-80gb instead",
    ]
    machine("NVIDIA RTX A6000, 49140")
    said = CliRunner().invoke(app, ["plan", "a.yaml"]).stdout.splitlines()
    assert said[:3] == [
        "a.yaml on l40s-48gb",
        "  this machine: 1 x NVIDIA RTX A6000",
        "  it has 48.0 GiB and is not listed: planned as the nearest with no more memory",
    ]


def test_without_a_card_the_common_ones_are_shown(machine):
    result = CliRunner().invoke(app, ["plan", "a.yaml"])
    assert result.exit_code == 0
    said = result.stdout.splitlines()
    assert said[0] == "a.yaml on h100-80gb" and "no GPU found here" in said[1]
    below = said[said.index("on common cards") + 1 :]
    assert below[0].split() == ["rtx4080-16gb", "does", "not", "fit"]
    assert re.match(r"  rtx4090-24gb +fits, \d", below[1])
    assert (
        "on common cards" not in CliRunner().invoke(app, ["plan", "a.yaml", "--gpu", "h100"]).stdout
    )
