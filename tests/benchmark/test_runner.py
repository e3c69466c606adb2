"""The runner: k of n, what is asked again and what is not, a run that is killed in the middle."""

import dataclasses
import io
import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from gptoss_tune.benchmark import runner
from gptoss_tune.benchmark.cache import AnswerCache, answer_key, cache_folder
from gptoss_tune.benchmark.figures import figures_of
from gptoss_tune.benchmark.runner import measure
from gptoss_tune.benchmark.subjects.subject import Asking, UnreadableServer
from gptoss_tune.benchmark.table import figures_table, print_figures
from gptoss_tune.evaluate.parse import Said


@pytest.fixture
def cache(tmp_path):
    return AnswerCache(tmp_path / "cache")


def cell(figures, subject, suite=0):
    return figures["suites"][suite]["subjects"][subject]


def test_a_planted_answerer_scores_exactly_k_of_n(suite, scripted, cache):
    base, tuned = scripted("base", lambda line, seed: line <= 3), scripted("tuned")
    figures = figures_of(measure([suite(10)], [base, tuned], cache))
    assert cell(figures, "base")["score"] == 0.3 and cell(figures, "base")["right"] == 3
    assert cell(figures, "tuned")["score"] == 1.0
    assert cell(figures, "base")["difference"] is None
    assert cell(figures, "tuned")["difference"]["value"] == pytest.approx(0.7)
    assert not cell(figures, "tuned")["difference"]["within_noise"]
    assert base.closed == tuned.closed == 1
    verdicts = [a["grade"]["passed"] for a in figures["answers"] if a["subject"] == "base"]
    assert verdicts == [True] * 3 + [False] * 7


def test_a_small_change_is_called_noise(suite, scripted, cache):
    base = scripted("base", lambda line, seed: line % 2 == 0)
    tuned = scripted("tuned", lambda line, seed: line % 2 == 0 or line == 1)
    found = cell(figures_of(measure([suite(20)], [base, tuned], cache)), "tuned")["difference"]
    assert found["value"] == pytest.approx(0.05) and found["within_noise"]


def test_the_second_time_nothing_is_asked(suite, scripted, cache):
    first, again = scripted("a"), scripted("a")
    before = figures_of(measure([suite(4)], [first], cache))
    after = figures_of(measure([suite(4)], [again], cache))
    assert len(first.asked) == 4 and again.asked == []
    assert [a["kept"] for a in after["answers"]] == [True] * 4
    for figures in (before, after):
        figures["answers"] = [{**a, "kept": None} for a in figures["answers"]]
        figures["created"] = None
    assert before == after


def test_fresh_asks_all_again_and_keeps_the_new_answers(suite, scripted, tmp_path):
    folder = tmp_path / "cache"
    measure([suite(3)], [scripted("a", lambda line, seed: False)], AnswerCache(folder))
    again = scripted("a")
    measure([suite(3)], [again], AnswerCache(folder, fresh=True))
    assert len(again.asked) == 3
    third = scripted("a")
    figures = figures_of(measure([suite(3)], [third], AnswerCache(folder)))
    assert third.asked == [] and cell(figures, "a")["score"] == 1


def test_only_what_changed_is_asked_again(suite, questions, scripted, cache):
    measure([suite(4)], [scripted("a")], cache)
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(4)]
    rows[1]["prompt"] = "What is 1 plus 1?"
    rows[2]["answer"] = "another"  # graded anew, not asked anew
    changed = dataclasses.replace(suite(4), questions=tuple(questions(*rows)))
    again = scripted("a")
    figures = figures_of(measure([changed], [again], cache))
    assert [source.rpartition(":")[2] for source, *_ in again.asked] == ["2"]
    assert cell(figures, "a")["right"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"efforts": ("high",)},
        {"max_new_tokens": 65},
        {"temperature": 0.5},
    ],
)
def test_another_effort_limit_or_temperature_is_asked_anew(suite, scripted, cache, change):
    measure([suite(3)], [scripted("a")], cache)
    again = scripted("a")
    measure([suite(3, **change)], [again], cache)
    assert len(again.asked) == 3


def test_another_adapter_is_asked_anew(suite, scripted, cache):
    measure([suite(3)], [scripted("a")], cache)
    other = scripted("a")
    other.identity = other.identity | {"adapter": "another"}
    measure([suite(3)], [other], cache)
    assert len(other.asked) == 3


