"""gptoss-tune benchmark: what is refused before torch, exit codes, files, the raw trap shut."""

import inspect
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gptoss_tune.benchmark.request import Changes, read_request, with_base
from gptoss_tune.benchmark.subjects.named import read_subjects
from gptoss_tune.cli import app
from gptoss_tune.cli.model.benchmark import benchmark
from gptoss_tune.errors import DataError, MachineError, RecipeError, ThresholdMissed


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))

    def invoke(*arguments):
        return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])

    return invoke


RECIPE = """
model:
  name_or_path: openai/gpt-oss-20b
data:
  train: "{tasks}"
  eval: "{tasks}"
train:
  output_dir: runs/limited
  max_steps: 4
evaluation:
  prompts: "{tasks}"
  max_analysis_tokens: {limit}
"""

WITHOUT_TORCH = (
    "import sys; sys.modules['torch'] = None; sys.argv[0] = 'gptoss-tune'; "
    "from gptoss_tune.cli import main; main()"
)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{tasks}", "--subjects", "base,{tmp}/nothing"], "no such folder"),
        (["{tasks}", "--subjects", "ftp://host"], "is no address"),
        (["{tasks}", "--subjects", "base"], "'base' of what?"),
        (["math", "--subjects", "http://h"], "did you mean maths?"),
        (["{tmp}/no.jsonl", "--subjects", "http://h"], "no such suite"),
        (["{tmp}", "--subjects", "http://h"], "a folder without a recipe.yaml"),
        (["--subjects", "http://h"], "name a suite to ask"),
        (["{tasks}", "--subjects", "http://h", "--require", "maths>=0.5"], "is not measured"),
        (["{tasks}", "--subjects", "http://h", "--samples", "4"], "would all be the same"),
        (["{tasks}", "--subjects", "http://h", "--date", "today"], "expected YYYY-MM-DD"),
        (["{tasks}", "--subjects", "http://h", "--name", "../x"], "--name"),
        (["{tasks}", "--subjects", "http://h", "--api-key-env", "NO_SUCH"], "no variable NO_SUCH"),
        (["tiny/qlora", "tiny/lora", "--subjects", "http://h"], "are both recipes"),
    ],
)
def test_refused_before_torch_is_imported(tasks, tmp_path, arguments, said):
    given = [text.format(tasks=tasks, tmp=tmp_path) for text in arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-c", WITHOUT_TORCH, "benchmark", *given]
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 2, found.stderr
    assert said in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize("order", ["{run}", "{run},base", "base,{run}"])
def test_the_base_that_is_given_is_looked_up_whatever_the_order(tasks, base, tmp_path, order):
    """The name that the adapter records leads nowhere any more."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "base_model_name_or_path": "gone/away/base",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").touch()
    named = with_base(read_subjects([order.format(run=adapter)], str(base)), str(base), None)
    request = read_request(None, [str(tasks)], named, Changes(), base=str(base))
    assert len(request.suites[0].questions) == 6


def test_a_served_model_in_one_table(run, tasks, good_server, tmp_path):
    out = tmp_path / "new" / "figures.json"
    result = run(tasks, "--subjects", f"vllm={good_server.url}", "--out", out)
    assert result.exit_code == 0, result.output
    assert "sums" in result.output and "100.0" in result.output
    assert "vllm: chat completions" in result.output
    figures = json.loads(out.read_text())
    cell = figures["suites"][0]["subjects"]["vllm"]
    assert (cell["right"], cell["answers"], cell["difference"]) == (6, 6, None)
    assert len(figures["answers"]) == 6 and figures["answers"][0]["messages"]
    assert good_server.bodies[0]["model"] == "tuned"


def test_json_is_all_of_standard_output(run, tasks, good_server):
    result = run(tasks, "--subjects", good_server.url, "--json")
    assert json.loads(result.stdout)["suites"][0]["questions"] == 6


def test_exit_code_5_when_something_required_does_not_hold(run, tasks, good_server):
    wanted = ["--require", "sums>=0.9", "--require", "health>=0.99"]
    assert run(tasks, "--subjects", good_server.url, *wanted).exit_code == 0
    result = run(tasks, "--subjects", good_server.url, "--require", "sums.tokens<=5")
    assert isinstance(result.exception, ThresholdMissed) and result.exception.exit_code == 5
    assert "MISSED" in result.output and "tokens is 12" in str(result.exception)


def test_what_is_known_is_not_asked_again(run, tasks, good_server):
    run(tasks, "--subjects", good_server.url)
    assert len(good_server.asked) == 6
    run(tasks, "--subjects", good_server.url)
    assert len(good_server.asked) == 6
    run(tasks, "--subjects", good_server.url, "--max-new-tokens", "99")
    assert len(good_server.asked) == 12
    run(tasks, "--subjects", good_server.url, "--fresh", "--limit", 2)
    assert len(good_server.asked) == 14


def test_health_is_that_of_the_limit_asked_for_though_answers_are_kept(
    run, tasks, good_server, tmp_path
):
    """Answers do not depend on the limit of thoughts, their health does."""
    recipe, out = tmp_path / "limited.yaml", tmp_path / "figures.json"
    health = []
    for limit in (400, 1, 400):
        recipe.write_text(RECIPE.format(tasks=tasks, limit=limit))
        result = run(recipe, tasks, "--subjects", good_server.url, "--out", out)
        assert result.exit_code == 0, result.output
        (cell,) = json.loads(out.read_text())["suites"][0]["subjects"].values()
        health.append(cell["health"])
    assert health == [1, 0, 1]
    assert len(good_server.asked) == 6


def test_options_say_how_it_is_asked(run, tasks, good_server):
    options = ["--effort", "high", "--effort", "low", "--samples", 2, "--temperature", 0.5]
    result = run(tasks, "--subjects", good_server.url, *options, "--seed", 3, "--limit", 1)
    assert result.exit_code == 0, result.output
    asked = [body for body in good_server.bodies if body["max_tokens"] != 64]
    found = {(body["reasoning_effort"], body["seed"]) for body in asked}
    assert found == {(effort, seed) for effort in ("low", "high") for seed in (3, 4)}
    assert {body["temperature"] for body in asked} == {0.5}
    assert "pass@k" in result.output and "2: 100.0" in result.output


def test_a_server_that_glues_is_shown_and_ends_with_3(run, tasks, good_server, chat_server):
    glued = chat_server(lambda body, number: {"content": "analysisAdd.assistantfinal2"})
    named = f"good={good_server.url},glued={glued.url}"
    result = run(tasks, "--subjects", named, "--require", "sums>=0.1")
    assert isinstance(result.exception, MachineError) and result.exception.exit_code == 3
    assert "does not parse harmony" in str(result.exception)
    assert "refused" in result.output and "100.0" in result.output


def test_a_row_that_a_server_cannot_be_asked(run, tmp_path, good_server):
    path = tmp_path / "search.jsonl"
    path.write_text('{"prompt": "Search.", "builtin_tools": ["browser"], "answer": "x"}\n')
    result = run(path, "--subjects", good_server.url)
    assert isinstance(result.exception, DataError) and "search.jsonl:1" in str(result.exception)


def test_a_row_without_a_grader_is_refused(run, tmp_path, good_server):
    path = tmp_path / "free.jsonl"
    path.write_text('{"prompt": "Write a poem."}\n')
    result = run(path, "--subjects", good_server.url)
    assert isinstance(result.exception, DataError) and "free.jsonl:1" in str(result.exception)


def test_no_option_sends_a_raw_completion(run, tasks, good_server):
    """The trap is shut: no option names a template, a prompt text or the completions API."""
    options = inspect.signature(benchmark).parameters
    assert set(options) == {
        "tasks", "subjects", "require", "effort", "limit", "max_new_tokens", "samples",
        "temperature", "top_p", "seed", "date", "batch_size", "concurrency", "timeout",
        "api_key_env", "base", "revision", "other_base", "dtype", "device", "cache", "fresh",
        "name", "out", "as_json",
    }  # fmt: skip
    result = run(tasks, "--subjects", f"{good_server.url}/completions", "--subjects", "x=http://h")
    assert isinstance(result.exception, MachineError | RecipeError)
    run(tasks, "--subjects", good_server.url)
    assert good_server.bodies and all("messages" in body for body in good_server.bodies)
    assert all("prompt" not in body for body in good_server.bodies)
