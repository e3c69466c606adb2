"""Advice that a mistake in a recipe gives, followed: what it says to write is taken."""

import os
import re

import pytest

from gptoss_tune.recipe import RecipeMistakes, load_recipe

# Overrides of a sound recipe that people bring from other tools, and what the advice makes of them.
OVERRIDES = {
    "lora.target_modules=all-linear": [],
    "lora.target_modules=[all-linear]": [],
    "lora.target_modules=ALL": [],
    "lora.target_parameters='*'": [],
    "lora.target_modules=q_proj": ["lora.target_modules=[q_proj]"],
    "lora.target_modules=q_proj,v_proj": ["lora.target_modules=[q_proj, v_proj]"],
    "lora.target_modules=q_prj": ["lora.target_modules=[q_proj]"],
    "lora.target_modules=attention": ["lora.target_modules=[q_proj, k_proj, v_proj, o_proj]"],
    "lora.target_modules=gate_up_proj": ["lora.target_parameters=[gate_up_proj]"],
    "lora.target_modules=[down_proj]": ["lora.target_parameters=[down_proj]"],
    "lora.target_modules=mlp.experts": ["lora.target_parameters=[gate_up_proj, down_proj]"],
    "lora.target_parameters=q_proj": ["lora.target_modules=[q_proj]"],
    "lora.layers=3": ["lora.layers=[3]"],
    "lora.layers='0, 1'": ["lora.layers=[0, 1]"],
    "data.eval_split=0.1": ["data.eval_fraction=0.1"],
    "data.val_set_size=0.1": ["data.eval_fraction=0.1"],
    "data.validation_split=0.1": ["data.eval_fraction=0.1"],
    "train.test_size=0.1": ["data.eval_fraction=0.1"],
    "data.eval_dataset=b.jsonl": ["data.eval=b.jsonl"],
    "train.resume=true": ["train.resume=auto", "train.resume=never"],
    "train.seed='7'": ["train.seed=7"],
    "train.activation_checkpointing=no": ["train.activation_checkpointing=none"],
    "tracking.wandb=off": ["tracking.wandb=disabled"],
    "train.output_dir=17": ["train.output_dir='17'"],
    "train.optim=adamw-8bit": ["train.optim=adamw_8bit"],
    "lr=1e-4": ["train.learning_rate=1e-4"],
}


def followed(override, todo):
    """Return the overrides that an advice asks for instead of one."""
    key, _, value = override.partition("=")
    if todo.startswith("leave "):
        assert todo.split()[1] == key
        return []
    if moved := re.fullmatch(r"move it: write (\[.*?\]) as ([a-z_.]+).*", todo):
        return [f"{moved[2]}={moved[1]}"]
    if meant := re.fullmatch(r"did you mean (.*)\?", todo):
        setting = "." in meant[1] and " " not in meant[1]
        return [f"{meant[1]}={value}" if setting else f"{key}={meant[1]}"]
    if quoted := re.fullmatch(r'put it in quotes: "(.*)"', todo):
        return [f"{key}='{quoted[1]}'"]
    if written := re.fullmatch(r"write (.*)", todo):
        words = [written[1]] if written[1].startswith("[") else written[1].split(" or ")
        return [f"{key}={word}" for word in words]
    raise AssertionError(f"nobody knows how to follow: {todo}")


@pytest.mark.parametrize("override", OVERRIDES)
def test_what_an_advice_says_to_write_is_taken(load, sound, override):
    with pytest.raises(RecipeMistakes) as caught:
        load(sound, override)
    (mistake,) = caught.value.mistakes
    asked = followed(override, mistake.todo)
    assert asked == OVERRIDES[override]
    load(sound)
    for one in asked:
        load(sound, one)


def test_a_recipe_that_is_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    with pytest.raises(RecipeMistakes, match=r"pipe\.yaml: got a pipe, .* save the recipe in a"):
        load_recipe("pipe.yaml")
    with pytest.raises(RecipeMistakes, match="got a device, expected a recipe's file"):
        load_recipe("/dev/zero")
