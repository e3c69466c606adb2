"""Settings that contradict each other or would have no effect."""

import pytest

from gptoss_tune.recipe.rules import warmup_rules

# Overrides on a sound recipe -> the beginning of each mistake, by the rule that they break.
BROKEN = {
    ("distributed.num_processes=4", "distributed.context_parallel=3"): [
        "distributed.context_parallel: got 3 while distributed.num_processes is 4, expected a"
    ],
    ("distributed.context_parallel=2",): [
        "distributed.context_parallel: got 2 while distributed.num_processes is 1, expected a"
    ],
    (
        "distributed.num_processes=4",
        "distributed.context_parallel=2",
        "model.attention=flex",
        "train.auto_find_batch_size=true",
    ): [
        "model.attention: got flex with distributed.context_parallel 2, expected an engine that",
        "train.auto_find_batch_size: got true with distributed.context_parallel 2, expected false",
    ],
    ("distributed.num_processes=2", "distributed.context_parallel=2", "method.name=dpo"): [
        "distributed.context_parallel: got 2 with method.name dpo, expected 1, or method.name sft"
    ],
    ("train.num_train_epochs=1", "train.max_steps=10"): [
        "train.max_steps: got 10 beside train.num_train_epochs 1.0"
    ],
    ("train.max_steps=null",): ["train.max_steps: got neither max_steps nor num_train_epochs"],
    ("train.warmup_steps=1", "train.warmup_ratio=0.1"): [
        "train.warmup_ratio: got 0.1 beside train.warmup_steps 1"
    ],
    ("train.warmup_steps=10",): ["train.warmup_steps: got 10 of 10 steps"],
    ("train.warmup_ratio=0.91",): ["train.warmup_ratio: got 0.91, which is 10 of 10 steps"],
    ("train.warmup_ratio=0.03", "train.max_steps=1"): [
        "train.warmup_ratio: got 0.03, which is 1 of 1 step,"
    ],
    ("train.warmup_ratio=0.5", "train.max_steps=1", "train.lr_scheduler_type=linear"): [
        "train.warmup_ratio: got 0.5, which is 1 of 1 step,"
    ],
    ("train.warmup_steps=1", "train.max_steps=1", "train.lr_scheduler_type=constant_with_warmup"): [
        "train.warmup_steps: got 1 of 1 step,"
    ],
    ("train.warmup_steps=1", "train.lr_scheduler_type=constant"): [
        "train.warmup_steps: got 1 with lr_scheduler_type constant"
    ],
    ("train.warmup_ratio=0.1", "train.lr_scheduler_type=constant"): [
        "train.warmup_ratio: got 0.1 with lr_scheduler_type constant"
    ],
    ("train.lr_scheduler_type=constant_with_warmup",): [
        "train.lr_scheduler_type: got constant_with_warmup without a warm-up"
    ],
    ("train.eval_steps=5",): ["train.eval_steps: got 5 without data to evaluate on"],
    ("data.eval=b.jsonl", "data.eval_fraction=0.1"): [
        "data.eval_fraction: got 0.1 beside data.eval"
    ],
    ("evaluation.eval_steps=5",): ["evaluation.eval_steps: got 5 without evaluation.prompts"],
    ("evaluation.temperature=1", "evaluation.at_start=false"): [
        "evaluation.temperature: got 1.0 without evaluation.prompts",
        "evaluation.at_start: got False without evaluation.prompts",
    ],
    ("evaluation.drift.references=a.jsonl", "evaluation.max_new_tokens=9"): [
        "evaluation.max_new_tokens: got 9 without evaluation.prompts"
    ],
    ("evaluation.prompts=a.jsonl", "evaluation.drift.max_probes=9"): [
        "evaluation.drift.max_probes: got 9 without evaluation.drift.probes"
    ],
    ("evaluation.prompts=a.jsonl", "evaluation.max_analysis_tokens=512"): [
        "evaluation.max_analysis_tokens: got 512 with answers of 512 tokens at most"
    ],
    ("tracking.project=p",): [
        "tracking.project: got 'p' while tracking.wandb and tracking.trackio are disabled"
    ],
    ("tracking.run_name=r",): [
        "tracking.run_name: got 'r' while tracking.wandb and tracking.trackio are disabled"
    ],
    ("lora.expert_rank=4", "lora.target_parameters=[]"): [
        "lora.expert_rank: got 4 while lora.target_parameters is empty"
    ],
    ("lora.expert_alpha=4", "lora.target_parameters=[]"): [
        "lora.expert_alpha: got 4.0 while lora.target_parameters is empty"
    ],
    ("lora.target_modules=[]", "lora.target_parameters=[]"): [
        "lora.target_modules: got no target at all"
    ],
    ("lora.merge_aware=true", "lora.target_parameters=[]"): [
        "lora.merge_aware: got true while lora.target_parameters is empty"
    ],
    ("lora.merge_aware=true", "model.experts_precision=bf16"): [
        "lora.merge_aware: got true with model.experts_precision bf16"
    ],
    ("model.name_or_path=./base", "model.revision=main"): [
        "model.revision: got a revision for the folder './base'"
    ],
    ("data.max_errors=5",): ["data.max_errors: got 5 while data.on_error is stop"],
    (
        "data.channel_weights.analysis=0",
        "data.channel_weights.commentary=0",
        "data.channel_weights.final=0",
    ): ["data.channel_weights: got 0 for every channel"],
    ("method.name=dpo", "method.reference=init_adapter"): [
        "method.reference: got init_adapter without lora.init_from"
    ],
    ("method.name=kto", "method.reference=init_adapter", "data.turns=last"): [
        "method.reference: got init_adapter without lora.init_from",
        "data.turns: got last with method.name kto",
    ],
    ("method.name=simpo", "data.channel_weights.analysis=0"): [
        "data.channel_weights.analysis: got 0 with method.name simpo"
    ],
    ("method.name=orpo", "data.channel_weights.commentary=0.5", "data.channel_weights.final=2"): [
        "data.channel_weights.commentary: got 0.5 with method.name orpo",
        "data.channel_weights.final: got 2 with method.name orpo",
    ],
    ("method.name=ipo", "data.too_long=truncate"): [
        "data.too_long: got truncate with method.name ipo"
    ],
    ("method.name=dpo", "data.turns=last"): ["data.turns: got last with method.name dpo"],
    ("distributed.strategy=fsdp2",): [
        "distributed.strategy: got fsdp2 while distributed.num_processes is 1"
    ],
    ("data.train={path: a.jsonl, split: test}",): [
        "data.train.split: got a split for the file 'a.jsonl'"
    ],
    ("data.eval=[b.jsonl, {path: ./c.json, revision: r, name: n}]",): [
        "data.eval[1].name: got a name for the file './c.json'",
        "data.eval[1].revision: got a revision for the file './c.json'",
    ],
}