def test_a_seed_matters_only_where_tokens_are_drawn(questions):
    (one,) = questions({"prompt": "Hi", "answer": "x"})

    def key(**asking):
        return answer_key({"a": 1}, one, Asking(64, **asking))

    assert key(seed=1) == key(seed=2)
    assert key(seed=1, temperature=0.5) != key(seed=2, temperature=0.5)
    assert key(top_p=0.9, temperature=0.5) != key(temperature=0.5)
    assert key() != answer_key({"a": 2}, one, Asking(64))


def test_an_answer_comes_back_as_it_was(suite, scripted, cache):
    subject = scripted("a", problems=("no end",), ended="length", tokens=None, thought=None)
    question = suite(1).questions[0]
    said = subject.says(question, Asking(64))
    more = (Said("analysis", None, "é", (7, 8)), Said("commentary", "functions.f", "{}", (9,)))
    answer = dataclasses.replace(said.answer, token_ids=(1, 2, 3), messages=more)
    said = dataclasses.replace(said, answer=answer)
    cache.put("ab" * 32, said)
    assert cache.get("ab" * 32) == said


def test_a_corrected_format_check_judges_the_same_answers(suite, scripted, cache, monkeypatch):
    monkeypatch.setattr(runner, "problems", lambda answer, question, limit: ["a false alarm"])
    first = figures_of(measure([suite(3)], [scripted("a")], cache))
    monkeypatch.undo()
    again = scripted("a")
    second = figures_of(measure([suite(3)], [again], cache))
    assert (cell(first, "a")["health"], cell(second, "a")["health"]) == (0, 1)
    assert again.asked == []


def test_a_loop_is_found_in_a_kept_answer(suite, scripted, cache):
    def loops(question, asking):
        said = scripted("a").says(question, asking)
        message = dataclasses.replace(said.answer.messages[0], token_ids=(5,) * 80)
        return dataclasses.replace(
            said, answer=dataclasses.replace(said.answer, messages=(message,))
        )

    for kept in (False, True):
        subject = scripted("a")
        subject.says = loops
        (answer,) = figures_of(measure([suite(1)], [subject], cache))["answers"]
        assert answer["kept"] == kept
        assert answer["health"] == ["runaway text: the same 1 token repeats without end"]


def test_a_torn_answer_is_asked_again(suite, scripted, tmp_path):
    folder = tmp_path / "cache"
    measure([suite(3)], [scripted("a")], AnswerCache(folder))
    for number, path in enumerate(sorted(folder.rglob("*.json"))):
        if number == 1:
            path.write_text(path.read_text()[:40])
    again = scripted("a")
    figures = figures_of(measure([suite(3)], [again], AnswerCache(folder)))
    assert len(again.asked) == 1 and cell(figures, "a")["score"] == 1


def test_what_was_answered_before_ctrl_c_is_kept(suite, scripted, cache):
    stopped = scripted("a")
    says = stopped.says

    def until_the_third(question, asking):
        if len(stopped.asked) == 3:
            raise KeyboardInterrupt
        return says(question, asking)

    stopped.says = until_the_third
    with pytest.raises(KeyboardInterrupt):
        measure([suite(5)], [stopped], cache)
    assert stopped.closed == 1
    again = scripted("a")
    measure([suite(5)], [again], cache)
    assert len(again.asked) == 3


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gptoss-tune" / "answers"


def test_several_answers_are_drawn_by_other_seeds_and_give_pass_at_k(suite, scripted, cache):
    # Row 1 is right at one seed of four, row 2 at two: pass@2 = (1/2 + 5/6) / 2.
    subject = scripted("a", lambda line, seed: seed - 7 < line)
    figures = figures_of(measure([suite(2, samples=4, temperature=1, seed=7)], [subject], cache))
    assert sorted({seed for *_, seed in subject.asked}) == [7, 8, 9, 10]
    found = cell(figures, "a")
    assert found["answers"] == 8 and found["right"] == 3
    assert found["pass_at"] == {
        "1": pytest.approx(3 / 8),
        "2": pytest.approx(2 / 3),
        "4": 1.0,
    }


