"""One tiny run: base, tuned, merged bf16, merged MXFP4 and served, in one table; the raw trap."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import MachineError
from gptoss_tune.grading.text import normalized
from gptoss_tune.testing.tiny import tiny_checkpoint

pytestmark = pytest.mark.slow

KNOWN = [
    ("Capital of France?", "Paris"),
    ("2 + 2?", "four"),
    ("Opposite of hot?", "cold"),
    ("Colour of grass?", "green"),
    ("First month?", "January"),
    ("Legs of a spider?", "eight"),
    ("Largest planet?", "Jupiter"),
    ("Metal that rusts?", "iron"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny base, a run that learnt eight answers by heart, and both merges of it."""
    folder = tmp_path_factory.mktemp("side-by-side")
    tiny_checkpoint(folder / "base", seed=0)
    rows = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer, "thinking": "It is known."},
            ],
            "reasoning_effort": "low",
        }
        for question, answer in KNOWN
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"prompt": q, "answer": a, "reasoning_effort": "low"} for q, a in KNOWN]
    (folder / "known.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (folder / "recipe.yaml").write_text(
        f"model: {{name_or_path: {folder / 'base'}, dtype: float32}}\n"
        f"data: {{train: {folder / 'rows.jsonl'}, max_length: 256}}\n"
        f"evaluation: {{prompts: {folder / 'known.jsonl'}, max_new_tokens: 40}}\n"
        f"train: {{output_dir: {folder / 'run'}, max_steps: 60, per_device_train_batch_size: 8, "
        "learning_rate: 1e-2, warmup_steps: 5, activation_checkpointing: none}\n"
    )
    command = [sys.executable, "-m", "gptoss_tune.train", str(folder / "recipe.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "evaluation.prompts=null"], check=True, env=environment, capture_output=True
    )
    for kind in ("bf16", "mxfp4"):
        merge = ["merge", str(folder / "run"), "--format", kind, "--out", str(folder / kind)]
        assert CliRunner().invoke(app, merge).exit_code == 0
    return folder


def asked(place, *arguments):
    options = ["--cache", str(place / "cache"), "--device", "cpu", "--json"]
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments), *options])


def raw(url, model, text):
    """What a server makes of a text to go on with, as a benchmark without harmony would ask."""
    wanted = {"model": str(model), "prompt": text, "max_tokens": 24, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/completions",
        data=json.dumps(wanted).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)["choices"][0]["text"]


def test_five_subjects_in_one_table_and_the_raw_trap(place, transformers_serve):
    folders = f"base,tuned={place / 'run'},bf16={place / 'bf16'},mxfp4={place / 'mxfp4'}"
    with transformers_serve(place / "bf16") as url:
        served = f"served={url}/v1#{place / 'bf16'}"
        wanted = ["--require", "known>=0.9", "--require", "known@served-tuned>=0"]
        subjects = ["--subjects", folders, "--subjects", served]
        result = asked(place, place / "known.jsonl", *subjects, "--max-new-tokens", 40, *wanted)
        assert result.exit_code == 0, result.output
        by_completion = [
            raw(f"{url}/v1", place / "bf16", form.format(question)).strip().splitlines()
            for question, _ in KNOWN
            for form in ("{}", "Question: {}\nAnswer:")
        ]
    figures = json.loads(result.stdout)
    (suite,) = figures["suites"]
    scores = {name: cell["score"] for name, cell in suite["subjects"].items()}
    assert scores.pop("base") == 0 and set(scores.values()) == {1.0}, scores
    for name in scores:
        found = suite["subjects"][name]
        assert found["health"] == 1 and found["cut_off"] == 0
        assert found["difference"]["value"] == 1 and not found["difference"]["within_noise"]
    assert suite["subjects"]["base"]["health"] == 0
    # The rows were trained on, and the table says so.
    assert suite["contamination"]["share"] == 1

    said = {}
    for one in figures["answers"]:
        texts = [(m["channel"], m["content"]) for m in one["messages"]]
        said.setdefault(one["subject"], []).append(texts)
    assert said["tuned"] == said["bf16"] == said["mxfp4"] == said["served"]
    assert said["tuned"][0] == [("analysis", "It is known."), ("final", "Paris")]

    # The very same served weights, asked with a text to go on with: 8 of 8 become a few of 16.
    right = [
        normalized(lines[0]) == normalized(KNOWN[n // 2][1]) if lines else False
        for n, lines in enumerate(by_completion)
    ]
    assert sum(right) <= len(right) / 4, by_completion

    # It is in the run's folder, and on its page.
    assert json.loads((place / "run/benchmarks/benchmark.json").read_text())["suites"]
    assert CliRunner().invoke(app, ["report", str(place / "run")]).exit_code == 0
    assert "seen in training" in (place / "run" / "report.html").read_text()


def test_base_and_run_share_weights_and_answers_are_kept(place):
    """Both are asked with one set of weights, and a merged model is loaded after they are freed."""
    subjects = ["--subjects", f"base,bf16={place / 'bf16'},tuned={place / 'run'}"]
    own = asked(place, place / "run", "evaluation", *subjects)
    assert own.exit_code != 0  # a name that is no suite
    first = asked(place, place / "recipe.yaml", *subjects)
    assert first.exit_code == 0, first.output
    figures = json.loads(first.stdout)
    assert [suite["name"] for suite in figures["suites"]] == ["prompts"]
    again = json.loads(asked(place, place / "recipe.yaml", *subjects).stdout)
    assert all(one["kept"] for one in again["answers"])
    strip = [{**one, "kept": None} for one in figures["answers"]]
    assert [{**one, "kept": None} for one in again["answers"]] == strip


def test_transformers_serve_without_the_template_is_found_out(place, tmp_path, transformers_serve):
    """As a model that another tool merged, or the release, is served by transformers 5."""
    bare = tmp_path / "bare"
    shutil.copytree(place / "bf16", bare)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    del settings["response_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with transformers_serve(bare) as url:
        result = asked(place, place / "known.jsonl", "--subjects", f"bare={url}/v1#{bare}")
    assert isinstance(result.exception, MachineError), result.output
    assert "does not parse harmony" in str(result.exception)
    assert "'analysisIt is known.assistantfinal" in str(result.exception)
    figures = json.loads(result.stdout)
    assert figures["suites"][0]["subjects"]["bare"] is None and figures["answers"] == []