@pytest.mark.parametrize("overrides", BROKEN, ids=" ".join)
def test_a_contradiction_is_a_mistake(mistakes, sound, overrides):
    found = mistakes(sound, *overrides)
    assert len(found) == len(BROKEN[overrides])
    for line, beginning in zip(found, BROKEN[overrides], strict=True):
        assert beginning in line
        assert ", expected " in line
        assert "; " in line


# The neighbours of the broken ones, each with an effect.
WITH_EFFECT = [
    ("train.warmup_steps=9",),
    ("train.warmup_steps=0", "train.lr_scheduler_type=constant"),
    ("train.warmup_ratio=0.1", "train.lr_scheduler_type=constant_with_warmup"),
    ("train.warmup_ratio=0.9",),
    ("train.warmup_ratio=0.03", "train.max_steps=2"),
    ("train.max_steps=1",),
    ("train.eval_steps=5", "data.eval=b.jsonl"),
    ("train.eval_steps=5", "data.eval_fraction=0.1"),
    ("tracking.project=p", "tracking.wandb=offline"),
    ("tracking.run_name=r", "tracking.trackio=local"),
    ("lora.expert_rank=4",),
    ("lora.target_modules=[]",),
    ("lora.target_parameters=[]",),
    ("lora.merge_aware=true",),
    ("model.revision=main",),
    ("data.max_errors=5", "data.on_error=skip"),
    ("data.channel_weights.final=0", "data.channel_weights.commentary=0"),
    ("data.train={path: owner/name, name: n, split: s, revision: r}",),
    ("distributed.strategy=fsdp2", "distributed.num_processes=2"),
    ("method.name=dpo", "method.reference=init_adapter", "lora.init_from=runs/a"),
    ("method.name=dpo", "method.reference=none"),
    ("method.name=ipo", "method.analysis=ignored"),
    ("method.name=kto", "data.too_long=error"),
    ("method.name=simpo", "data.channel_weights.final=1"),
    ("data.turns=last", "data.too_long=truncate"),
]


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "orpo", "kto"])
def test_the_advice_for_a_thought_that_does_not_count_works(load, mistakes, sound, name):
    text = sound + f"method:\n  name: {name}\n"
    (line,) = mistakes(text, "data.channel_weights.analysis=0")
    assert line.endswith("; remove it, and set method.analysis to ignored")
    assert load(text, "method.analysis=ignored").method.analysis == "ignored"


