"""Advice leads where it says: each piece on top of the former, until the plan fits."""

from dataclasses import replace

from gptoss_tune.plan.gpus import card
from gptoss_tune.plan.plan import plan

HUNGRY = (
    "train.activation_checkpointing=none",
    "train.per_device_train_batch_size=4",
    "train.expert_tile=null",
)


def test_advice_is_cumulative_and_each_peak_is_that_of_the_plan(recipe):
    narrow = replace(card("rtx4080-16gb"), memory_gib=17.0)
    made = plan(recipe(*HUNGRY), narrow)
    assert not made.fits
    assert made.larger.memory_bytes >= made.memory.peak
    settings, peak = {}, made.memory.peak
    for entry in made.advice:
        settings |= {key: int(value) if value.isdigit() else value for key, value in pairs(entry)}
        again = plan(recipe(*HUNGRY).with_settings(settings), narrow)
        assert again.memory.peak == entry.peak < peak
        assert again.fits is entry.fits is (entry is made.advice[-1]), "it ends where it fits"
        peak = entry.peak
    assert made.advice[0].overrides == (
        "train.per_device_train_batch_size=1",
        "train.gradient_accumulation_steps=4",
    )
    assert dict(o.split("=") for o in made.overrides_that_fit) == {
        key: str(value) for key, value in settings.items()
    }
    assert again.advice == [] and again.overrides_that_fit == ()


def pairs(entry):
    return (override.split("=", 1) for override in entry.overrides)


def test_no_change_is_advised_that_the_rest_does_without(recipe):
    """Where one alone is enough, those that are cheaper and not enough are not made as well."""
    for gib in range(14, 60, 3):
        room = replace(card("rtx4080-16gb"), memory_gib=float(gib))
        made = plan(recipe(*HUNGRY, "model.experts_precision=bf16"), room)
        for left_out in made.advice[:-1] if made.overrides_that_fit else []:
            settings = {}
            for entry in made.advice:
                if entry is not left_out:
                    settings |= {k: int(v) if v.isdigit() else v for k, v in pairs(entry)}
            without = recipe(*HUNGRY, "model.experts_precision=bf16").with_settings(settings)
            assert not plan(without, room).fits, (gib, left_out)


def test_where_no_advice_is_enough_what_else_is_has_been_planned(recipe):
    asked = ("model.name_or_path=openai/gpt-oss-120b", "lora.expert_rank=4")
    made = plan(recipe(*asked), card("4090"))
    assert made.overrides_that_fit is None and not made.advice[-1].fits
    kinds = [way.what for way in made.elsewhere]
    assert kinds[0].startswith("a larger card") and kinds[-1] == "the smaller model"
    assert any(kind.endswith("of these cards, which share the model") for kind in kinds)
    for way in made.elsewhere:
        keys = {word.partition("=")[0] for word in way.overrides}
        kept = [word for word in asked if word.partition("=")[0] not in keys]
        there = plan(recipe(*kept, *way.overrides), card(way.gpu))
        assert there.fits and there.memory.peak == way.peak
        assert there.recipe.distributed.num_processes == way.gpus
    assert made.as_json()["overrides_that_fit"] is None
    small = plan(recipe("data.max_length=131072"), replace(card("t4-16gb"), memory_gib=9.0))
    assert all(way.what != "the smaller model" for way in small.elsewhere), "it is that one"
