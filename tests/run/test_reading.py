"""Records and metrics that were cut, edited or made up: refused by who needs them, shown by a page.

Every reader of ``run.json`` goes through one check, every reader of the metrics through one loop.
What a damaged line costs is each reader's own: an export and a comparison refuse it with its
number, the report and the end of a run count it and go on.
"""

import json
import os

import pytest

from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.export.hub.model_card import read_metrics
from gptoss_tune.report.parts.read import read_run
from gptoss_tune.run.card import Reference, RunCard, closing_facts
from gptoss_tune.run.jsonl import keep_lines_until, open_lines, read_lines, refusing
from gptoss_tune.run.record import (
    read_record,
    record_of_adapter,
    trained_merge_aware,
    update_record,
    wanted_survival,
)
from gptoss_tune.workflows.reproduce import compare

WRITTEN = {
    "run_id": "7f",
    "status": "finished",
    "fingerprint": {"batch": 2, "init_from": None, "train.seed": 0},
    "changes": [{"step": 2, "name": "processes", "was": 1, "now": 2}],
    "recipe": {
        "model": {"name_or_path": "openai/gpt-oss-20b", "revision": None},
        "lora": {"rank": 4, "merge_aware": True, "init_from": None},
        "data": {
            "train": [{"path": "rows.jsonl", "columns": None, "limit": None}],
            "eval": None,
            "eval_fraction": None,
        },
        "train": {"max_steps": 4, "activation_checkpointing": "none", "resume": "auto"},
        "evaluation": {"prompts": None},
        "export": {"min_survival": 1},
        "distributed": {"num_processes": 1, "strategy": None},
    },
    "base": {"name": "b", "revision": None, "fingerprint": {"config": "0", "weights": "1"}},
    "command": {"recipe": None, "overrides": []},
    "data": [{"split": "train", "path": "owner/set", "sha256": None, "revision": None}],
    "environment": {"libraries": {"torch": "2", "triton": None}, "git_commit": None, "gpus": []},
    "hardware": {"gpus": [], "driver": None},
    "steps": 4,
    "eval_loss": None,
    "losses": {"first": {"loss": 2.0}, "last": {"loss": 1.0}, "eval": {}},
    "tokens_per_second": None,
}
"""A record with every null that a run writes."""
DAMAGES = {
    "a status of numbers": {"status": 7},
    "a change that is none": {"changes": ["batch"]},
    "one under its old name": {"drift": ["batch"]},
    "a base of text": {"base": "openai/gpt-oss-20b"},
    "a fingerprint of numbers": {"base": {"fingerprint": {"weights": 7}}},
    "libraries in a list": {"environment": {"libraries": ["torch"]}},
    "no recipe": {"recipe": "recipe.yaml"},
    "a survival in words": {"recipe": {"export": {"min_survival": "most"}}},
    "sources of text": {"recipe": {"data": {"train": ["rows.jsonl"]}}},
    "data without names": {"data": [{"path": 7}]},
}


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    return run


def readers(run):
    return {
        "of a run": lambda: read_record(run),
        "of an adapter": lambda: record_of_adapter(run / "adapter"),
        "beside an adapter": lambda: record_of_adapter(run),
    }


def test_what_a_run_writes_is_read_as_it_stands(run):
    (run / "run.json").write_text(json.dumps(WRITTEN))
    for name, read in readers(run).items():
        assert read() == WRITTEN, name
    assert trained_merge_aware(run / "adapter") and wanted_survival(run / "adapter") == 1
    kept = update_record(run, status="running")
    assert kept.pop("updated") and kept == WRITTEN | {"status": "running"}


def test_where_there_is_no_record_there_is_nothing(run):
    assert all(read() == {} for read in readers(run).values())
    assert wanted_survival(run) is None and not trained_merge_aware(run)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_every_reader_refuses_the_same_and_the_page_shows_the_rest(run, damage):
    (run / "run.json").write_text(json.dumps({"steps": 4} | damage))
    said = set()
    for read in readers(run).values():
        with pytest.raises(CheckpointError, match=r"run\.json: .* expected .* restore it") as error:
            read()
        said.add(str(error.value))
    assert len(said) == 1
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    page = read_run(run)
    assert page.fact("steps") == 4 and page.problems == [], "each value is looked at by itself"


