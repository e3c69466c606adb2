"""The table of mistakes: what each is told, its exit code and its cost; none needs torch.

``python tests/mistakes.py --write docs/mistakes.md`` runs each in a process of its own and writes
the page (a minute); ``--check docs/mistakes.md`` runs all in this process and says which messages
are other ones than the page shows, and whether torch was imported. The files that the mistakes are
made with are written into a folder of their own; nothing is downloaded.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "pad_token_id": 199999,
    "quantization_config": {"quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
RECIPE = """\
model:
  name_or_path: base
data:
  train: rows.jsonl
  max_length: 256
train:
  output_dir: runs/new
  max_steps: 10
"""
SMI = """\
#!/bin/sh
case "$*" in *query*) echo "GPU-0, [N/A], NVIDIA GeForce RTX 4090, 24564";; esac
"""
ENOUGH, MOST_TRIES = 0.6, 6
"""CPU seconds that need no second try, and how many further ones there are."""
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Mistake:
    """One command that goes wrong."""

    what: str
    words: str
    code: int
    environment: dict = field(default_factory=dict)
    figures: bool = False
    """Whether the message has figures of the machine in it."""


MISTAKES = [
    # The recipe.
    Mistake("a recipe that is not there", "check nowhere.yaml", 2),
    Mistake("a folder as a recipe", "check runs", 2),
    Mistake("a key with a slip in it", "check r.yaml train.lerning_rate=1e-4", 2),
    Mistake("a key of another program", "check r.yaml train.bf16=true", 2),
    Mistake("a value of the wrong kind", "check r.yaml train.max_steps=many", 2),
    Mistake("a value out of range", "check r.yaml data.eval_fraction=0.9", 2),
    Mistake("a word with a slip in it", "check r.yaml train.optim=adamv", 2),
    Mistake(
        "settings that contradict each other",
        "check r.yaml train.warmup_steps=5 train.warmup_ratio=0.1",
        2,
    ),
    Mistake("a YAML file with a tab", "check tab.yaml", 2),
    Mistake("an override without a value", "check r.yaml train.seed", 2),
    Mistake("two values and no sweep", "check r.yaml train.learning_rate=[1e-4]", 2),
    Mistake("a card that is not known", "plan r.yaml --gpu rtx4095", 2),
    # The data.
    Mistake("a data file with a slip in its name", "train r.yaml data.train=row.jsonl", 2),
    Mistake("an empty data file", "train r.yaml data.train=empty.jsonl", 2),
    Mistake("a line that is not JSON", "train r.yaml data.train=broken.jsonl", 2),
    Mistake("columns that nothing is known of", "train r.yaml data.train=other.jsonl", 2),
    Mistake("pairs for fine-tuning", "train r.yaml data.train=pairs.jsonl", 2),
    Mistake("conversations for DPO", "train r.yaml method.name=dpo", 2),
    Mistake("a picture as data", "train r.yaml data.train=picture.png", 2),
    Mistake("a conversation without an answer", "train r.yaml data.train=unanswered.jsonl", 2),
    Mistake("prompts that are not there", "train r.yaml evaluation.prompts=ask.jsonl", 2),
    # The base and the run's folder.
    Mistake("a base that is not there", "train r.yaml model.name_or_path=./nowhere", 2),
    Mistake("a base of another family", "train r.yaml model.name_or_path=llama", 2),
    Mistake("a base without weights", "train r.yaml model.name_or_path=config-only", 2),
    Mistake("a layer that the base has not", "train r.yaml lora.layers=[5]", 2),
    Mistake("an output folder with other files", "train r.yaml train.output_dir=notes", 2),
    Mistake("an output folder that is a file", "train r.yaml train.output_dir=rows.jsonl", 2),
    Mistake("a run that is finished", "train r.yaml train.output_dir=runs/done", 2),
    Mistake("a checkpoint that is not there", "train r.yaml train.resume=runs/x/checkpoint-9", 2),
    Mistake("an adapter to start from that is none", "train r.yaml lora.init_from=notes", 2),
    Mistake("a change that nothing continues", "train r.yaml --allow-change train.seed", 2),
    Mistake(
        "three mistakes at once",
        "train r.yaml data.train=no.jsonl train.output_dir=notes lora.init_from=notes",
        2,
    ),
    # The machine.
    Mistake(
        "more processes than GPUs",
        "train r.yaml distributed.num_processes=4",
        3,
        {"PATH": "bin", "CUDA_VISIBLE_DEVICES": None},
    ),
    Mistake(
        "processes that do not divide the experts",
        "train r.yaml distributed.num_processes=3 distributed.strategy=fsdp2",
        2,
        NO_GPU,
    ),
    Mistake(
        "a large model without a GPU",
        "train r.yaml model.name_or_path=openai/gpt-oss-120b train.max_steps=100000",
        3,
        NO_GPU,
        figures=True,
    ),
    Mistake("a sweep of many runs", "train r.yaml train.seed=[1,2,3,4,5] lora.rank=[4,8,16]", 2),
    # A finished run.
    Mistake("a report of no run", "report notes", 2),
    Mistake("a run that is not there", "merge runs/nowhere --out merged", 2),
    Mistake("an output folder that exists", "merge runs/done --out notes", 2),
    Mistake("a run that has not finished", "merge runs/half --out merged", 2),
    Mistake("a merged folder that is not there", "verify nowhere --adapter runs/done", 2),
    Mistake("an adapter for a reader unknown here", "adapter runs/done --out a --for ollama", 2),
    Mistake("a repository without an owner", "push runs/done --repo support-bot", 2),
    Mistake("an address as a repository", "push runs/done --repo https://hf.co/acme/bot", 2),
    Mistake("a push without a login", "push runs/done --repo acme/bot", 3),
    Mistake("a server for a model that is not there", "serve-config no --target vllm --out s", 2),
    Mistake("a chat with nothing", "chat nowhere --prompt hi", 2),
    Mistake("a temperature below 0", "chat runs/done --temperature -1", 2),
    Mistake("a port that is none", "chat runs/done --serve --port 70000", 2),
    Mistake("an evaluation that asks nothing", "evaluate runs/done", 2),
    Mistake("a run to reproduce that was stopped", "reproduce runs/half", 2),
    Mistake("an option with a slip in it", "train r.yaml --alow-change train.seed", 2),
    Mistake("a command with a slip in it", "trian r.yaml", 2),
]


def stage(folder):
    """Write the files that the mistakes are made with."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    texts = {
        "r.yaml": RECIPE,
        "tab.yaml": RECIPE.replace("  max_steps", "\tmax_steps"),
        "rows.jsonl": json.dumps({"messages": turns}) + "\n",
        "unanswered.jsonl": json.dumps({"messages": turns[:1]}) + "\n",
        "pairs.jsonl": json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n",
        "other.jsonl": json.dumps({"id": 1, "body": "x"}) + "\n",
        "broken.jsonl": json.dumps({"messages": turns}) + '\n{"messages": [\n',
        "empty.jsonl": "",
        "notes/todo.txt": "milk\n",
        "llama/config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}),
        "config-only/config.json": json.dumps(CONFIG),
        "base/config.json": json.dumps(CONFIG),
        "runs/half/checkpoint-4/config.json": "{}",
        "bin/nvidia-smi": SMI,
    }
    for name, status in (("done", "finished"), ("half", "stopped")):
        record = {"run_id": "x", "status": status, "fingerprint": {"steps": 4}, "changes": []}
        texts[f"runs/{name}/run.json"] = json.dumps({**record, "base": {"name": "base"}})
        texts[f"runs/{name}/recipe.yaml"] = RECIPE
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, "lora_alpha": 8}
    adapter["target_modules"] = ["q_proj"]
    texts["runs/done/adapter/adapter_config.json"] = json.dumps(adapter)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "bin" / "nvidia-smi").chmod(0o755)
    header = b"{}".ljust(8)
    empty = len(header).to_bytes(8, "little") + header
    (folder / "base" / "model.safetensors").write_bytes(empty)
    (folder / "runs/done/adapter/adapter_model.safetensors").write_bytes(empty)
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))


