"""``gptoss-tune plan``: what it prints, as a table and as JSON, and what it does not import."""

import json
import re
import subprocess
import sys

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
    result = runner.invoke(app, ["plan", "a.yaml", *asks])
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
        result = CliRunner().invoke(app, ["plan", "a.yaml", *overrides])
        assert result.exit_code == 0, result.output
        assert max(map(len, result.stdout.splitlines()[1:])) <= 80
        return result.stdout.splitlines()

    epochs = ["train.max_steps=null", "train.num_train_epochs=2", "data.packing=true"]
    said = lines("method.name=dpo", *epochs)
    assert re.search(
        r"^  reference pass, once: \d\.\d minutes \(12,080,000 tokens forward\);\n"
        r"    its peak of 16\.\d\d GiB lies below a training step's$",
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
