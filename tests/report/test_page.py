"""The page is whole, needs nothing from elsewhere, and shows hostile text as text."""

import importlib.util
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import RecipeError
from gptoss_tune.report.page import write_report
from gptoss_tune.report.parts.text import LONGEST_TEXT
from gptoss_tune.report.samples import MOST_SHOWN, OPEN
from gptoss_tune.run.folder import REPORT

spec = importlib.util.spec_from_file_location("html_page", Path(__file__).parent / "html_page.py")
html_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(html_page)
HOSTILE, parsed, words, strange = (
    getattr(html_page, name) for name in ("HOSTILE", "parsed", "words", "strange")
)


def sample(prompt, **said):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "effort": "low",
        "source": "prompts.jsonl:1",
        "messages": [
            {"channel": channel, "recipient": None, "content": content}
            for channel, content in said.items()
        ],
        "ended": "return",
        "tokens": 12,
        "grade": {"kind": "exact", "passed": False, "expected": "Paris"},
        "health": ["no final: nothing was answered"],
    }


def write_evaluation(run, step, samples):
    (run / "evaluation").mkdir(exist_ok=True)
    content = {
        "step": step,
        "samples": samples,
        "graded": {"passed": 1, "total": 4},
        "health": {"valid": 3, "total": 4},
        "drift": {"kl": 0.0123, "refusal_rate": {"base": 0.0, "tuned": 0.25}},
    }
    (run / "evaluation" / f"step-{step}.json").write_text(json.dumps(content))


def test_a_page_has_every_section_and_needs_nothing_from_elsewhere(make_run, tiny_base):
    run = make_run(base=tiny_base)
    write_evaluation(run, 0, [sample("Capital?", final="before it")])
    write_evaluation(run, 20, [sample("Capital?", analysis="a city", final="after it")])
    page = parsed(write_report([run]))
    titles = {"Loss", "Samples before and after", "Optimisation", "Experts", "Tokens trained"}
    titles |= {"Speed and memory", "Plan against measurement", "Recipe", "Run card"}
    assert titles <= set(page.words)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    policy = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    pictures = [attrs for tag, attrs in page.tags if tag == "svg" and "aria-hidden" not in attrs]
    assert len(pictures) >= 12 and all(attrs["aria-label"] for attrs in pictures)
    assert words(page).index("before it") < words(page).index("after it")
    assert "25.0%" in page.words and "1 of 4 (25%)" in page.words


def test_most_samples_are_folded_and_a_lone_evaluation_says_when(make_run):
    run = make_run()
    write_evaluation(run, 0, [sample(f"question {n}", final="x") for n in range(30)])
    page = parsed(write_report([run]))
    told = words(page)
    assert told.count("before training, 12 tokens") == MOST_SHOWN
    assert f"{MOST_SHOWN - OPEN} more samples" in told and "The first 24 of 30 samples" in told
    whole = (run / REPORT).read_text()
    folded = whole.index("more samples")
    assert whole.index(f"question {OPEN - 1}<") < folded < whole.index(f"question {OPEN}<")