def compiled_in(folder):
    """Return where the processes of the page keep what Python compiled."""
    return folder.parent / f"{folder.name}-compiled"


def environment_of(mistake, folder):
    """Return the environment of a mistake: no login, no network, a wide terminal.

    Python keeps what it compiled, as it does in every install: the first of a few tries pays.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    plain.pop("PYTHONDONTWRITEBYTECODE", None)
    plain |= {"PYTHONPYCACHEPREFIX": str(compiled_in(folder))}
    plain |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    plain |= {"COLUMNS": "300", "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    for name, value in mistake.environment.items():
        if value is None:
            plain.pop(name, None)
        elif name == "PATH":
            plain[name] = f"{folder / value}{os.pathsep}{plain[name]}"
        else:
            plain[name] = value
    return plain


def message_of(text):
    """Return the message of what was written to standard error: a usage error out of its box."""
    lines = [line.strip().strip("\u2502|").strip() for line in text.splitlines()]
    lines = [line for line in lines if re.search(r"\w", line)]
    if lines and lines[0].startswith("Usage:"):
        lines = [line for line in lines if not re.match(r"(Usage:|Try |.{0,3} ?Error )", line)]
    return "\n".join(lines)


def here(mistake, folder):
    """Run a mistake in this process; return its message and its exit code."""
    from gptoss_tune.cli import main

    said, code = io.StringIO(), 0
    before, words = dict(os.environ), sys.argv
    asked = environment_of(mistake, folder)
    os.environ.clear()
    os.environ.update(asked)
    sys.argv = ["gptoss-tune", *mistake.words.split()]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as error:
        code = error.code
    finally:
        os.environ.clear()
        os.environ.update(before)
        sys.argv = words
    return message_of(said.getvalue()), code


def alone(mistake, folder):
    """Run a mistake in a process of its own; return message, exit code and CPU seconds."""
    said = folder / "said"
    written = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    words = [sys.executable, "-P", "-m", "gptoss_tune", *mistake.words.split()]
    process = os.posix_spawn(
        words[0],
        words,
        environment_of(mistake, folder),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(said), written, 0o600),
        ],
    )
    _, status, used = os.wait4(process, 0)
    seconds = used.ru_utime + used.ru_stime
    return message_of(said.read_text("utf-8")), os.waitstatus_to_exitcode(status), seconds


def cell(text):
    """Return text as a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def row(mistake, message):
    """Return what the page shows of a mistake's message: its first line, figures left out."""
    first, *rest = message.splitlines() or [""]
    first = first.removeprefix("error: ")
    if rest:
        first += f" (and {len(rest)} lines)"
    first = re.sub(r"/\S*/mistakes-\w+", "FOLDER", first)
    return cell(re.sub(r"\d[\d,.]*", "N", first) if mistake.figures else first)


