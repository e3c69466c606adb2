"""``run.json`` that was cut, damaged or made up: one message that names the file, no traceback."""

import json
import math
import shlex

import pytest

from gptoss_tune.errors import CheckpointError, GptossTuneError
from gptoss_tune.files.strict_json import parse
from gptoss_tune.run.checkpoints import publish, stage
from gptoss_tune.run.record import note_verification, prompts_of, read_record, update_record
from gptoss_tune.run.start import Start
from gptoss_tune.train.distributed.watchdog import join
from gptoss_tune.train.memory import find_batch_size
from gptoss_tune.train.resume.changes import settle
from gptoss_tune.workflows.reproduce import record_of

RECORD = {
    "run_id": "this",
    "status": "stopped",
    "fingerprint": {"batch": 2, "steps": 4},
    "changes": [{"step": 1, "name": "processes", "was": 1, "now": 2}],
    "micro_batch": {"asked": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    "base": {"name": "b", "fingerprint": {"config": "0", "weights": "1"}},
    "data": [{"split": "train", "path": "rows.jsonl", "sha256": "0", "revision": None}],
    "environment": {"libraries": {"torch": "2"}, "processes": 1},
    "hardware": {"cores": 2},
    "verification": [{"command": "merge"}],
}
WHOLE = json.dumps(RECORD, indent=1).encode()
DIGITS = b"7" * 400
DEEP = b"[" * 600 + b"]" * 600
TEXTS = {
    "cut": WHOLE[: len(WHOLE) // 2],
    "empty": b"",
    "zeros, as after a power loss": bytes(len(WHOLE)),
    "not UTF-8": WHOLE.replace(b"this", b"th\xffs"),
    "UTF-16": WHOLE.decode().encode("utf-16"),
    "a key twice": WHOLE.replace(b'"status"', b'"run_id"', 1),
    "NaN twice": WHOLE.replace(b'"processes": 1', b'"processes": NaN, "processes": NaN'),
    "infinity spelt as a number": WHOLE.replace(b'"processes": 1', b'"processes": 1e999'),
    "5000 digits": WHOLE.replace(b'"processes": 1', b'"processes": ' + b"7" * 5000),
    "nested deeper than can be written": WHOLE.replace(b'"cores": 2', b'"cores": ' + DEEP),
    "a list": b"[]",
    "a folder of digits": b'{"run_id": ' + DIGITS + b"}",
}
VALUES = [7, -1, 0, 1.5, True, "x", "\ud800", [], {}, [[]], [7], {"a": [1]}, int(DIGITS), None]


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_damaged_record_is_one_message_for_every_reader(recipe, run, text, claim):
    (run / "run.json").write_bytes(text)
    readers = [
        lambda: claim(recipe()),
        lambda: update_record(run, status="running"),
        lambda: note_verification([str(run)], "merge", {"folder": "", "passed": 1, "checks": []}),
        lambda: record_of(run),
    ]
    for read in readers:
        with pytest.raises(CheckpointError, match=r"run\.json: .*restore") as refused:
            read()
        assert "\n" not in str(refused.value)
    assert (run / "run.json").read_bytes() == text, "what cannot be read is left as it is"


def paths(value, path=()):
    """Yield the path of every value inside a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("path", list(paths(RECORD))[1:], ids=lambda p: ".".join(map(str, p)))
def test_any_value_in_a_record_is_taken_or_refused_and_never_trips_a_reader(
    recipe, run, path, claim
):
    settings, state = recipe(), join()
    refused = 0
    for value in VALUES:
        raw = json.dumps(replaced(RECORD, path, value)).encode()
        (run / "run.json").write_bytes(raw)
        try:
            start = claim(settings)
            now = {"batch": 2, "steps": 4, "processes": 1}
            settle(
                start.before,
                now,
                allowed=[],
                recorded=start.changes,
                step=0,
                where=str(run),
                train=settings.train,
            )
            checkpoint = run / "checkpoint-1"
            used = find_batch_size._used_before(Start(run, checkpoint, (), "this"), 2, state)
            assert used in (1, 2)
            update_record(run, status="running")
            read_record(run)
        except GptossTuneError as error:
            refused += 1
            assert str(run) in str(error)
    assert refused or path in {
        ("changes", 0, "was"),
        ("changes", 0, "now"),
        ("micro_batch", "asked"),
        ("data", 0, "split"),
        ("data", 0, "revision"),
        ("environment", "libraries", "torch"),
        ("hardware", "cores"),
        ("verification", 0, "command"),
    }, "nothing was refused here"


def test_numbers_and_depth_that_python_reads_and_cannot_use():
    assert parse(b"[1e308, 123456789012345678901234567890]")[0] == 1e308
    for text in (b"1e309", b"-1e309", b"[" * 101 + b"]" * 101):
        with pytest.raises(ValueError, match=r"too large|levels deep"):
            parse(text)
    assert parse(b"[" * 100 + b"]" * 100)


def test_what_is_not_finite_is_null_and_named_until_it_is_written_again(run):
    facts = {"eval_loss": math.nan, "losses": {"eval": {"eval_loss": math.inf}}, "steps": 2}
    update_record(run, run_id="this", **facts)
    text = (run / "run.json").read_bytes()
    assert parse(text)["eval_loss"] is None, "strict JSON"
    kept = {"eval_loss": "nan", "losses.eval.eval_loss": "inf"}
    assert read_record(run)["not_finite"] == kept
    assert update_record(run, status="finished")["not_finite"] == kept
    assert update_record(run, eval_loss=1.5)["not_finite"] == {"losses.eval.eval_loss": "inf"}
    assert "not_finite" not in update_record(run, losses={"eval": {"eval_loss": 1.5}})


def test_a_record_that_python_wrote_with_nan_is_read_by_all(recipe, run, claim):
    """Written by an earlier version, or by whoever edits records with json.dump."""
    odd = {"eval_loss": math.nan, "verification": [{"nats": math.inf}], "loss": -math.inf}
    (run / "run.json").write_text(json.dumps(RECORD | odd))
    assert claim(recipe()).run_id == "this"
    record = read_record(run)
    assert record["not_finite"] == {
        "eval_loss": "nan",
        "verification[0].nats": "inf",
        "loss": "-inf",
    }
    note_verification([str(run)], "merge", {"folder": "", "passed": True, "checks": []})
    assert parse((run / "run.json").read_bytes())["verification"][0] == {"nats": None}


def test_a_damaged_record_tells_the_way_on_and_the_way_works(recipe, run, claim):
    staged = stage(run)
    (staged / "state.json").write_text("{}")
    publish(staged, run / "checkpoint-2", run_id="this", step=2, fingerprint={"batch": 2})
    for damaged in ('{"run_id": "th', "{}"):
        (run / "run.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="goes on from checkpoint-2 in a new") as refused:
            claim(recipe())
        *_, resume, output = shlex.split(str(refused.value))
        start = claim(
            recipe(resume, output.replace("NEW", str(run.parent / f"new-{len(damaged)}")))
        )
        assert (start.checkpoint, start.step, start.before) == (
            run / "checkpoint-2",
            2,
            {"batch": 2},
        )


def test_the_effort_of_a_run_is_the_one_of_most_samples():
    recipe = {"data": {"reasoning_effort": "medium", "date": "2026-01-02"}}
    assert prompts_of({"recipe": recipe, "efforts": {"low": 40, "medium": 2}}) == {
        "reasoning_effort": "low",
        "date": "2026-01-02",
    }
    for strange in ({}, {"utmost": 9}, {"low": "many"}, ["low"], None):
        told = prompts_of({"recipe": recipe, "efforts": strange})
        assert told["reasoning_effort"] == "medium", strange
    assert prompts_of({"efforts": {"high": 3}}) == {"reasoning_effort": "high"}
    assert prompts_of({}) == {}
