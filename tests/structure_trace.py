"""Train a tiny model with a checkout's own code and count the calls between its files.

``python tests/structure_trace.py CHECKOUT``: started by ``structure.py --trace``, which says what
is counted, in an empty folder; writes ``counted.json`` there.
"""

import json
import os
import sys
from pathlib import Path

PACKAGES = ("src/gptoss_tune", "kernels/gptoss_kernels")


def train_traced(root):
    """Train on a few rows and write what was counted; all in the current folder."""
    tiny = "gptoss_tune.testing.tiny"
    if not (root / "src/gptoss_tune/testing/tiny.py").exists():
        tiny = "gptoss_tune.testing"
    make = __import__(tiny, fromlist=["tiny_checkpoint"]).tiny_checkpoint
    make("base", seed=1, layers=2, experts=8, hidden=64, intermediate=96)
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    Path("rows.jsonl").write_text(8 * (json.dumps({"messages": chat}) + "\n"), encoding="utf-8")
    Path("recipe.yaml").write_text(
        "model: {name_or_path: base, dtype: float32}\n"
        "data: {train: rows.jsonl, max_length: 256}\n"
        "train: {output_dir: run, max_steps: 4, per_device_train_batch_size: 2}\n",
        encoding="utf-8",
    )
    from gptoss_tune.cli import main as command_line

    sys.argv = ["gptoss-tune", "train", "recipe.yaml"]
    calls = Calls(root)
    sys.setprofile(calls)
    try:
        command_line()
    finally:
        sys.setprofile(None)
        Path("counted.json").write_text(json.dumps(calls.figures()), encoding="utf-8")


class Calls:
    """A profiler that notes calls between the files of the project, on the main thread."""

    def __init__(self, root):
        self.homes = tuple(f"{root / package}{os.sep}" for package in PACKAGES)
        self.importing = self.steps = self.moves = 0
        self.running = self.training = False
        self.way, self.pairs, self.returns = [], set(), []
        self.first, self.step = set(), set()

    def __call__(self, frame, event, _):
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code.co_name == "<module>":
            self.importing += 1 if event == "call" else -1
        if event == "return" or self.importing:
            return
        if code.co_filename.endswith(f"transformers{os.sep}trainer.py"):
            self.training |= code.co_name == "train"
            self.steps += code.co_name == "training_step"
        if code.co_filename.startswith(self.homes):
            self.entered(code.co_filename, self.caller(frame))

    def caller(self, frame):
        while frame := frame.f_back:
            if frame.f_code.co_filename.startswith(self.homes):
                return frame.f_code.co_filename
        return None

    def entered(self, file, caller):
        self.running |= file.endswith(f"train{os.sep}run.py")
        if self.running and self.steps < 2:
            self.first.add(file)
        if not self.training:
            if file not in self.way:
                self.way.append(file)
            elif caller != file and (caller, file) not in self.pairs:
                self.returns.append((caller, file))
            self.pairs.add((caller, file))
        if self.steps == 2:
            self.step.add(file)
            self.moves += caller != file

    def figures(self):
        def short(file):
            return str(file).removeprefix(os.path.commonpath(self.homes)).lstrip(os.sep)

        return {
            "the recipe's way: files": [short(file) for file in self.way],
            "the recipe's way: returns": [f"{short(a)} -> {short(b)}" for a, b in self.returns],
            "from train/run.py to one optimizer step: files": sorted(short(f) for f in self.first),
            "one optimizer step: files": sorted(short(f) for f in self.step),
            "one optimizer step: moves between files": self.moves,
        }


if __name__ == "__main__":
    train_traced(Path(sys.argv[1]))
