"""A few rows and a recipe for commands that start a run."""

import json

import pytest


@pytest.fixture
def tiny_run(tmp_path, two_layer_base):
    """Return a recipe's file and the folder of its run."""
    rows = tmp_path / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as stream:
        for number in range(6):
            messages = [
                {"role": "user", "content": f"What is {number} + {number}?"},
                {"role": "assistant", "thinking": "Add them.", "content": str(2 * number)},
            ]
            stream.write(json.dumps({"messages": messages}) + "\n")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        f"""
model: {{name_or_path: {two_layer_base}, dtype: float32}}
lora: {{rank: 4, expert_rank: 2}}
data: {{train: {rows}, max_length: 256}}
train:
  output_dir: {tmp_path / "run"}
  max_steps: 4
  per_device_train_batch_size: 2
  learning_rate: 5e-3
  activation_checkpointing: none
""",
        encoding="utf-8",
    )
    return recipe, tmp_path / "run"
