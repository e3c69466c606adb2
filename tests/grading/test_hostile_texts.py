"""Questions and answers of anyone: no grader hangs, grows, or runs what it reads."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.grading.bounded.worker import JobDied, OutOfTime, Worker, worker
from gptoss_tune.grading.grader import Grading
from gptoss_tune.grading.maths import Maths
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.grading.schema import JsonSchema

LONG = 190_000
"""Characters: just under what graders read."""
TEXTS = {
    "digits": "1" * LONG,
    "tower": "10**10**10 = 10^{10^{10^{10}}}",
    "exponent": "1e999999999999999999",
    "large exponent": "1e999999999",
    "division": "1e999999999/1e-999999999",
    "fractions": "1/" * (LONG // 2),
    "thousands": "1,111" * (LONG // 5),
    "blanks": " " * LONG,
    "lines": "\n" * LONG,
    "stars": "*" * LONG,
    "signs": "+-" * (LONG // 2),
    "open boxes": r"\boxed{" * (LONG // 7),
    "nested boxes": r"\boxed{" * 400 + "4" + "}" * 400,
    "many boxes": r"\boxed{4} " * 5_000,
    "announcements": "the answer is " * (LONG // 14),
    "announced far": "answer " + "x " * (LONG // 2),
    "parentheses": "(" * LONG,
    "nested parentheses": "(" * 900 + "4" + ")" * 900,
    "dollars": "$" * LONG,
    "formulas": "$x$ and " * 10_000,
    "letters": "A B C D E F G H I J " * 9_000,
    "brackets": "[" * LONG,
    "objects": '{"a":' * 30_000 + "1" + "}" * 30_000,
    "nul": "\0" * 1000 + "4",
    "surrogate": "4 \ud800",
    "frac": r"\frac{" * (LONG // 6),
    "sqrt": r"\sqrt{" * 200 + "2" + "}" * 200,
    "angular": "<<" * (LONG // 2),
    "words": "word " * (LONG // 5),
    "hyphens": "a-" * (LONG // 2),
    "open displays": "\\[" * (LONG // 2),
    "denials": "not A or " * (LONG // 9),
}
ROWS = {
    "exact": {"answer": "7391"},
    "number": {"answer": 7391, "grader": {"kind": "number", "unit": "km", "read": "last"}},
    "number with a decimal comma": {
        "answer": 7391,
        "grader": {"kind": "number", "decimal_comma": True, "relative_tolerance": 0.1},
    },
    "maths": {"answer": "7391", "grader": "maths"},
    "choice": {"answer": "B", "choices": ["word", "the answer", "x"], "grader": "choice"},
    "rules": {
        "rules": [
            *({"rule": name, "at_most": 3} for name in ("words", "sentences", "paragraphs")),
            *({"rule": name, "at_most": 3} for name in ("lines", "bullets", "numbered_items")),
            *({"rule": name, "at_least": 3} for name in ("highlighted", "headings")),
            {"rule": "placeholders", "exactly": 1},
            {"rule": "sections", "name": "x", "exactly": 1},
            {"rule": "keywords", "keywords": ["word word word", "x"]},
            *({"rule": name} for name in ("title", "json", "postscript", "two_answers")),
            *({"rule": name} for name in ("lowercase", "quotation", "no_list")),
            {"rule": "script", "script": "han"},
        ],
        "grader": {"kind": "rules", "verdict": "loose"},
    },
    "calls": {"calls": [{"name": "f", "arguments": {"a": 1}}], "grader": "calls"},
    "json_schema": {"schema": {"type": "object"}, "grader": "json_schema"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_no_text_takes_long_or_passes(name):
    grader, judge = read_grader(ROWS[name], "x:1"), Grading()
    used = psutil.Process().cpu_times().user
    for text in TEXTS.values():
        assert not judge.grade(grader, Given(text, (Call("f", text),)))["passed"]
    # Of this process, not by the clock: seconds for thirty texts, where one loop is minutes.
    assert psutil.Process().cpu_times().user - used < 60


@pytest.mark.parametrize("name", ROWS)
def test_a_text_that_is_longer_than_the_context_is_not_judged(name):
    grade = Grading().grade(read_grader(ROWS[name], "x:1"), Given("4" * 300_000))
    assert not grade["passed"]
    if name not in ("exact", "calls"):
        assert grade["note"] == "not judged: the answer has over 200,000 characters"


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "9" * 5000, "grader": "number"},
        {"answer": "10^10^10", "grader": "number"},
        {"answer": 10**400, "grader": "number"},
        {"answer": True, "grader": "number"},
        {"answer": "the sum of both", "grader": "maths"},
        {"answer": "(" * 3000, "grader": "maths"},
        {"answer": "B", "choices": ["x"] * 5000, "grader": "choice"},
        {"rules": [{"rule": "words", "at_most": 10**30}], "grader": "rules"},
        {"rules": [{"rule": "title"}] * 5000, "grader": "rules"},
        {"calls": [{"name": "f"}] * 5000, "grader": "calls"},
        {"calls": json.loads('[{"name": "f", "arguments": ' + '{"a":' * 90 + "1" + "}" * 91 + "]")},
        {"schema": json.loads('{"not":' * 90 + "{}" + "}" * 90), "grader": "json_schema"},
    ],
)
def test_a_row_that_cannot_be_judged_by_is_refused(row):
    with pytest.raises(DataError, match=r"^x:1: .{10,1000}$"):
        read_grader({"grader": "calls", **row}, "x:1")


HOSTILE_CODE = [
    "__import__('os').system('touch {file}')",
    "1+__import__('os').system('touch {file}')",
    "$__import__('os').system('touch {file}')$",
    r"\boxed{{__import__('os').system('touch {file}')}}",
    "The answer is exec(\"open('{file}','w')\")",
    r"$\text{{__import__('os').system('touch {file}')}}$",
    "open('{file}', 'w').write('x')",
    r"$\operatorname{{eval}}(open('{file}','w'))$",
    "(1).__class__.__base__.__subclasses__()[0]('{file}')",
    "1;import os;os.system('touch {file}')",
    r"\input{{{file}}} \write18{{touch {file}}}",
]


@pytest.mark.parametrize("template", HOSTILE_CODE)
def test_what_is_read_as_mathematics_is_never_run(template, tmp_path):
    text = template.format(file=tmp_path / "written")
    judge = Grading()
    for right, given in ((text, "4"), ("4", text), (text, text)):
        judge.grade(Maths((right,)), Given(given))
    assert list(tmp_path.iterdir()) == []


def test_the_control_sympify_would_have_run_it(tmp_path):
    import sympy

    with pytest.raises(Exception):  # noqa: B017 - whatever SymPy makes of the number
        sympy.sympify(f"open({str(tmp_path / 'written')!r}, 'w').no_such_name")
    assert list(tmp_path.iterdir()) != []


@pytest.mark.parametrize("text", [r"9^{9^{9^{9}}}", "9**9**9**9", r"\sum_{n=1}^{10^{12}} n^{n}!"])
def test_mathematics_without_end_is_killed_and_the_next_is_judged(text):
    own = worker("maths")
    own.ask({"right": ["4"], "tries": [["4"]], "digits": 6}, 60)
    before = own.started
    verdict = Maths(("4",)).judge(Given(rf"\boxed{{{text}}}"), 0.5)
    assert not verdict.passed
    assert Maths(("4",)).judge(Given("4"), 60).passed
    # Killed, dead of its memory, or refused by SymPy: never a process that still computes.
    assert own.started in (before, before + 1)
    if text == r"9^{9^{9^{9}}}":
        assert verdict.note == "not judged: the comparison did not end within 0.5 s"
        assert own.started == before + 1


def test_a_pattern_of_a_schema_that_backtracks_is_killed():
    grader = read_grader({"schema": {"pattern": "^(a+)+$"}, "grader": "json_schema"}, "x:1")
    verdict = grader.judge(Given(json.dumps("a" * 60 + "b")), 0.5)
    assert verdict.note == "not judged: validation did not end within 0.5 s"
    assert grader.judge(Given('"aaa"'), 60).passed


def test_a_schema_that_refers_to_itself_ends():
    grader = JsonSchema('{"$ref": "#"}')
    assert grader.judge(Given("1"), 60).note == "not judged: RecursionError"


@pytest.fixture
def asked():
    """A server on loopback, and the paths that it was asked for."""
    paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/schema.json", paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_schema_fetches_nothing(asked):
    url, paths = asked
    for schema in ({"$ref": url}, {"items": {"$ref": url}}, {"$dynamicRef": url}):
        with pytest.raises(DataError, match="nothing is fetched"):
            read_grader({"schema": schema, "grader": "json_schema"}, "x:1")
        verdict = JsonSchema(json.dumps(schema)).judge(Given("[1]"), 60)
        assert not verdict.passed and "does not hold" in verdict.note
    with pytest.raises(DataError, match="does not hold"):
        read_grader({"schema": {"$ref": "#/$defs/no"}, "grader": "json_schema"}, "x:1")
    named = {"$id": url, "$schema": url, "type": "integer"}
    assert (
        read_grader({"schema": named, "grader": "json_schema"}, "x:1").judge(Given("1"), 60).passed
    )
    assert paths == []


def test_the_process_has_little_memory_no_files_and_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    own = Worker("schema")
    try:
        own.ask({"schema": {}, "value": 1}, 60)
        process = psutil.Process(own._process.pid)
        assert "HF_TOKEN" not in process.environ() and process.cwd() == os.path.abspath(os.sep)
        assert process.rlimit(psutil.RLIMIT_AS)[1] == 2 << 30
        assert process.rlimit(psutil.RLIMIT_FSIZE)[1] == 0
    finally:
        own.close()
    assert not process.is_running()


def test_an_interrupted_job_leaves_no_reply_for_the_next(monkeypatch):
    own = Worker("schema")
    task = {"schema": {"type": "integer"}, "value": "seven"}
    assert own.ask(task, 20)["wrong"] is not None

    def interrupted(timeout):
        raise KeyboardInterrupt

    replies = own._replies
    with monkeypatch.context() as patched:
        patched.setattr(replies, "get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own.ask(task, 20)
    assert own.ask({"schema": {"type": "integer"}, "value": 7}, 20) == {"wrong": None}
    own.close()


def test_a_factorial_that_fills_all_memory_or_time_ends():
    text = r"(10^{9})!"
    verdict = Maths(("4",)).judge(Given(rf"\boxed{{{text}}}"), 2.0)
    assert not verdict.passed
    assert Maths(("4",)).judge(Given("4"), 60).passed


def test_a_job_that_is_too_large_is_not_sent():
    own = Worker("schema")
    with pytest.raises(OutOfTime):
        own.ask({"schema": {}, "value": "x" * (3 << 20)}, 60)
    assert own.started == 0


def test_a_process_that_was_killed_is_started_again():
    own = Worker("schema")
    try:
        assert own.ask({"schema": {"type": "integer"}, "value": 1}, 60) == {"wrong": None}
        own._process.kill()
        own._process.wait()
        assert own.ask({"schema": {"type": "integer"}, "value": 1}, 60) == {"wrong": None}
        assert own.started == 2
        stopped = psutil.Process(own._process.pid)
        stopped.suspend()
        with pytest.raises(OutOfTime):
            own.ask({"schema": {}, "value": 1}, 0.2)
        assert not stopped.is_running()
    finally:
        own.close()


def test_several_threads_get_their_own_verdicts():
    """math-verify's own timeout, by signals, fails outside of the main thread."""
    found = {}

    def judge(n):
        found[n] = Maths((f"{n}",)).judge(Given(rf"\boxed{{\frac{{{2 * n}}}{{2}}}}"), 60).passed

    threads = [threading.Thread(target=judge, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)


def test_a_child_of_this_process_has_a_worker_of_its_own():
    own = worker("schema")
    own.ask({"schema": {}, "value": 1}, 60)
    kept = own._process.pid
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own.ask({"schema": {"type": "integer"}, "value": 1}, 60)
            code = 0 if own._process.pid != kept else 2
            own.close()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert own._process.pid == kept and psutil.pid_exists(kept)
    assert own.ask({"schema": {"type": "integer"}, "value": "x"}, 60)["wrong"] is not None


def test_a_process_that_dies_of_its_job_is_told():
    own = Worker("schema")
    try:
        own.ask({"schema": {}, "value": 1}, 60)
        timer = threading.Timer(0.3, own._process.kill)
        psutil.Process(own._process.pid).suspend()
        timer.start()
        with pytest.raises(JobDied):
            own.ask({"schema": {}, "value": 1}, 60)
    finally:
        own.close()
