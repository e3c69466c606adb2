"""The page of a run that learns from rewards: its curves, its episodes, its words."""

import importlib.util
import json
from pathlib import Path

import pytest

from gptoss_tune.report import curves, facts
from gptoss_tune.report.page import write_report
from gptoss_tune.report.parts.read import read_run
from gptoss_tune.report.reinforcement.curves import rewards
from gptoss_tune.report.reinforcement.episodes import MOST_MESSAGES, episodes
from gptoss_tune.run.card import closing_facts
from gptoss_tune.ui.runs.live import LiveRuns

spec = importlib.util.spec_from_file_location("html_page", Path(__file__).parent / "html_page.py")
html_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(html_page)
HOSTILE, STRANGE = html_page.HOSTILE, html_page.STRANGE
parsed, words = html_page.parsed, html_page.words

TITLES = [
    *("Reward", "Reward by component", "Groups without signal", "Length of an episode"),
    *("Cut off at a limit", "Entropy", "Sampler against trainer", "Tokens held back"),
    *("Calls of tools", "Spread of rewards in a group", "Sampling", "Episodes a second"),
    "Time of playing",
]


def titles(drawn):
    return [part.partition("</h3>")[0] for part in "".join(drawn).split("<h3>")[1:]]


def figure(drawn, title):
    (found,) = [one for one in drawn if f"<h3>{title}</h3>" in one]
    return found


def add(run, **figures):
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(figures) + "\n")


def change_method(run, **settings):
    record = json.loads((run / "run.json").read_text())
    record["recipe"]["method"] |= settings
    (run / "run.json").write_text(json.dumps(record))


def test_what_a_run_has_is_drawn_and_nothing_else(make_rewarded_run, make_run):
    run = make_rewarded_run()
    assert titles(rewards(read_run(run))) == TITLES
    add(run, step=21, loss=0.1, kl_reference=0.01, failed_rewards=2, resampled=3)
    more = titles(rewards(read_run(run)))
    assert set(more) - set(TITLES) == {"KL to the reference", "Counted and passed over"}
    assert rewards(read_run(make_run("sft"))) == []
    page = words(parsed(write_report([run])))
    assert "Rewards" in page and "Episodes to read" in page and "Preferences" not in page
    assert "Group relative policy optimisation (GRPO) of openai/gpt-oss-20b" in page
    assert "Episodes to read" not in words(parsed(write_report([make_run("other")])))


def test_components_are_those_of_the_metrics_with_their_held_out_lines(make_rewarded_run):
    run = make_rewarded_run()
    drawn = figure(rewards(read_run(run)), "Reward by component")
    for name in ("answer", "format", "answer, held out", "format, held out"):
        assert f">{name}<" in drawn
    assert ">std<" not in drawn, "a spread is no component"


def test_a_component_named_as_a_figure_of_preferences_is_a_component(make_rewarded_run):
    run = make_rewarded_run()
    add(run, step=21, loss=0.1, reward=1.0, reward_margin=0.5, reward_accuracy=0.5)
    read = read_run(run)
    assert curves.preferences(read) == []
    assert ">margin<" in figure(rewards(read), "Reward by component")
    assert "share of pairs" not in words(parsed(write_report([run])))


def test_the_bound_of_the_mismatch_is_drawn(make_rewarded_run):
    run = make_rewarded_run()
    drawn = figure(rewards(read_run(run)), "Sampler against trainer")
    assert "stops at 0.05" in drawn and "stroke-dasharray" in drawn
    assert ">1e-5<" in drawn, "by powers of ten: a bound far above hides what moves below it"
    change_method(run, mismatch_kl_limit=None)
    assert "stops at" not in figure(rewards(read_run(run)), "Sampler against trainer")
    # With replayed experts in fp32 it is exactly 0, which has no power of ten.
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    exact = [row | {"mismatch_kl": 0.0} if "loss" in row else row for row in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exact))
    assert "numbers" in figure(rewards(read_run(run)), "Sampler against trainer")


