"""What a user sees when training goes wrong: ``python tests/faults/run_guard.py [FAULT ...]``.

Each run is the real command on a tiny random checkpoint, with one thing broken in the process
before it starts, as a defect in a library would. The command, its exit code and its last words are
printed; ``docs/guard.md`` shows them. ``tests/train/guard/test_guard.py`` asserts the same and
more.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import stacks

SPOIL = """
from gptoss_tune.train import run

original = run._model

def spoiled(*arguments):
    model = original(*arguments)
    change(dict(model.named_parameters()), model)
    return model

run._model = spoiled
"""

FAULTS = {
    "nothing": "",
    "experts disconnected from their adapters": """
from gptoss_tune.model import experts

original = experts._projection

def without_adapter(weight, bias, dtype):
    found = original(weight, bias, dtype)
    return type(found)(found.weight, found.bias)

experts._projection = without_adapter
""",
    "one gradient cut": """
def change(parameters, model):
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.default.weight"
    parameters[name].register_hook(lambda gradient: gradient * 0)
"""
    + SPOIL,
    "NaN in a weight": """
def change(parameters, model):
    name = "base_model.model.model.layers.0.self_attn.o_proj.base_layer.weight"
    parameters[name].data[3, 5] = float("nan")
"""
    + SPOIL,
    "a frozen weight moved": """
def change(parameters, model):
    router = parameters["base_model.model.model.layers.0.mlp.router.bias"]

    def nudge(*_):
        router.data[0] += 1e-3

    model.register_forward_hook(nudge)
"""
    + SPOIL,
}
START = "\nfrom gptoss_tune.train.__main__ import main\nmain()\n"


def recipe(work: Path) -> Path:
    """Write the recipe of all runs; return its file."""
    stacks.prepare(work)
    file = work / "recipe.yaml"
    file.write_text(
        f"""
model: {{name_or_path: {work / "base"}, dtype: float32}}
lora: {{rank: 2, expert_rank: 2}}
data: {{train: {work / "rows.jsonl"}, max_length: 128}}
train: {{output_dir: {work / "run"}, max_steps: 6, learning_rate: 5e-3,
  activation_checkpointing: none}}
""",
        encoding="utf-8",
    )
    return file


def show(fault: str, work: Path, file: Path) -> int:
    """Run once with a fault, print how it ended, and return its exit code."""
    script = work / "train.py"
    script.write_text(FAULTS[fault] + START, encoding="utf-8")
    folder = work / fault.replace(" ", "-")
    command = [sys.executable, str(script), str(file), f"train.output_dir={folder}"]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = ended.stderr.replace(f"{work}/", "")
    error = said[said.find("error: ") :].strip() if "error: " in said else ""
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    print(f"fault: {fault}\nexit code: {ended.returncode}\nleft in the run's folder:")
    print(f"  {', '.join(left)}\n{error}\n".rstrip() + "\n", flush=True)
    return ended.returncode


def main() -> None:
    """Run the faults that are named, or all of them; fail where one was not stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", choices=[[], *FAULTS], default=[])
    chosen = parser.parse_args().faults or list(FAULTS)
    with tempfile.TemporaryDirectory() as folder:
        file = recipe(Path(folder))
        codes = {fault: show(fault, Path(folder), file) for fault in chosen}
    unexpected = [fault for fault, code in codes.items() if (code == 0) != (fault == "nothing")]
    sys.exit(f"not as expected: {', '.join(unexpected)}" if unexpected else 0)


if __name__ == "__main__":
    main()