@pytest.mark.parametrize("name", ["footprint", "holdings"])
def test_the_page_knows_what_a_run_held_under_its_old_name_too(run, name):
    held = [{"kind": "adapters", "precision": "fp32", "parameters": 1000, "nbytes": 4000}]
    (run / "run.json").write_text(json.dumps({name: held}))
    assert read_run(run).footprint == held


GOOD = ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": 1.5, "note": "x"}']
LINES = {
    "torn": '{"step": 3, "lo',
    "a key twice": '{"step": 3, "step": 4, "loss": 1.0}',
    "NaN": '{"step": 3, "loss": NaN}',
    "too large": '{"step": 3, "loss": 1e999}',
    "deep": '{"step": 3, "loss": ' + "[" * 101 + "]" * 101 + "}",
}
PYTHON_READS = {"a key twice", "NaN", "too large", "deep"}


@pytest.mark.parametrize("name", LINES)
def test_a_damaged_line_is_refused_with_its_number_or_costs_its_part_alone(run, name):
    (run / "run.json").write_text(json.dumps(WRITTEN))
    file = run / "metrics.jsonl"
    file.write_text("\n".join([GOOD[0], LINES[name], GOOD[1]]) + "\n")
    refused = {
        f"{file}:2: is no line of metrics (": lambda: compare(run, run),
        f"{file}:2: cannot be read as JSON (": lambda: read_metrics(run / "adapter"),
    }
    for said, read in refused.items():
        with pytest.raises(CheckpointError) as error:
            read()
        assert str(error.value).startswith(said)
        assert error.value.__suppress_context__
    closed = closing_facts(run)
    assert closed["unread_metrics"] == 1 and closed["losses"]["last"] == {"loss": 1.5}
    page = read_run(run)
    shown = 3 if name in PYTHON_READS else 2
    assert [row["step"] for row in page.train][:2] == [1, 2] and len(page.train) == shown
    counted = ["metrics.jsonl: 1 line is no JSON object with a step"]
    assert page.problems == ([] if name in PYTHON_READS else counted)


def test_what_is_json_and_no_line_of_metrics(run):
    (run / "run.json").write_text(json.dumps(WRITTEN))
    (run / "metrics.jsonl").write_text("\n".join([GOOD[0], "[7]", "", GOOD[1]]))
    assert read_metrics(run / "adapter") == [
        {"step": 1, "loss": 2.0},
        {},
        {"step": 2, "loss": 1.5},
    ]
    with pytest.raises(CheckpointError, match=r":2: .*'list' object .*train the recipe again"):
        compare(run, run)
    page = read_run(run)
    assert len(page.train) == 2
    assert page.problems == ["metrics.jsonl: 2 lines are no JSON objects with a step"]


def test_metrics_that_are_not_there(run):
    assert read_metrics(run / "adapter") == []
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: no such file; expected the met"):
        compare(run, run)
    (run / "run.json").write_text(json.dumps(WRITTEN))
    assert read_run(run).problems == ["metrics.jsonl cannot be read: No such file or directory"]
    (run / "run.json").unlink()
    (run / "metrics.jsonl").write_text(GOOD[0])
    assert read_metrics(run / "adapter") == [], "they belong to no run"


def test_lines_are_numbered_as_an_editor_numbers_them(run):
    file = run / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\r\n\r\n{"step": 2}')
    assert list(read_lines(file, lambda *_: None)) == [(1, {"step": 1}), (3, {"step": 2})]
    with pytest.raises(CheckpointError, match=rf"{file}:2: odd \(Expecting value: .*\); do this"):
        list(read_lines(file, refusing(file, "odd", "do this")))


