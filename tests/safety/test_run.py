"""A training run with its safety: judged, written, shown, on paper; and a finished one, merged."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.export.hub.card_safety import safety_text
from gptoss_tune.recipe import load_recipe, recipe_yaml
from gptoss_tune.report.page import write_report

REQUESTS = 5


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def judges(stub_class, as_chat, parts_of):
    """Two judges: one labels what answers a planted request, the other dies after a while."""
    first, second = stub_class(), stub_class()

    def planted(body):
        harmful = "request 3" in parts_of(body)[0]
        return 200, as_chat(json.dumps({"label": int(harmful), "rationale": "planted"}))

    first.reply = planted
    second.reply = lambda body: planted(body) if len(second.asked) <= 3 else (500, b"gone")
    yield first, second
    first.close()
    second.close()


@pytest.fixture(scope="module")
def overrides(tmp_path_factory, judges):
    folder = tmp_path_factory.mktemp("asked")
    prompts = [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(3)]
    requests = [{"prompt": f"<b>placeholder</b> of request {n}"} for n in range(REQUESTS)]
    return [
        f"evaluation.prompts={write_lines(folder / 'prompts.jsonl', prompts)}",
        "evaluation.max_new_tokens=6",
        f"evaluation.drift.probes={folder / 'prompts.jsonl'}",
        f"evaluation.safety.requests={write_lines(folder / 'requests.jsonl', requests)}",
        f"evaluation.safety.judge.url={judges[0].url}",
        f"evaluation.safety.second_judge.url={judges[1].url}",
        "evaluation.safety.second_judge.retries=0",
        "evaluation.safety.second_judge.parallel=1",
        "evaluation.safety.chain_of_thought=true",
        "evaluation.safety.hints=true",
        "evaluation.safety.without_analysis=true",
    ]


@pytest.fixture(scope="module")
def trained(write_recipe, overrides, tmp_path_factory):
    """The folder of a run and what it printed."""
    from gptoss_tune.train.run import train

    folder = tmp_path_factory.mktemp("trained")
    recipe = load_recipe(write_recipe(folder), [*overrides, "train.max_steps=3"])
    train(recipe)
    return folder / "run"


def at(run, step):
    return json.loads((run / "evaluation" / f"step-{step}.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_is_judged_at_its_start_and_at_its_end(trained, judges):
    first, last = at(trained, 0)["safety"], at(trained, 3)["safety"]
    # Before the first step the two are one model: everything is equal, and every figure is there.
    assert first["regressions"] == [] and first["comparisons"] == 7
    assert all(one["difference"] == 0 for one in first["figures"])
    # A random model's answers are no harmony: harmful by their label, else never safe.
    for safety in (first, last):
        assert safety["harm"]["base"] == {
            "harmful": 1, "safe": 0, "incoherent": REQUESTS - 1, "abstained": 0, "not judged": 0
        }  # fmt: skip
    assert [one["status"] for one in (r["tuned"] for r in last["examples"]["requests"])] == [
        "incoherent", "incoherent", "incoherent", "harmful", "incoherent"
    ]  # fmt: skip
    said = last["examples"]["requests"][3]["tuned"]["judges"][0]
    assert said == {"outcome": "label", "label": 1, "said": '{"label": 1, "rationale": "planted"}'}
    policy = last["policy"]
    assert policy["name"] == "harm.md" and len(policy["sha256"]) == 64
    assert [(one["what"], one["rows"]) for one in last["asked"]] == [
        ("requests that ought to be refused", 5),
        ("prompts", 3),
        ("harmless probes", 3),
        ("prompts with a planted hint", 6),
        ("prompts answered without analysis", 3),
    ]
    assert all(len(f["sha256"]) == 64 for one in last["asked"] for f in one["files"])
    # Each text is judged once a run: the trial, the base's answers, the tuned model's.
    assert len(judges[0].asked) <= 1 + 2 * REQUESTS


@pytest.mark.slow
def test_a_judge_that_dies_in_a_run_costs_its_judgements_alone(trained):
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "finished"
    last = at(trained, 3)["safety"]
    (line,) = last["problems"]
    assert "answers were not judged by the second judge (openai/gpt-oss-safeguard-20b)" in line
    assert line.endswith("; the first: HTTP 500")
    assert last["agreement"]["one_alone"] > 0 and last["harm"]["tuned"]["not judged"] == 0
    page = (trained / "safety.html").read_text(encoding="utf-8")
    assert "Not all was judged" in page and "HTTP 500" in page


@pytest.mark.slow
def test_metrics_record_report_page_and_card_have_it(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if "eval_safety_unhealthy" in row]
    assert [row["step"] for row in found] == [0, 3]
    assert found[1]["eval_safety_requests_incoherent"] == 0.8
    assert {"eval_safety_refused_change", "eval_safety_regressions"} <= found[1].keys()
    record = json.loads((trained / "run.json").read_text())
    assert record["safety"]["step"] == 3
    card = safety_text(record)
    assert "| answers that are no healthy harmony | 11 | 100.0 % |" in card
    assert "placeholder" not in card and "127.0.0.1" not in card
    report = write_report([trained]).read_text(encoding="utf-8")
    assert "Safety against the base" in report and 'href="safety.html"' in report
    page = (trained / "safety.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;placeholder&lt;/b&gt; of request 3" in page and "<b>placeholder" not in page
    for words in ("What was asked", "Who judged", "Base against tuned", "What was not asked",
                  "decision: released", "sha256", "Policy of the judges"):  # fmt: skip
        assert words in page


@pytest.mark.slow
def test_the_page_is_of_the_weights_that_the_adapter_holds(write_recipe, overrides, tmp_path):
    from gptoss_tune.train.run import train

    # All answers of a tiny model are unhealthy, so the first evaluated step stays the best.
    once = [one for one in overrides if "second_judge" not in one and "analysis" not in one]
    choice = ["train.keep_best=eval_safety_unhealthy", "evaluation.eval_steps=1"]
    train(load_recipe(write_recipe(tmp_path), [*once, *choice, "train.max_steps=3"]))
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["best"]["step"] == record["safety"]["step"] == 1
    assert json.loads((run / "adapter" / "manifest.json").read_text())["step"] == 1
    assert "at step 1, side by side" in (run / "safety.html").read_text(encoding="utf-8")
    assert "At step 1; the page" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_finished_run_and_its_merged_model_are_compared_alike(trained, base, judges, tmp_path):
    from gptoss_tune.export.merge.merge import MergeOptions, merge
    from gptoss_tune.export.merge.steps import WeightedAdapter
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.weights.adapter import open_adapter

    def evaluated(*arguments):
        words = ["evaluate", *map(str, arguments), "evaluation.safety.second_judge.url=null",
                 "evaluation.safety.second_judge.retries=3",
                 "evaluation.safety.second_judge.parallel=4"]  # fmt: skip
        result = CliRunner().invoke(app, words, env={"COLUMNS": "160"})
        if result.exit_code:
            raise result.exception
        return result.stdout

    page = tmp_path / "out" / "page.html"
    of_run = json.loads(evaluated(trained, "--json", "--safety-page", page))
    assert "of request 3" in page.read_text(encoding="utf-8")
    in_run = at(trained, 3)["safety"]
    assert of_run["safety"]["figures"] == in_run["figures"]
    assert "no regression shown in 7 figures" in evaluated(trained)
    checkpoint = open_checkpoint(str(base))
    adapters = [WeightedAdapter(open_adapter(trained, checkpoint))]
    merge(checkpoint, adapters, tmp_path / "merged", MergeOptions())
    merged = (tmp_path / "merged", "--recipe", trained / "recipe.yaml", "--json")
    with pytest.raises(RecipeError, match="is merged, and its safety is compared with a base"):
        evaluated(*merged)
    of_merged = json.loads(evaluated(*merged, "--base", base))
    sides = [[r["base"]["messages"] for r in one["safety"]["examples"]["requests"]]
             for one in (of_run, of_merged)]  # fmt: skip
    assert sides[0] == sides[1]
    assert of_merged["drift"] is None and of_merged["safety"]["comparisons"] == 7
    plain = tmp_path / "plain.yaml"
    shutil.copy(trained / "recipe.yaml", plain)
    with pytest.raises(RecipeError, match="--safety-page: the recipe asks nothing"):
        evaluated(trained, "--safety-page", page, "evaluation.safety.requests=null",
                  "evaluation.safety.judge.url=null", "evaluation.safety.hints=false",
                  "evaluation.safety.chain_of_thought=false",
                  "evaluation.safety.without_analysis=false")  # fmt: skip


def test_a_judge_that_is_not_there_stops_the_run_before_the_weights(
    recipe, overrides, tmp_path, monkeypatch
):
    from gptoss_tune.train import run

    monkeypatch.setattr(run, "build", None)  # loading would fail with another error
    others = [one for one in overrides if "safety.judge.url" not in one]
    settings = recipe(*others, "evaluation.safety.judge.retries=0",
                      "evaluation.safety.judge.url=http://127.0.0.1:9")  # fmt: skip
    with pytest.raises(MachineError, match=r"127\.0\.0\.1:9/v1/chat/completions cannot be asked"):
        run.train(settings)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_two_ranks_find_what_one_finds_and_ask_once(
    recipe, overrides, judges, forked_python, tmp_path, base
):
    from gptoss_tune.harmony.vocabulary import load_vocabulary
    from gptoss_tune.model.build import build
    from gptoss_tune.safety.evaluator import SafetyEvaluator
    from gptoss_tune.weights import open_checkpoint

    wanted = [one for one in overrides if "second_judge" not in one]
    asked = recipe(*wanted, "evaluation.batch_size=1")
    (tmp_path / "asked.yaml").write_text(recipe_yaml(asked), encoding="utf-8")
    before = len(judges[0].asked)
    script = Path(__file__).with_name("safety_on_ranks.py")
    ended = forked_python([script, tmp_path / "asked.yaml", tmp_path / "found"], ranks=2)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1)]
    assert found[0] == found[1] and found[0]["dead"] and found[0]["stopped"]
    # The trial, and each answer once: adapters that do not act yet answer as the base does.
    assert len(judges[0].asked) - before <= 1 + REQUESTS
    evaluator = SafetyEvaluator(asked.evaluation, asked.data, load_vocabulary(base), seed=0)
    import torch

    model = build(asked, open_checkpoint(str(base)), "cpu").model
    alone = evaluator.run(model, step=0, device=torch.device("cpu"))
    assert json.loads(json.dumps(alone["safety"])) == found[0]["report"]["safety"]
