"""The sampler of a run: what it is opened with."""

from types import SimpleNamespace

from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.server import open as opening
from gptoss_tune.train.rollouts import playing


def test_a_long_merge_is_progress_for_the_watchdog(grpo_recipe, monkeypatch, tmp_path):
    served = ["method.sampler=server", "method.server_url=http://127.0.0.1:9/v1"]
    served += [f"method.server_folder={tmp_path}", "method.rewards={answer: 1}"]
    noted, given = [], {}
    context = SimpleNamespace(
        recipe=load_recipe(grpo_recipe, served),
        base=None,
        run=tmp_path,
        device="cpu",
        watch=SimpleNamespace(note_progress=lambda: noted.append(1)),
    )
    monkeypatch.setattr(opening, "open_server_sampler", lambda *args, **more: given.update(more))
    playing.sampler_of(context, None, lambda folder: None)
    given["progress"](1 << 20, 1 << 30)
    assert noted == [1]