def test_hostile_text_is_shown_as_text_wherever_it_comes_from(make_run, tiny_base):
    run = make_run(
        base=tiny_base,
        status=HOSTILE,
        guard={"warnings": [HOSTILE]},
        base_name=HOSTILE,
        started=HOSTILE,
        environment={"gpus": [HOSTILE], "platform": HOSTILE, "libraries": {HOSTILE: HOSTILE}},
        tokens={"by_dataset": [{"path": HOSTILE, "weight": HOSTILE}], "trained": HOSTILE},
        footprint=[{"kind": HOSTILE, "precision": HOSTILE, "parameters": 1, "nbytes": 1}],
        reason=HOSTILE,
    )
    write_evaluation(run, 0, [sample(HOSTILE, final=HOSTILE, **{HOSTILE: HOSTILE})])
    write_evaluation(run, 20, [sample(HOSTILE, final="x" * 1_000_000, analysis=HOSTILE)])
    path = write_report([run])
    page = parsed(path)
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "img"}
    text = path.read_text(encoding="utf-8")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b]", text)
    assert HOSTILE[:30] in words(page) and "\\u202egnp.exe" in words(page)
    assert f"and {1_000_000 - LONGEST_TEXT:,} more characters" in words(page)
    assert len(text) < 300_000
    compared = parsed(write_report([run, make_run("other")], run / "compared.html"))
    assert not {tag for tag, _ in compared.tags} & {"script", "img"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_runs_nothing_of_it(make_run):
    run = make_run(guard={"warnings": [HOSTILE]}, reason=HOSTILE)
    write_evaluation(run, 0, [sample(HOSTILE, final=HOSTILE)])
    path = write_report([run])
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "<title>run: run report</title>" in done.stdout
    assert done.stdout.count("<figure>") == parsed(path).tags.count(("figure", {}))


def test_damaged_files_cost_their_part_alone(make_run, tmp_path):
    run = make_run()
    with (run / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 21, "loss": "high", "grad_norm": null}\n[1]\n{"step": tr')
    (run / "layers.jsonl").write_text(
        '{"step": 1, "expert_load": [[0, 0], [1, "x"]], "grad_norm": 3}\n'
        '{"step": 2, "expert_load": [[1, 2], [3]], "grad_norm": {"attention": [null, "x"]}}\n'
    )
    (run / "evaluation").mkdir()
    (run / "evaluation" / "step-0.json").write_text(
        '{"samples": [4, {"messages": [1]}], "drift": 3}'
    )
    (run / "evaluation" / "step-5.json").write_text("{")
    (run / "run.json").write_text('{"recipe": 3, "environment": []}')
    told = words(parsed(write_report([run])))
    assert "metrics.jsonl: 2 lines are no JSON objects with a step" in told
    assert "step-5.json is not readable as JSON" in told
    assert "No plan can be made of this run here" in told
    assert "Not finite at 1 logged step: 21." in told
    with pytest.raises(RecipeError, match="holds no run"):
        write_report([tmp_path / "nowhere"])


def test_figures_that_are_not_finite_are_told(make_run):
    run = make_run(not_finite={"eval_loss": "nan", "verification[0].nats": "<inf>"})
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 20, "eval_loss": null}\n')
    told = words(parsed(write_report([run])))
    assert "Figures that are not finite" in told and "verification[0].nats: <inf>" in told
    assert "the held-out loss at step 20" in told and "eval_loss: nan" in told


@pytest.mark.parametrize("seed", range(6))
def test_no_value_in_a_runs_files_keeps_the_page_from_being_written(
    make_preference_run, tmp_path, seed
):
    draw = random.Random(seed)
    runs = []
    for number in range(7):
        options = {"steps": draw.choice((1, 5, 80)), "layers": draw.choice((1, 12))}
        options |= {"method": draw.choice(("sft", "dpo", "simpo", "kto"))}
        run = make_preference_run(f"run-{number}", experts=draw.choice((1, 4)), **options)
        for step in (0, options["steps"]):
            write_evaluation(run, step, [sample("Capital?", analysis="a city", final="Paris")])
        for path in (run / "run.json", run / "pairs.json", *(run / "evaluation").iterdir()):
            found = strange(json.loads(path.read_text()), draw, draw.choice((0, 1, 5)))
            path.write_text(json.dumps(found))
        for path in (run / "metrics.jsonl", run / "layers.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for _ in range(draw.choice((0, 1, 6))):
                place = draw.randrange(len(rows))
                rows[place] = strange(rows[place], draw, 2) if rows[place] else {}
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        parsed(write_report([run]))
        runs.append(run)
    parsed(write_report(runs, tmp_path / "compared.html"))


@pytest.mark.slow
def test_a_big_run_makes_a_small_page(make_run):
    run = make_run(steps=20)
    with (run / "metrics.jsonl").open("w") as stream:
        for step in range(1, 100_001):
            loss = 9.875 if step == 71_234 else 2 + (step % 17) / 100
            stream.write(
                f'{{"step": {step}, "loss": {loss}, "loss_analysis": {loss}, "loss_final": 1.5, '
                f'"grad_norm": 0.5, "learning_rate": 0.0001, "tokens_per_second": {step % 100}, '
                '"memory_gib": 60.5, "router_entropy": 0.9, "router_entropy_lowest": 0.8}\n'
            )
    norms = json.dumps({kind: [n / 7 + 1 for n in range(36)] for kind in ("attention", "experts")})
    with (run / "layers.jsonl").open("w") as stream:
        for number in range(1000):
            load = [[(e * number + n) % 977 + 1 for e in range(128)] for n in range(36)]
            more = f', "expert_load": {json.dumps(load)}' if number % 16 == 0 else ""
            stream.write(f'{{"step": {100 * number + 1}, "grad_norm": {norms}{more}}}\n')
    page = write_report([run])
    assert page.stat().st_size < 2_000_000
    told = words(parsed(page))
    assert "as the lowest and highest of each of 300 pieces of the run" in told
    assert "from 2 to 9.875" in told or "9.875" in page.read_text()


def test_several_runs_are_laid_over_each_other_with_what_differs(make_run, tmp_path):
    first, second = make_run("a", steps=20), make_run("b", steps=30)
    record = json.loads((second / "run.json").read_text())
    record["recipe"]["lora"]["rank"] = 32
    record["environment"]["libraries"]["torch"] = "2.12.0"
    (second / "run.json").write_text(json.dumps(record))
    page = parsed(write_report([first, second], tmp_path / "both.html"))
    told = words(page)
    assert "lora.rank 16 32" in told and "train.max_steps 20 30" in told
    assert "version of torch 2.13.0 2.12.0" in told
    assert "data.max_length" not in told and "2 runs compared" in told
    assert sum(tag == "figure" for tag, _ in page.tags) >= 6


def test_the_command_writes_the_page_and_names_it(make_run, tmp_path):
    run = make_run()
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0 and done.stdout.strip() == str(run / REPORT)
    parsed(run / REPORT)
    output = tmp_path / "out" / "page.html"
    assert CliRunner().invoke(app, ["report", str(run), "--out", str(output)]).exit_code == 0
    assert output.exists() and not list(output.parent.glob("*.part"))
    with pytest.raises(RecipeError, match="name it by --out"):
        CliRunner().invoke(
            app, ["report", str(run), str(make_run("other"))], catch_exceptions=False
        )