WARM_UPS = [
    ("train.max_steps=1", "train.warmup_ratio=0.03"),
    ("train.max_steps=1", "train.warmup_steps=7"),
    ("train.max_steps=1", "train.warmup_steps=1", "train.lr_scheduler_type=constant_with_warmup"),
    ("train.max_steps=1", "train.warmup_ratio=0.9", "train.lr_scheduler_type=constant_with_warmup"),
]


@pytest.mark.parametrize("overrides", WARM_UPS, ids=" ".join)
def test_the_advice_for_a_warm_up_as_long_as_the_run_works(load, mistakes, sound, overrides):
    (line,) = mistakes(sound, *overrides)
    advice = line.rpartition("; ")[2].partition(", or raise")[0]
    settings = dict(one.split("=") for one in overrides)
    for part in advice.removeprefix("set ").split(" and "):
        name, _, value = part.partition(" to ")
        settings[name] = value
    recipe = load(sound, *(f"{name}={value}" for name, value in settings.items()))
    assert not list(warmup_rules(recipe.train, 1))


@pytest.mark.parametrize(
    ("warmup", "steps", "idle"),
    [
        ("train.warmup_steps=1", 1, True),
        ("train.warmup_steps=1", 2, False),
        ("train.warmup_steps=2", 2, True),
        # A share of steps that nobody chose: the trainer leaves the last one out.
        ("train.warmup_ratio=0.03", 1, False),
        ("train.warmup_ratio=0.6", 2, False),
    ],
)
def test_a_recipe_in_epochs_is_judged_by_the_steps_that_its_data_give(
    load, sound, warmup, steps, idle
):
    text = sound.replace("max_steps: 10", "num_train_epochs: 1")
    found = list(warmup_rules(load(text, warmup).train, steps))
    assert bool(found) == idle
    if idle:
        assert found[0].keys == ("train.warmup_steps", "train.num_train_epochs")


@pytest.mark.parametrize("overrides", WITH_EFFECT, ids=" ".join)
def test_settings_with_an_effect_are_accepted(load, sound, overrides):
    load(sound, *overrides)


def test_a_contradiction_points_at_the_line_that_was_written(mistakes, sound):
    assert mistakes(sound + "  num_train_epochs: 1\ntracking:\n  project: p\n") == [
        "a.yaml:7:3: train.max_steps: got 10 beside train.num_train_epochs 1.0, expected one of "
        "the two; remove one, or set it to null in an override",
        "a.yaml:10:3: tracking.project: got 'p' while tracking.wandb and tracking.trackio are "
        "disabled, expected wandb offline or online, or trackio local; set one of them, or remove "
        "tracking.project",
    ]


def test_rules_run_beside_wrong_fields_of_the_same_section(mistakes, sound):
    lines = mistakes(sound + "  num_train_epochs: 1\n  seed: x\n")
    assert [line.split(" got ")[0] for line in lines] == [
        "a.yaml:7:3: train.max_steps:",
        "a.yaml:9:9: train.seed:",
    ]


def test_no_contradiction_follows_from_a_wrong_field(mistakes, sound):
    (line,) = mistakes(sound.replace("max_steps: 10", "max_steps: ten"))
    assert "train.max_steps: got 'ten'" in line
    (line,) = mistakes(sound, "tracking.wandb=onlin", "tracking.project=p")
    assert "did you mean online?" in line
