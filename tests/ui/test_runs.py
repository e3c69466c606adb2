"""The list and the page of a run, from files alone; states, paths, hostile texts, the stop."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.run.holder import holder
from gptoss_tune.ui.runs.found import run_named, runs_below
from gptoss_tune.ui.runs.live import Tail

HOSTILE = '<script>alert(1)</script>"&\x1b[2J'


def test_the_state_of_a_run_is_what_its_process_does(runs, write):
    write.run(runs / "finished")
    write.run(runs / "stopped", status="stopped", done=30)
    write.run(runs / "guarded", status="stopped by the guard", done=3)
    write.hold(write.run(runs / "running", status="running", done=40))
    write.run(runs / "killed", status="running", done=40)
    write.hold(write.run(runs / "reused", status="running", done=4), process=os.getpid())
    os.utime(runs / "reused" / ".lock", (1e9, 1e9))  # older than the process of that number
    write.hold(write.run(runs / "remote", status="running", done=4), host="another-host")
    (runs / "deep" / "er").mkdir(parents=True)
    write.run(runs / "deep" / "er" / "unread", done=2, status=7)
    found, more = runs_below(runs)
    assert not more
    assert {one.name: one.state for one in found} == {
        "finished": "finished",
        "stopped": "stopped",
        "guarded": "failed",
        "running": "running",
        "killed": "ended",
        "reused": "ended",
        "remote": "elsewhere",
        "deep/er/unread": "unknown",
    }
    running = next(one for one in found if one.name == "running")
    assert (running.step, running.steps) == (40, 120)
    assert running.seconds_left == pytest.approx(80 * 6.2)
    assert running.loss == write.metrics(40, 120)["loss"]
    assert running.eval_loss == write.metrics(40, 120)["loss"] * 1.04


def test_the_list_is_sorted_by_any_column(client, runs, write):
    write.run(runs / "b", done=10, steps=100, status="stopped")
    write.run(runs / "a", done=90, steps=100, status="stopped")
    write.run(runs / "c", done=0, status="stopped")  # has no loss: last in both orders

    def names(query):
        page = client.get(f"/{query}").text
        return re.findall(r'/run\?run=(\w)"', page)

    assert names("?sort=name&order=rising") == ["a", "b", "c"]
    assert names("?sort=name&order=falling") == ["c", "b", "a"]
    assert names("?sort=loss&order=rising") == ["a", "b", "c"]
    assert names("?sort=loss&order=falling") == ["b", "a", "c"]
    assert names("?sort=progress") == ["a", "b", "c"]
    assert names("?sort=nonsense&order=nonsense")


def test_an_empty_folder_says_what_to_do(client):
    assert "gptoss-tune demo" in client.get("/").text


def test_a_folder_that_is_a_run_opens_it(client, runs, write):
    runs.rmdir()
    write.run(runs)
    assert "runs" in client.get("/").text
    assert client.get("/").url.path == "/run"


def test_texts_of_a_run_are_text(client, runs, write):
    name = '<img src=x onerror="alert(1)">&'
    run = write.run(
        runs / name,
        recipe={"model": {"name_or_path": HOSTILE}, "method": {"name": HOSTILE}},
        base={"name": HOSTILE},
        guard={"warnings": [HOSTILE]},
        status=HOSTILE,
    )
    write.evaluation(run, 0, [(HOSTILE, HOSTILE, HOSTILE, HOSTILE)])
    listed = client.get("/").text
    link = re.search(r'href="(/run\?run=[^"]+)"', listed)[1].replace("&amp;", "&")
    page = client.get(link)
    assert page.status_code == 200
    for html in (listed, page.text, client.get(link.replace("/run?", "/run/report?")).text):
        assert "<img" not in html and "<script>alert" not in html and "\x1b" not in html
    parts = client.get(link.replace("/run?", "/run/live?")).json()["parts"]
    assert "<script" not in "".join(parts.values())


@pytest.mark.parametrize(
    "name",
    ["..", "../outside", "/etc", "a/../../outside", "link", "", "a/", "./a", "a\0", "nothing", "."],
)
def test_no_path_leads_out_of_the_folder(client, runs, name, write):
    write.run(runs.parent / "outside")
    write.run(runs / "a")
    (runs / "link").symlink_to(runs.parent / "outside")
    with pytest.raises(RecipeError, match="no run below"):
        run_named(runs, name)
    assert [one.name for one in runs_below(runs)[0]] == ["a"]
    for path in ("/run", "/run/report", "/run/live"):
        assert client.get(path, params={"run": name}).status_code == 404
    assert client.post("/run/stop", {"run": name}).status_code == 422


def test_a_page_is_told_what_has_changed_only(client, runs, write):
    run = write.hold(write.run(runs / "a", status="running", done=10))
    first = client.get("/run/live?run=a").json()
    assert first["moves"] and "step 10 of 120" in first["words"]
    again = client.get(f"/run/live?run=a&version={first['version']}")
    assert again.status_code == 204
    write.lines(run, 11, 25, 120)
    later = client.get(f"/run/live?run=a&version={first['version']}").json()
    assert later["step"] == 25 and "left" in later["words"]
    assert later["parts"]["loss"] != first["parts"]["loss"]
    for part in ("loss", "optimisation", "machine"):
        assert "<svg" in later["parts"][part]


def test_lines_are_read_once_and_torn_ones_wait(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.rows() == []
    path.write_text('{"step": 1, "loss": 2.0}\nno json\n{"step": 2, "lo')
    assert [row["step"] for row in tail.rows()] == [1]
    with path.open("a") as stream:
        stream.write('ss": 1.5}\n')
    assert [row["step"] for row in tail.rows()] == [1, 2]
    cut = tmp_path / "cut"  # a resumed run replaces the file by a shorter one
    cut.write_text('{"step": 1, "loss": 2.0}\n')
    cut.replace(path)
    assert [row["step"] for row in tail.rows()] == [1]
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert tail.rows() == []


def test_a_finished_run_has_its_next_commands_and_its_report(client, runs, write):
    write.run(runs / "a b")
    page = client.get("/run?run=a%20b").text
    assert "gptoss-tune merge &#39;runs/a b&#39; --out &#39;a b-merged&#39;" in page
    assert "gptoss-tune chat" in page and "gptoss-tune push" in page and 'id="stop"' not in page
    report = client.get("/run/report?run=a%20b")
    assert "run report" in report.text
    assert "script-src" not in report.headers["content-security-policy"]
    assert "sandbox" in report.headers["content-security-policy"]


def test_a_damaged_run_costs_its_parts_alone(client, runs, write):
    run = write.run(runs / "a", done=0)
    (run / "run.json").write_text("{")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n[1]\n{"step": "x"}\n')
    assert client.get("/").status_code == 200
    assert client.get("/run?run=a").status_code == 200
    (run / "run.json").write_text(json.dumps({"recipe": [], "base": 3, "guard": "x"}))
    assert client.get("/").status_code == 200
    assert client.get("/run?run=a").status_code == 200


def test_only_a_process_of_this_machine_is_stopped(client, runs, write):
    run = write.run(runs / "a", status="running", done=4)
    assert 'id="stop"' not in client.get("/run?run=a").text
    assert client.post("/run/stop", {"run": "a"}).status_code == 422
    write.hold(run, host="another-host")
    assert client.post("/run/stop", {"run": "a"}).status_code == 422
    code = "import time, signal; print('up', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        write.hold(run, process=child.pid)
        assert holder(run).pid == child.pid
        assert 'id="stop"' in client.get("/run?run=a").text
        assert client.post("/run/stop", {"run": "a"}).json() == {"process": child.pid}
        assert child.wait(10) == -signal.SIGINT
    finally:
        child.kill()
        child.wait()