def test_efforts_of_one_row_are_one_cluster(suite, scripted, cache):
    """Three efforts answered alike are no three rows: the interval is that of the rows."""
    right = lambda line, seed: line <= 10  # noqa: E731
    one = measure([suite(20)], [scripted("a", right)], cache)
    three = measure([suite(20, efforts=("low", "medium", "high"))], [scripted("a", right)], cache)
    alone, together = (cell(figures_of(m), "a")["interval"] for m in (one, three))
    assert together[1] - together[0] > 0.8 * (alone[1] - alone[0])


def test_a_server_that_cannot_be_read_has_no_score(suite, scripted, cache):
    glued = scripted("glued")

    def unreadable(question, asking):
        raise UnreadableServer("http://x: does not parse harmony")

    glued.says = unreadable
    figures = figures_of(measure([suite(3)], [scripted("base"), glued], cache))
    assert cell(figures, "glued") is None and cell(figures, "base")["score"] == 1
    assert figures["subjects"][1]["refused"] == "http://x: does not parse harmony"
    assert not [a for a in figures["answers"] if a["subject"] == "glued"]
    text = printed(figures)
    assert "refused" in text and "does not parse harmony" in text


def test_shares_and_lengths(suite, scripted, cache):
    long = scripted("long", tokens=64, thought=60, ended="length", problems=("no end",))
    uncounted = scripted("uncounted", tokens=None)
    figures = figures_of(measure([suite(4)], [long, uncounted], cache))
    found = cell(figures, "long")
    assert (found["tokens"], found["thinking"]) == (64, 60)
    assert (found["cut_off"], found["health"]) == (1, 0)
    assert cell(figures, "uncounted")["tokens"] is None


def printed(figures, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    print_figures(figures, console)
    return console.export_text()


def test_the_table_fits_a_terminal(suite, scripted, cache):
    names = ["base", "tuned-on-many-long-rows-of-data", "merged bf16", "served"]
    subjects = [scripted(n, lambda line, seed: line % 3 != 0, tokens=12_345) for n in names]
    suites = [suite(12, "sums", samples=4, temperature=1), suite(30, "instruction-following")]
    figures = figures_of(
        measure(suites, subjects, cache),
        {"sums": {"share": 0.25, "questions": 12, "rows": 9, "found": [1, 2, 3]}},
    )
    text = printed(figures)
    assert max(map(len, text.splitlines())) <= 100
    assert figures_table(figures).columns[-1].header == "seen" and "25.0" in text
    assert "3 of 12 questions are in the 9 rows of training" in text
    for words in ("tuned-on-many-lon...", "within noise", "12,345", "4: 66.7", "12 questions"):
        assert words in text, words


KILLED = """
import json, sys
from gptoss_tune.benchmark.cache import AnswerCache
from gptoss_tune.benchmark.runner import measure
from gptoss_tune.benchmark.subjects.subject import Asking
from gptoss_tune.benchmark.subjects.server import ChatServer, Served
from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.evaluate.prompts import read_questions
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from pathlib import Path

url, rows, cache = sys.argv[1:]
renderer = Renderer(load_vocabulary(), RenderSettings())
asked = read_questions([rows], renderer, limit=99, efforts=["low"], max_new_tokens=64)
suite = Suite("sums", "", tuple(asked), Asking(64))
subject = Served("served", ChatServer(url, "tuned"), renderer, concurrency=1)
found = measure([suite], [subject], AnswerCache(Path(cache)))
print(json.dumps([one.passed for one in found.answers["sums", "served"]]))
"""


def test_after_kill_9_only_the_rest_is_asked(chat_server, tmp_path):
    blocked = threading.Event()
    state = {"blocks": True}

    def says(body, number):
        text = body["messages"][-1]["content"]
        if "planet" in text:
            return {"content": "Earth", "reasoning": "a"}
        left = int(text.split()[2])
        if left == 5 and state["blocks"]:
            blocked.set()
            time.sleep(30)
        return {"content": str(2 * left), "reasoning_content": "Add."}

    server = chat_server(says)
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(8)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-c", KILLED, server.url, str(rows), str(tmp_path / "cache")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        assert blocked.wait(timeout=120), "the sixth question was never asked"
        while len(list((tmp_path / "cache").rglob("*.json"))) < 5:  # what came is being kept
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(server.asked) == 6
    state["blocks"] = False
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert json.loads(again.stdout) == [True] * 8
    assert [int(text.split()[2]) for text in server.asked[6:]] == [5, 6, 7]
