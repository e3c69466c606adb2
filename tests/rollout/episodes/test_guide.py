"""The page about episodes: its row is played, its class plays, its errors are those shown."""

import json
import re
from pathlib import Path
from typing import get_args

from gptoss_tune.environments.environment import EpisodeEnd

PAGE = (Path(__file__).resolve().parents[3] / "docs/episodes.md").read_text(encoding="utf-8")
FINAL = "<|channel|>final<|message|>3.80<|return|>"


def block(language):
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)
    return found


def call(arguments, name="price"):
    return f"<|channel|>commentary to=functions.{name} json<|message|>{arguments}<|call|>"


def test_the_row_answers_as_the_page_says(play):
    row = json.loads(block("json"))
    answers = [
        call('{"item": "pear"}'),
        call('{"count": 2.0, "item": "plum"}'),
        call('{"item": "Plum"}'),
        call('{"item": "fig"}'),
        call("{}", "cost"),
        call("{}"),
        FINAL,
    ]
    episode, _ = play(row, *answers)
    results = [use.result for use in episode.outcome.uses]
    assert results[:3] == ["3", '{"cents": 80}', "0.40"]
    assert all(use.by_model for use in episode.outcome.uses[3:])
    shown = re.findall(r"`(Error: .*?)`", PAGE)
    assert results[4] in shown and results[5] in shown


def test_the_class_asks_once_more(play):
    space = {}
    exec(compile(block("python"), "docs/episodes.md", "exec"), space)
    asked = {"messages": [{"role": "user", "content": "What?"}], "answer": "3.80"}
    episode, _ = play(asked, FINAL, FINAL, make=space["Twice"])
    assert (episode.outcome.ended, len(episode.samples)) == ("answer", 2)
    assert [m["content"] for m in episode.messages if m["role"] == "user"][1] == "Are you sure?"
    assert space["Twice"]().reward(episode.outcome) == 1.0


def test_every_end_of_an_episode_has_its_row():
    section = PAGE.split("## How an episode ends")[1].split("\n\n| a call")[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, flags=re.M)
    assert sorted(rows) == sorted([*get_args(EpisodeEnd), "ended"]), "the first is the heading"
