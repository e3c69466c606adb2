"""Files of a stranger's run folder, as ``report`` and the other readers meet them.

Every kind of file that waits, does not end or leads elsewhere stands under every name that is read,
and the page is still written, says what it left out, and shows nothing from outside.
"""

import contextlib
import json
import os
import signal

import pytest

from gptoss_tune.errors import CheckpointError, GptossTuneError, MachineError
from gptoss_tune.recipe import load_recipe
from gptoss_tune.report.page import write_report
from gptoss_tune.run.record import load_run_recipe, read_record, record_of_adapter
from gptoss_tune.workflows.reproduce import compare, record_of

SECRET = "the key of somebody else"
LINES = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'


@pytest.fixture
def run(place):
    folder = place / "stranger"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "adapter").mkdir()
    (folder / "run.json").write_text(json.dumps({"run_id": "x", "status": "finished"}))
    (folder / "metrics.jsonl").write_text(LINES)
    (folder / "recipe.yaml").write_text("model: {name_or_path: openai/gpt-oss-20b}\n")
    (place / "secret").write_text(f'{{"status": "{SECRET}", "step": 1, "loss": 1}}')
    return folder


@pytest.fixture(autouse=True)
def ends():
    """Ends a test that waits: a pipe without a writer would hold the whole suite."""

    def waited(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def plant(path, kind):
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "an endless device":
        path.symlink_to("/dev/zero")
    elif kind == "a sparse terabyte":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "a link out":
        path.symlink_to("../secret" if path.parent.name == "stranger" else "../../secret")
    elif kind == "a broken link":
        path.symlink_to("nothing")
    elif kind == "a folder":
        path.mkdir()


KINDS = ("a pipe", "an endless device", "a sparse terabyte", "a link out", "a folder")
READ = ("run.json", "metrics.jsonl", "layers.jsonl", "evaluation/step-1.json", "recipe.yaml")


@pytest.mark.parametrize("kind", [*KINDS, "a broken link"])
@pytest.mark.parametrize("name", READ)
def test_a_page_is_written_whatever_a_file_is(run, name, kind):
    plant(run / name, kind)
    page = write_report([run]).read_text()
    assert SECRET not in page
    silent = name == "recipe.yaml" or (name == "layers.jsonl" and kind != "a sparse terabyte")
    if not silent and "broken" not in kind:
        assert "Files that could not be read whole" in page


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_of_a_run_refuses_them(run, kind):
    for name, readers in {
        "run.json": (read_record, record_of, lambda run: record_of_adapter(run / "adapter")),
        "metrics.jsonl": (lambda run: compare(run, run),),
        "recipe.yaml": (load_run_recipe,),
    }.items():
        kept = (run / name).read_bytes()
        plant(run / name, kind)
        for read in readers:
            with pytest.raises(GptossTuneError) as refused:
                read(run)
            assert SECRET not in str(refused.value) and name in str(refused.value)
        with contextlib.suppress(IsADirectoryError):
            (run / name).unlink()
        if (run / name).is_dir():
            (run / name).rmdir()
        (run / name).write_bytes(kept)


def test_an_endless_line_is_counted_and_not_read_on(run, monkeypatch):
    monkeypatch.setattr("gptoss_tune.run.jsonl.LONGEST_LINE", 1000)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "loss": "' + "a" * 100_000)
    page = write_report([run]).read_text()
    assert "1 line is no JSON object with a step" in page


def test_a_million_evaluations_are_not_all_read(run, monkeypatch):
    monkeypatch.setattr("gptoss_tune.report.parts.read._MOST_EVALUATIONS", 3)
    for step in range(5):
        (run / "evaluation" / f"step-{step}.json").write_text("{}")
    assert "evaluation: 2 evaluations are too many or too large" in write_report([run]).read_text()


@pytest.mark.parametrize("kind", ["a link out", "a broken link", "a pipe", "a hard link"])
def test_report_writes_through_nothing_that_lies_there(run, place, kind):
    """The link may lead to a .pth file of the environment, which Python runs when it starts."""
    part, secret = run / "report.html.part", (place / "secret").read_text()
    if kind == "a hard link":
        os.link(place / "secret", part)
    else:
        plant(part, kind)
    plant(run / "report.html", "a link out")
    page = write_report([run])
    assert not page.is_symlink() and page.read_text().startswith("<!doctype html>")
    assert (place / "secret").read_text() == secret and not (run / "nothing").exists()
    assert not os.path.lexists(part)


def test_a_folder_under_the_name_of_the_page_is_one_message(run):
    (run / "report.html.part").mkdir()
    with pytest.raises(MachineError, match=r"report\.html: cannot be written: a folder has"):
        write_report([run])


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml", ".lock", "metrics.jsonl"])
def test_a_run_that_holds_a_pipe_is_not_continued_and_not_waited_for(recipe, place, refused, name):
    run = place / "run"
    run.mkdir()
    record = {"run_id": "x", "fingerprint": {}, "changes": []}
    (run / "run.json").write_text(json.dumps(record))
    plant(run / name, "a pipe")
    if name in ("run.json", ".lock"):
        refused(["train", recipe], "is a pipe", file=run / name, code=2 + (name == ".lock"))
    elif name == "recipe.yaml":
        with pytest.raises(GptossTuneError, match="got a pipe"):
            load_recipe(run / name)
    else:
        from gptoss_tune.run.jsonl import keep_lines_until

        with pytest.raises(CheckpointError, match="is a pipe"):
            keep_lines_until(run / name, 1)


@pytest.mark.parametrize(
    "facts",
    [
        {"environment": {"processes": None}},
        {"environment": {}},
        {"environment": {"processes": 0}},
        {"environment": {"processes": -(10**30)}},
        {"micro_batch": {"asked": 1}},
        {"micro_batch": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": None}},
    ],
)
def test_a_record_that_reproduce_could_not_start_from(run, facts):
    whole = {
        **{"run_id": "x", "status": "finished", "command": {}, "recipe": {}, "seeds": {}},
        "base": {"name": "b", "revision": None, "fingerprint": {}},
        **{"data": [], "hardware": {}, "steps": 1, "tokens": {}, "tokens_per_second": None},
        "environment": {"processes": 1},
        "losses": {"first": {}, "last": {}, "eval": {}},
        **{"seconds": 1.0, "peak_memory_bytes": 1, "guard": {}},
    }
    (run / "run.json").write_text(json.dumps(whole))
    assert record_of(run)["run_id"] == "x"
    (run / "run.json").write_text(json.dumps(whole | facts))
    with pytest.raises(CheckpointError, match=r"run\.json: .*(expected a number from 1|expected)"):
        record_of(run)