def test_headline_figures_are_rewards_and_not_the_loss(make_rewarded_run):
    run = make_rewarded_run()
    told = {label: value for value, label, _ in facts.tiles(read_run(run))}
    assert told["reward, held out"] == "0.900" and told["tokens of an episode, held out"] == "50.0"
    assert not any("loss" in label for label in told)
    assert read_run(run).held_out[0]["eval_reward"] == pytest.approx(0.9)
    add(run, step=1, eval_reward=0.125)
    told = {label: value for value, label, _ in facts.tiles(read_run(run))}
    assert told["reward, held out"] == "0.125 → 0.900"


def test_best_middle_and_worst_of_the_first_and_the_last_phase(make_rewarded_run):
    run = make_rewarded_run()
    shown = episodes(read_run(run))
    for final in ("early 4", "early 2", "early 0", "late 4", "late 2", "late 0", "held out"):
        assert f">{final}</div>" in shown
    for final in ("early 1", "early 3", "late 1", "midway 4"):
        assert f">{final}</div>" not in shown
    assert shown.index("early 4") < shown.index("early 2") < shown.index("early 0")
    assert "best: reward 1.00" in shown and "worst: reward 0" in shown
    open_at = shown.index("late 4")
    assert shown.rindex("</details>", 0, open_at) > shown.rindex("<details>", 0, open_at)
    assert shown.index("<details>") < shown.index("early 4") < shown.index("</details>")
    assert shown.count("<summary>best, middle, worst</summary>") == 1, "the last phase is open"
    assert "step 20: 5 episodes sampled in training, mean reward 0.750" in shown
    assert "step 20: 1 episode held out, the likeliest tokens, mean reward 0.950" in shown
    assert "answer <b>1.00</b>, format <b>1.00</b>" in shown


def test_calls_and_results_look_unlike_what_is_thought_and_said(make_rewarded_run):
    run = make_rewarded_run()
    page = write_report([run])
    shown = page.read_text()
    for css, label, content in (
        ("asked", "user", "What does a pear cost?"),
        ("analysis", "analysis", "I look it up, 0.5."),
        ("call", "calls functions.price", "{&quot;item&quot;: &quot;pear&quot;}"),
        ("result", "result of price", "7 euros"),
        ("final", "final", "late 2"),
    ):
        said = f'<div class="said {css}"><b>{label}</b><div class="words">{content}</div>'
        assert said in shown, css
        assert f".said.{css}" in shown, "and has a style of its own"


def test_what_ended_or_failed_is_told(make_rewarded_run):
    run = make_rewarded_run()
    bad = make_rewarded_run.episode(0.0, ended="turns", tool_calls=3, failed_calls=2, tokens=1234)
    bad["rewards"]["failed"] = {"answer": "took over 10 s"}
    bad |= {"faults": ["a call in the channel final"], "advantage": -1.25}
    make_rewarded_run.episodes(run, 1, [bad])
    shown = episodes(read_run(run))
    assert (
        "cut off: too many turns, 1,234 tokens written, 3 calls, 2 failed, advantage -1.25" in shown
    )
    assert "<li>answer failed: took over 10 s</li><li>a call in the channel final</li>" in shown


def test_long_episodes_are_cut_and_the_rest_is_counted(make_rewarded_run):
    run = make_rewarded_run()
    said = [{"role": "assistant", "channel": "final", "content": f"word {n}."} for n in range(100)]
    said[0]["content"] = "x" * 5000
    make_rewarded_run.episodes(run, 1, [make_rewarded_run.episode(1.0, messages=said)])
    shown = episodes(read_run(run)).partition("step 20")[0]
    assert "and 1,000 more characters" in shown
    assert "60 messages are left out here" in shown
    kept = [n for n in range(1, 100) if f">word {n}.<" in shown]
    assert kept == [*range(1, 30), *range(90, 100)] and len(kept) + 1 == MOST_MESSAGES


