"""What each command does with each way in which a base comes: runs them all, and writes the page.

``python tests/bases/table.py --write docs/bases.md`` writes it, ``--check docs/bases.md`` says
which lines of it are not what happens. Everything runs in this process on tiny bases; of a push
what is before the network is run, and the upload is replaced.
"""

import argparse
import json
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

OTHER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "other_ways.py")))
WAYS, EVERY = OTHER.WAYS, OTHER.EVERY
ROW = {
    "messages": [
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris", "thinking": "A city."},
    ]
}
RECIPE = """\
model: {{name_or_path: {base}, dtype: float32, experts_precision: {precision}}}
lora: {{rank: 2, expert_rank: 2}}
data: {{train: {rows}, max_length: 128}}
evaluation: {{prompts: [{prompts}], max_new_tokens: 2}}
train:
  output_dir: {out}
  max_steps: 1
  per_device_train_batch_size: 1
  activation_checkpointing: none
"""
COMMANDS = {
    "plan": "plan {recipe}",
    "train": "train {recipe}",
    "evaluate": "evaluate {base} --recipe {recipe} --device cpu",
    "chat": "chat {base} --prompt Hello --max-new-tokens 2 --seed 1",
    "merge": "merge {adapter} --base {base} --out {out}",
    "verify": "verify {alone} --base {base} --no-logits",
    "adapter": "adapter {adapter} --base {base} --out {out}",
    "serve-config": "serve-config {base} --target vllm --out {out}",
    "push": "push {adapter} --base {base} --repo me/mine --base-name openai/gpt-oss-20b",
    "convert": "convert {base} --out {out}",
}
PACKED = ("MXFP4", "no `model.`", "snapshot", "cache", "original")


class Lab:
    """The folder in which everything happens."""

    def __init__(self, folder):
        """Write the bases, and train an adapter on each."""
        self.folder = Path(folder)
        self.bases = WAYS.bases(self.folder / "bases")
        self.rows = self.folder / "rows.jsonl"
        self.rows.write_text(json.dumps(ROW) + "\n")
        self.prompts = self.folder / "prompts.jsonl"
        self.prompts.write_text(json.dumps({"messages": ROW["messages"][:1]}) + "\n")
        self.number, self.runs = 0, {}
        for kind, base in self.bases.items():
            code, message = self.run("train", base, kind, self.folder / "runs" / kind)
            assert code == 0, message
            self.runs[kind] = self.folder / "runs" / kind

    def written(self, write):
        """Write a way into a new folder; return what is named."""
        return write(self.bases, self.new("ways"))

    def new(self, where):
        """Return a folder that is not there yet."""
        self.number += 1
        (self.folder / where).mkdir(exist_ok=True)
        return self.folder / where / str(self.number)

    def run(self, command, base, kind, out, adapter=None, alone=None):
        """Run a command on a base in this process; return its exit code and what it refuses by."""
        from typer.testing import CliRunner

        from gptoss_tune.cli import app

        recipe = out.with_name(f"{out.name}.yaml")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        places = {"rows": self.rows, "prompts": self.prompts, "out": out, "base": base}
        recipe.write_text(RECIPE.format(precision=kind, **places))
        others = {"recipe": recipe, "adapter": adapter, "alone": alone}
        words = [word.format(**others, **places) for word in COMMANDS[command].split()]
        result = CliRunner().invoke(app, words)
        error = result.exception
        known = result.exit_code == 0 or hasattr(error, "exit_code") or result.exit_code == 2
        assert known, (command, base, result.output, error)
        if hasattr(error, "exit_code"):
            return result.exit_code, str(error)
        boxed = result.output.partition(" Error ")[2]
        return result.exit_code, " ".join(re.sub("[\u2500-\u257f]", " ", boxed).split())

    def outcomes(self, way, write, commands):
        """Return what each command does with a way: a word, and a message where it refuses."""
        base = self.written(write)
        packed = any(word in way for word in PACKED) and "dense" not in way
        kind = "mxfp4" if packed else "bf16"
        adapter, alone = self.runs[kind], self.alone(base, kind)
        found = {}
        for command in commands:
            out = self.new("out")
            code, message = self.run(command, base, kind, out, adapter, alone)
            if command == "train" and code == 0:
                adapter = out  # what was trained on this very base
            if code == 0:
                found[command] = ("written" if command == "convert" else "read"), ""
            else:
                found[command] = self.kind(command, message), self.shown(message, base)
        return found

    def alone(self, base, kind):
        """Return a base merged with nothing; of one that cannot be, the release."""
        from gptoss_tune.errors import GptossTuneError
        from gptoss_tune.workflows.finished_run import merge

        out = self.new("alone")
        try:
            return merge([], out, base=base, format=kind, verified=False).folder
        except GptossTuneError:
            return self.bases[kind]

    @staticmethod
    def kind(command, message):
        """Return what kind of refusal a message is; `convert` names itself for another option."""
        if "gptoss-tune convert" in message and command != "convert":
            return "`convert`"
        return "not needed" if "in the released layout already" in message else "refused"

    def shown(self, message, base):
        """Return a message without the names of this run's folders."""
        first = message.splitlines()[0]
        first = first.replace(str(base), "BASE").replace(os.path.realpath(base), "BASE")
        first = re.sub(rf"{re.escape(str(self.folder))}/\S*?(?=[,:;`]|\s|$)", "FOLDER", first)
        return first.replace("|", "\\|").replace("<", "&lt;")


