"""What the first phase shows: an environment that never plays, and rewards that nobody gives."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss_tune.environments.environment import Rewards
from gptoss_tune.errors import RecipeError
from gptoss_tune.train.rollouts.episodes_file import write_episodes
from gptoss_tune.train.rollouts.first_phase import refuse_failed, refuse_not_given
from gptoss_tune.train.rollouts.groups import Group
from gptoss_tune.train.rollouts.phase import Phase
from gptoss_tune.train.rollouts.played import Played
from gptoss_tune.train.rollouts.playing import Playing
from gptoss_tune.train.run import train

SHOP = "--environment shop:Shop"


def played(rewards, ended="answer", task=0, text="7"):
    messages = ({"role": "assistant", "channel": "final", "recipient": None, "content": text},)
    return Played(
        *(task, f"a.jsonl:{task + 1}", 0, (), rewards, ended, (), messages), *(0, 0, 0, 0, 0, 0.1)
    )


def raised(reason, task=0):
    return played(Rewards(0.0, {}, {"environment": reason}), "error", task)


def test_texts_with_separators_of_lines_are_read_back(tmp_path):
    path = tmp_path / "rollouts" / "step-2.jsonl"
    texts = ["one\u2028two\u2029three\x85four\x0bfive\x1c", "plain\n"]
    groups = [Group(n, (played(Rewards(1.0), text=text),)) for n, text in enumerate(texts)]
    write_episodes(path, "train", groups)
    write_episodes(path, "eval", groups[:1])  # as the next evaluation does, and a resumed run
    write_episodes(path, "eval", groups[:1])
    lines = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
    assert [line["messages"][0]["content"] for line in lines] == [*texts, texts[0]]
    assert [line["split"] for line in lines] == ["train", "train", "eval"]


def test_an_environment_that_raises_every_time_is_refused_with_its_reason():
    lost = [raised("reset() or tools(): KeyError: 'price' (shop.py:9)", task) for task in (3, 4)]
    with pytest.raises(RecipeError) as refused:
        refuse_failed([*lost, raised("OSError: gone", 5)], SHOP)
    said = str(refused.value)
    assert said.startswith(f"{SHOP}: got an error in all 3 episodes of the first phase")
    assert "KeyError: 'price' (shop.py:9) (x2, first at a.jsonl:4); OSError: gone (x1" in said
    refuse_failed([*lost, played(Rewards(0.0))], SHOP)


def test_a_weight_of_what_no_episode_gives_is_refused():
    other = Rewards(0.0, {"taste": 1.0, "tast": 0.0}, {"tast": "reward() did not give it"})
    broken = Rewards(0.0, {"tast": 0.0}, {"environment": "ValueError: no price (shop.py:3)"})
    with pytest.raises(RecipeError) as refused:
        refuse_not_given([played(broken), played(other)], ["tast", "format"], SHOP)
    said = str(refused.value)
    assert "method.rewards.tast: got 'tast', which none of the 2 episodes" in said
    assert "(taste) or one of answer, format" in said and "rewards.format" not in said
    assert "ValueError: no price (shop.py:3) (x1, first at a.jsonl:1)" in said
    # One that some episodes have is one that the class gives.
    given = Rewards(0.0, {"tast": 0.0})
    refuse_not_given([played(broken), played(other), played(given)], ["tast"], SHOP)


@pytest.mark.parametrize(("says", "refused"), [(False, True), (True, False)])
def test_a_class_that_says_what_it_gives_may_give_it_seldom(says, refused):
    group = Group(0, (played(Rewards(0.0, {"taste": 1.0})),))
    forgotten = []
    playing = SimpleNamespace(
        _context=SimpleNamespace(environment="shop:Shop"),
        _section=SimpleNamespace(rewards={"tests": 1.0}),
        _says_what_it_gives=says,
        rollouts=SimpleNamespace(forget=lambda: forgotten.append(True)),
    )
    phase = Phase((group,), (group,), 1, 0.1)
    if not refused:
        Playing.look_at_first(playing, phase)
        return
    with pytest.raises(RecipeError, match=r"none of the 1 episodes"):
        Playing.look_at_first(playing, phase)
    # What is corrected is played again, whether a digest sees it or not.
    assert forgotten == [True]


def test_a_run_whose_environment_never_begins_ends_after_its_first_phase(small, lucky):
    recipe = small()
    with pytest.raises(RecipeError, match=r"lucky:Closed: got an error in all 6 episodes.*closed"):
        train(recipe, environment="lucky:Closed")
    run = Path(recipe.train.output_dir)
    assert len((run / "rollouts" / "step-1.jsonl").read_text().splitlines()) == 6
    assert not (run / ".rollouts").exists()