def test_a_hostile_model_writes_no_html(make_rewarded_run):
    run = make_rewarded_run()
    bad = make_rewarded_run.episode(1.0, source=HOSTILE, ended=HOSTILE, faults=[HOSTILE])
    for message in bad["messages"]:
        message |= {"content": HOSTILE, "recipient": HOSTILE, "channel": HOSTILE}
    bad["messages"] += [{"role": HOSTILE, "content": HOSTILE, "name": HOSTILE}]
    bad["rewards"] = {"total": 1.0, "components": {HOSTILE: 1.0}, "failed": {HOSTILE: HOSTILE}}
    make_rewarded_run.episodes(run, 20, [bad])
    add(run, **{"step": 21, "loss": 0.1, f"reward_{HOSTILE}": 1.0})
    page = parsed(write_report([run]))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe"} and page.tags.count(("style", {})) == 1
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:12])
def test_strange_episodes_cost_their_own_part_alone(make_rewarded_run, value):
    run = make_rewarded_run()
    usual = make_rewarded_run.episode(0.5)
    odd = [{**usual, name: value} for name in usual]
    odd += [{**usual, "rewards": {name: value}} for name in usual["rewards"]]
    odd += [{**usual, "messages": [value, {"content": value, "role": value, "channel": value}]}]
    odd += [{"rewards": {"components": {"a": value}}}]
    for one in [value, *odd]:
        make_rewarded_run.episodes(run, 20, [one])
        page = html_page.Strict()
        page.feed(episodes(read_run(run)))
        assert page.open == [] and "step 1: 5 episodes" in " ".join(page.words)
    parsed(write_report([run]))


def test_damaged_files_of_episodes_are_named(make_rewarded_run):
    run = make_rewarded_run()
    with (run / "rollouts" / "step-20.jsonl").open("a") as stream:
        stream.write('{"rewards": {"total"')
    (run / "rollouts" / "step-21.jsonl").mkdir()
    (run / "rollouts" / "notes.txt").write_text("mine")
    read = read_run(run)
    assert [one for one in read.problems if "step-20.jsonl: 1 line is no JSON object" in one]
    assert [one for one in read.problems if "step-21" in one]
    assert "late 4" in episodes(read)


def test_two_runs_compare_their_rewards(make_rewarded_run):
    runs = [make_rewarded_run("one"), make_rewarded_run("two")]
    page = write_report(runs, runs[0].parent / "both.html")
    shown = titles([page.read_text()])
    for title in ("Reward", "Held-out reward", "Length of an episode", "Entropy"):
        assert title in shown
    assert "Reward margin" not in shown
    assert "reward, held out" in words(parsed(page))


def test_the_live_page_draws_rewards_as_they_come(make_rewarded_run, make_run):
    run, live = make_rewarded_run(), LiveRuns()
    view = live.view(run)
    assert titles([view.parts["rewards"]]) == TITLES and view.parts["preferences"] == ""
    assert "reward 0.9, held out 0.9" in view.words and "loss" not in view.words
    add(run, step=22, loss=0.1, reward=0.25)
    later = live.view(run)
    assert later.version != view.version and "reward 0.25" in later.words
    assert live.view(make_run("sft")).parts["rewards"] == ""


def test_the_card_of_a_run_tells_its_rewards_and_no_preferences(make_rewarded_run):
    run = make_rewarded_run()
    found = closing_facts(run)
    assert "preferences" not in found
    told = found["reinforcement"]
    assert told["first"]["reward"] == pytest.approx(0.235) and told["last"][
        "reward"
    ] == pytest.approx(0.9)
    assert told["last"].keys() >= {"reward_answer", "entropy", "mismatch_kl", "cut_off_share"}
    assert told["eval"] == pytest.approx(
        {
            "eval_reward": 0.9,
            "eval_reward_answer": 0.9,
            "eval_reward_format": 0.9,
            "eval_episode_tokens": 50,
        }
    )
    add(run, step=5, eval_reward=0.5)
    assert closing_facts(run, published=5)["reinforcement"]["eval"] == {"eval_reward": 0.5}
