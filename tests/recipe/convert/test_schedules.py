"""Schedules, early stopping and the best checkpoint of other tools' configurations."""

import pytest

AXOLOTL = """\
base_model: openai/gpt-oss-20b
datasets: [{path: a.jsonl, type: chat_template}]
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
sequence_len: 4096
micro_batch_size: 1
num_epochs: 1
learning_rate: 0.0002
"""

WSD = "lr_scheduler: warmup_stable_decay\n"
HELD = "val_set_size: 0.1\neval_steps: 50\n"


@pytest.mark.parametrize(
    ("lines", "told", "settings"),
    [
        (
            "lr_scheduler: cosine\ncosine_min_lr_ratio: 0.1\n",
            {"lr_scheduler": "converted", "cosine_min_lr_ratio": "converted"},
            {"type": "cosine_with_min_lr", "kwargs": {"min_lr_rate": 0.1}},
        ),
        (
            "cosine_min_lr_ratio: 0.1\n",
            {"cosine_min_lr_ratio": "converted"},
            {"type": "cosine_with_min_lr", "kwargs": {"min_lr_rate": 0.1}},
        ),
        (
            "lr_scheduler: linear\ncosine_min_lr_ratio: 0.1\n",
            {"cosine_min_lr_ratio": "irrelevant"},
            {"type": "linear"},
        ),
        (
            WSD + "lr_scheduler_kwargs: {num_decay_steps: 10, decay_type: linear, odd: 1}\n",
            {
                "lr_scheduler_kwargs.num_decay_steps": "converted",
                "lr_scheduler_kwargs.decay_type": "converted",
                "lr_scheduler_kwargs.odd": "none",
            },
            {
                "type": "warmup_stable_decay",
                "kwargs": {"num_decay_steps": 10, "decay_type": "linear"},
            },
        ),
        (
            WSD + "lr_scheduler_kwargs: {num_decay_steps: 10, warmup_type: linear}\n",
            {"lr_scheduler_kwargs.warmup_type": "irrelevant"},
            {"type": "warmup_stable_decay", "kwargs": {"num_decay_steps": 10}},
        ),
        (WSD, {"lr_scheduler": "none"}, {"type": "cosine"}),
        ("lr_scheduler: greedy\n", {"lr_scheduler": "none"}, {"type": "cosine"}),
        (
            "lr_scheduler: reduce_lr_on_plateau\nlr_scheduler_kwargs: {factor: 0.5}\n",
            {"lr_scheduler": "none", "lr_scheduler_kwargs.factor": "none"},
            {"type": "cosine"},
        ),
        (
            HELD + "early_stopping_patience: 3\n",
            {"early_stopping_patience": "converted"},
            {"stopping": {"patience": 3, "min_delta": 0.0, "metric": "eval_loss", "goal": None}},
        ),
        (
            HELD + "load_best_model_at_end: true\nearly_stopping_patience: 3\n",
            {"load_best_model_at_end": "converted", "early_stopping_patience": "converted"},
            {
                "best": {"metric": "eval_loss", "goal": None},
                "stopping": {"patience": 3, "min_delta": 0.0, "metric": None, "goal": None},
            },
        ),
        (
            HELD + "load_best_model_at_end: true\nmetric_for_best_model: eval_loss\n"
            "greater_is_better: false\n",
            {"metric_for_best_model": "converted", "greater_is_better": "irrelevant"},
            {"best": {"metric": "eval_loss", "goal": None}},
        ),
        (
            HELD + "load_best_model_at_end: true\nmetric_for_best_model: bleu\n",
            {"load_best_model_at_end": "none", "metric_for_best_model": "none"},
            {},
        ),
        (
            HELD + "save_steps: 100\n",
            {"save_steps": "converted"},
            {"best": {"metric": "eval_loss", "goal": None}},
        ),
        (
            HELD + "save_steps: 50\nearly_stopping_patience: 3\n",
            {"early_stopping_patience": "converted"},
            {
                "best": {"metric": "eval_loss", "goal": None},
                "stopping": {"patience": 3, "min_delta": 0.0, "metric": None, "goal": None},
            },
        ),
        (HELD + "save_steps: 70\n", {"save_steps": "converted"}, {}),
        ("eval_steps: 50\nsave_steps: 50\n", {"save_steps": "converted"}, {}),
        (
            HELD + "save_steps: 50\nload_best_model_at_end: false\n",
            {"load_best_model_at_end": "irrelevant"},
            {},
        ),
        (
            "lr_scheduler: cosine_with_min_lr\nlr_scheduler_kwargs: '{\"min_lr_rate\": 0.1}'\n",
            {"lr_scheduler": "converted", "lr_scheduler_kwargs.min_lr_rate": "converted"},
            {"type": "cosine_with_min_lr", "kwargs": {"min_lr_rate": 0.1}},
        ),
        (
            "lr_scheduler: cosine\nlr_scheduler_kwargs: '{min_lr'\n",
            {"lr_scheduler_kwargs": "none"},
            {"type": "cosine"},
        ),
        ("load_best_model_at_end: true\n", {"load_best_model_at_end": "none"}, {}),
        ("load_best_model_at_end: false\n", {"load_best_model_at_end": "irrelevant"}, {}),
        (
            HELD + "max_steps: 50\nearly_stopping_patience: 3\n",
            {"early_stopping_patience": "none"},
            {},
        ),
    ],
)
def test_schedules_and_the_best_checkpoint(convert, lines, told, settings):
    made = convert(AXOLOTL + lines)
    assert told.items() <= {one.key: one.fate for one in made.outcomes}.items()
    train = made.recipe.train
    kwargs = train.lr_scheduler_kwargs
    assert train.lr_scheduler_type == settings.get("type", "cosine")
    found = None if kwargs is None else kwargs.model_dump(exclude_none=True)
    assert found == settings.get("kwargs")
    for section, name in ((train.keep_best, "best"), (train.early_stopping, "stopping")):
        assert (section and section.model_dump()) == settings.get(name)