def without_a_network():
    """Replace what of a push needs the Hub; everything before it is run."""
    from gptoss_tune.export.hub import name
    from gptoss_tune.workflows import finished_run

    pushed = SimpleNamespace(deleted=[], kept=[], url="https://hub/me/mine", files=1, commit="c")
    name.check_login = lambda repo: None
    finished_run.check_push = lambda repo, public: None
    finished_run.upload = lambda *arguments, **options: pushed


INTRODUCTION = """\
# Ways in which a base comes

People have gpt-oss in many layouts. Each of these is read, converted, or refused with its reason
and the way out.

- **read**: the command reads the folder as it is. Names, orders and experts that lie one by one are
  translated while tensors are read; a fingerprint is that of the same weights in the released
  layout.
- **`convert`**: the command refuses it and names `gptoss-tune convert BASE --out DIR`, since a
  program that is no part of this package would load the folder by itself (transformers and servers
  by the `base_model_name_or_path` of an adapter), miss the tensors and draw them at random.
- **written**: `gptoss-tune convert` writes the released layout. MXFP4 stays MXFP4 byte for byte,
  dense experts stay dense, another dtype than bf16 is rounded to it once; `merge --base --format`
  changes the format of the experts. It streams, goes on where it was stopped, compares every value
  before the folder gets its name, and tells how many tensors were stored in which way.
- **refused**: the message is below.

`python tests/bases/table.py --write docs/bases.md` runs every command on every way, on tiny bases
whose hidden and intermediate size differ, and writes this page; a test compares it. Of `push` the
upload is left out. `adapter` reads a base for its sizes alone.

"""


def lines_of(lab, commands, only=None):
    """Yield the lines of the page: a table for each group, and what is said."""
    for group, ways in EVERY.items():
        yield f"## {group}"
        yield ""
        yield f"| a base that is | {' | '.join(f'`{command}`' for command in commands)} |"
        yield f"|---|{'---|' * len(commands)}"
        said = []
        for way, write in ways.items():
            if only is not None and way not in only:
                continue
            outcomes = lab.outcomes(way, write, commands)
            yield f"| {way} | {' | '.join(kind for kind, _ in outcomes.values())} |"
            told = dict.fromkeys(
                message for kind, message in outcomes.values() if kind in ("refused", "`convert`")
            )
            said += [f"- {way}: {message}" for message in told]
        yield ""
        if said:
            yield from (*said, "")


def main():
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--only", action="append")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    without_a_network()
    with tempfile.TemporaryDirectory(prefix="bases-") as folder:
        page = "\n".join(lines_of(Lab(folder), arguments.commands.split(","), arguments.only))
    if arguments.write is not None:
        arguments.write.write_text(INTRODUCTION + page, encoding="utf-8")
        return
    if arguments.check is None:
        print(page)
        return
    recorded = arguments.check.read_text(encoding="utf-8").splitlines()
    others = [line for line in page.splitlines() if line and line not in recorded]
    print("\n".join(others))
    sys.exit(bool(others))


if __name__ == "__main__":
    main()