LACKING = {
    "tokens": '{"step": 2, "loss": 1.5, "tokens_per_second": 10.0}',
    "a flipped bit": """{"step": 2, "loss": 1.5, "toke's": 4, "tokens_per_second": 9}""",
    "text for a number": '{"step": 2, "loss": 1.5, "tokens": "4", "tokens_per_second": 9}',
    "null for a number": '{"step": 2, "loss": 1.5, "tokens": null, "tokens_per_second": null}',
    "no step": '{"loss": 1.5}',
    "a list": "[1, 2]",
    "a rate of zero": '{"step": 2, "loss": 1.5, "tokens": 4, "tokens_per_second": 0}',
    "a loss in words": '{"step": 2, "loss": "low", "tokens": 4, "tokens_per_second": 9}',
}


@pytest.mark.parametrize("line", LACKING.values(), ids=LACKING)
def test_a_line_without_a_figure_costs_that_figure_alone(run, line):
    first, last = (
        json.dumps({"step": n, "loss": 2.0 / n, "tokens": 10 * n, "tokens_per_second": 5.0})
        for n in (1, 3)
    )
    (run / "metrics.jsonl").write_text(f"{first}\n{line}\n{last}\n")
    closed = closing_facts(run)
    assert closed["losses"]["first"] == {"loss": 2.0}
    assert closed["losses"]["last"] == {"loss": pytest.approx(2 / 3)}
    assert closed["tokens_per_second"] == pytest.approx(5.0, rel=0.2)
    assert ("unread_metrics" in closed) == line.startswith("[")


def test_what_a_preference_run_won_stands_in_its_record_with_its_reference(run):
    rows = [
        {"step": 1, "loss": 0.7, "reward_margin": 0.0, "reference_kl_final": 0.0, "grad_norm": 1.0},
        {
            "step": 2,
            "loss": 0.5,
            "reward_margin": 0.5,
            "logp_drift_chosen": -0.25,
            "reference_kl": None,
        },
        {"step": 2, "eval_loss": 0.6, "eval_reward_margin": 0.25, "eval_graded": 1.0},
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    closed = closing_facts(run)
    assert closed["preferences"] == {
        "first": {"reward_margin": 0.0, "reference_kl_final": 0.0},
        "last": {"reward_margin": 0.5, "logp_drift_chosen": -0.25},
        "eval": {"eval_reward_margin": 0.25},
    }
    assert closed["losses"]["eval"] == {"eval_loss": 0.6}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.7}))
    assert "preferences" not in closing_facts(run)
    fields = RunCard.model_fields
    assert fields["preferences"].default is None and fields["reference"].default is None
    written = {"of": "base", "rows": 3, "tokens": 40, "seconds": 0.5, "cached": False}
    assert Reference.model_validate(written).model_dump() == written
    (run / "run.json").write_text(json.dumps({"reference": written, "preferences": None}))
    assert read_record(run) == {"reference": written}
    (run / "run.json").write_text(json.dumps({"reference": {"of": 3}}))
    with pytest.raises(CheckpointError, match=r"reference\.of is 3, expected str"):
        read_record(run)


def test_a_file_of_lines_is_cut_back_without_waiting_or_reading_for_ever(run):
    file = run / "metrics.jsonl"
    file.write_text("\n".join([*GOOD, '{"step": 3', '{"step": 9}', "[3]"]) + "\n")
    keep_lines_until(file, 8)
    assert file.read_text().splitlines() == GOOD
    with file.open("ab") as stream:
        stream.truncate(1 << 26)  # zeros, as a power loss leaves them
    keep_lines_until(file, 8)
    assert file.read_text().splitlines() == GOOD
    file.unlink()
    os.mkfifo(file)
    for read in (lambda: keep_lines_until(file, 8), lambda: closing_facts(run)):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: is a pipe"):
            read()
    with pytest.raises(MachineError, match="is a pipe, and a file is written there"):
        open_lines(file)
    file.unlink()
    file.symlink_to(run.parent / "elsewhere")
    with pytest.raises(MachineError, match="is a link, and a file is written there"):
        open_lines(file)
    assert not (run.parent / "elsewhere").exists()