INTRODUCTION = """\
# Mistakes, and what is said of them

Every command ends with a message that says what was got, what was expected and what to do, and
with an exit code: 0 done, 2 your input, 3 the machine, 4 undecided, 75 stopped and resumable. What
can be known beforehand is said before torch is imported, a base is downloaded or a GPU is touched,
and everything that stands in the way of a run is said at once, with the line of its setting.

`python tests/mistakes.py --write docs/mistakes.md` makes this table: each command in a process of
its own, in a folder with a tiny base, a few rows and two runs. CPU seconds are those of the process
and of the system for it, the least of a few tries: they grow with what else the cores do. `N`
stands for a figure of the machine, `FOLDER` for that folder.

"""


def write(path, folder):
    """Run every mistake alone and write the page."""
    lines = [
        "| mistake | command | first line of the message | exit code | CPU s |",
        "|---|---|---|---|---|",
    ]
    worst = 0.0
    for mistake in MISTAKES:
        message, code, seconds = alone(mistake, folder)
        for _ in range(MOST_TRIES):
            if seconds > ENOUGH:
                seconds = min(seconds, alone(mistake, folder)[2])
        assert code == mistake.code, (mistake.what, code, message)
        worst = max(worst, seconds)
        told = row(mistake, message)
        lines.append(
            f"| {mistake.what} | `gptoss-tune {cell(mistake.words)}` | {told} | {code} "
            f"| {seconds:.2f} |"
        )
        sys.stderr.write(f"{seconds:.2f} {mistake.what}\n")
    summary = f"\n{len(MISTAKES)} mistakes; the dearest costs {worst:.2f} CPU seconds.\n"
    path.write_text(INTRODUCTION + "\n".join(lines) + "\n" + summary, encoding="utf-8")


def check(path, folder):
    """Run every mistake here; return what is not as the page says."""
    shown = {}
    for line in path.read_text("utf-8").splitlines():
        cells = [part.strip() for part in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 7 and cells[4].isdigit():
            shown[cells[1]] = (cells[3], int(cells[4]))
    wrong = [f"not on the page: {m.what}" for m in MISTAKES if m.what not in shown]
    for mistake in MISTAKES:
        message, code = here(mistake, folder)
        told = (row(mistake, message), code)
        if mistake.what in shown and told != shown[mistake.what]:
            wrong.append(f"{mistake.what}: {told}, on the page {shown[mistake.what]}")
        if "torch" in sys.modules:
            return [*wrong, f"torch was imported by: {mistake.what}"]
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mistakes-"))
    paths = {name: value and value.resolve() for name, value in vars(asked).items()}
    start = Path.cwd()
    try:
        stage(folder)
        os.chdir(folder)
        if paths["write"]:
            write(paths["write"], folder)
        if paths["check"]:
            wrong = check(paths["check"], folder)
            print("\n".join(wrong) or f"{len(MISTAKES)} messages are as shown, without torch")
            return 1 if wrong else 0
        if not any(paths.values()):
            for mistake in MISTAKES:
                print(f"{mistake.what} -> {here(mistake, folder)}")
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
        shutil.rmtree(compiled_in(folder), ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
