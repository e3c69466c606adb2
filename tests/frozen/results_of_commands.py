"""Commands, plans and rendered data: what is printed, planned and trained on, without long runs."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import surface
from results_of_runs import digests, recipe_of

_TINY = "recipes/tiny/qlora.yaml"
_LARGE = "recipes/gpt-oss-20b/qlora.yaml"
_TARGETS = ("vllm", "sglang", "transformers", "triton-server", "tensorrt-llm", "azure-ml", "nim")
_MERGE = ("merge", "runs/first", "--format", "bf16", "--no-verify")
_VERIFY = ("verify", "merged", "--adapter", "runs/first")
_SERVE = ("serve-config", "merged", "--out", "served", "--target")

# Name, then the arguments; in this order, since later ones use what earlier ones wrote. The first
# word of a name is the command. Only refused inputs for push (needs the network) and demo (takes
# minutes; what it does is train, merge and chat).
CASES = {
    "root version": ("--version",),
    "root nothing": (),
    "root bad": ("no-such-command",),
    "root bad option": ("--no-such-option", "check"),
    "check good": ("check", _TINY),
    "check good large": ("check", _LARGE, "train.seed=3"),
    "check good json": ("check", _TINY, "--json"),
    "check bad": ("check", _TINY, "train.sed=3", "lora.rank=x", "model.backend=cuda"),
    "check bad json": ("check", _TINY, "train.sed=3", "--json"),
    "check bad contradiction": ("check", _TINY, "train.num_train_epochs=1"),
    "check bad file": ("check", "missing.yaml"),
    "schema good": ("schema",),
    "schema bad": ("schema", "extra"),
    "recipes good": ("recipes",),
    "recipes good json": ("recipes", "--json"),
    "recipes bad": ("recipes", "extra"),
    "plan good": ("plan", _LARGE),
    "plan good small card": ("plan", _LARGE, "--gpu", "rtx4090-24gb"),
    "plan good several": ("plan", _LARGE, "--gpus", "8", "--strategy", "ddp"),
    "plan bad several": ("plan", _LARGE, "--gpus", "8", "--strategy", "fsdp2"),
    "plan bad": ("plan", _LARGE, "--gpu", "abacus"),
    "plan bad strategy": ("plan", _LARGE, "--strategy", "thin"),
    "preview good": ("preview", _TINY, "--n", "2"),
    "preview good eval": ("preview", "recipes/tiny/lora.yaml", "--n", "1", "--split", "eval"),
    "preview good html": ("preview", _TINY, "--n", "2", "--html", "preview.html"),
    "preview bad": ("preview", _TINY, "--split", "test"),
    "check-data good": ("check-data", _TINY),
    "check-data good json": ("check-data", "recipes/tiny/lora.yaml", "--json"),
    "check-data good large": ("check-data", _LARGE, "--strict"),
    "check-data bad": ("check-data", _TINY, "data.train=broken.jsonl"),
    "check-data bad file": ("check-data", _TINY, "data.train=missing.jsonl"),
    "tiny good": ("tiny", "new", "--layers", "1", "--experts", "4", "--seed", "5"),
    "tiny bad": ("tiny", "other", "--hidden", "33"),
    "tiny bad folder": ("tiny", "new"),
    "train good": ("train", "first.yaml"),
    "train bad processes": ("train", "first.yaml", f"{surface.PROCESSES}=2"),
    "train bad": ("train", "first.yaml", "train.max_steps=0"),
    "train bad finished": ("train", "first.yaml"),
    "report good": ("report", "runs/first"),
    "report bad": ("report", "runs/missing"),
    "merge good": (*_MERGE[:-1], "--out", "merged"),
    "merge good mxfp4": ("merge", "runs/first", "--format", "mxfp4", "--accept-loss", "--out", "m"),
    "merge good gguf": ("merge", "runs/first", "--format", "gguf", "--accept-loss", "--out", "g"),
    "merge bad": ("merge", "runs/missing", "--out", "merged-2"),
    "merge bad folder": (*_MERGE, "--out", "merged"),
    "merge bad calibrate": (*_MERGE, "--out", "merged-2", "--calibrate-steps", "3"),
    "verify good": _VERIFY,
    "verify good json": (*_VERIFY, "--no-logits", "--json"),
    "verify bad": ("verify", "missing"),
    "verify bad merge": ("verify", surface.BASE, "--adapter", "runs/first", "--no-logits"),
    "adapter good peft": ("adapter", "runs/first", "--out", "peft"),
    "adapter good vllm": ("adapter", "runs/first", "--out", "vllm", "--for", "vllm"),
    "adapter good llama.cpp": ("adapter", "runs/first", "--out", "lora", "--for", "llama.cpp"),
    "adapter good bundle": ("adapter", "runs/first", "--for", "vllm", "--bundle", "bundle"),
    "adapter bad sglang": ("adapter", "runs/first", "--out", "sglang", "--for", "sglang"),
    "adapter bad": ("adapter", "runs/missing", "--out", "peft-2"),
    "adapter bad reader": ("adapter", "runs/first", "--out", "peft-2", "--for", "ollama"),
    **{f"serve-config good {name}": (*_SERVE, name) for name in _TARGETS},
    "serve-config good adapter": ("serve-config", "runs/first", "--target", "vllm", "--out", "s"),
    "serve-config good gguf": ("serve-config", "g", "--target", "ollama", "--out", "o"),
    "serve-config bad": (*_SERVE, "toaster"),
    "push bad": ("push", "runs/missing", "--repo", "owner/name"),
    "push bad repo": ("push", "runs/first"),
    "chat good": (
        "chat",
        "merged",
        "--prompt",
        "Hi",
        "--max-new-tokens",
        "6",
        "--temperature",
        "0",
    ),
    "chat bad server": ("chat", "http://127.0.0.1:9", "--device", "cpu"),
    "chat bad": ("chat", "merged", "--prompt", "Hi", "--effort", "huge"),
    "evaluate good": ("evaluate", "runs/first", "--recipe", "asks.yaml"),
    "evaluate good json": ("evaluate", "merged", "--recipe", "asks.yaml", "--json"),
    "evaluate bad": ("evaluate", "runs/first"),
    "suites good": ("suites",),
    "suites good one": ("suites", "tools", "--json"),
    "suites bad": ("suites", "mathz"),
    "benchmark good": (
        *("benchmark", "data/prompts/tiny.jsonl", "--subjects", "base,runs/first"),
        *("--limit", "4", "--max-new-tokens", "8", "--cache", "answers", "--fresh"),
    ),
    "benchmark bad": ("benchmark", "maths", "--subjects", "runs/missing"),
    "benchmark bad requirement": (
        *("benchmark", "maths", "--subjects", "runs/first", "--require", "mathz>=0.8"),
    ),
    "init good": ("init", "--data", "rows.jsonl", "--gpu", "4090", "--out", "mine.yaml", "--yes"),
    "init bad": ("init", "--data", "missing.jsonl", "--gpu", "4090", "--yes"),
    "convert good": ("convert", "axolotl.yml"),
    "convert bad checkpoint": ("convert", surface.BASE, "--out", "converted"),
    "convert bad": ("convert", "first.yaml"),
    "ui bad": ("ui", "missing"),
    "launch good slurm": ("launch", _LARGE, "--slurm", "--out", "-"),
    "launch good skypilot": ("launch", "first.yaml", "--skypilot", "--out", "-", "--spot"),
    "launch good file": ("launch", _LARGE, "--slurm", "--nodes", "2", "--accelerate", "fsdp2"),
    "launch bad": ("launch", _LARGE),
    "launch bad resume": ("launch", _LARGE, "train.resume=never", "--slurm"),
    "reproduce good": ("reproduce", "runs/first"),
    "reproduce bad": ("reproduce", "runs/missing"),
    "demo bad": ("demo", "train.sed=3", "--folder", "demo"),
}
# What a command wrote, by the name of the case.
WRITTEN = {
    "preview good html": "preview.html",
    "tiny good": "new",
    "merge good": "merged",
    "merge good mxfp4": "m",
    "merge good gguf": "g",
    "adapter good peft": "peft",
    "adapter good vllm": "vllm",
    "adapter good llama.cpp": "lora",
    "adapter good bundle": "bundle",
    **{f"serve-config good {name}": "served" for name in _TARGETS},
    "serve-config good adapter": "s",
    "serve-config good gguf": "o",
    "launch good file": "gpt-oss-20b-qlora.sbatch",
}


def commands():
    """Return what every command says of itself, of a good input and of a bad one."""
    _write_inputs()
    found = {"root help": surface.run_cli("--help")}
    for name in command_names(found["root help"]["stdout"]):
        found[f"{name} help"] = surface.run_cli(name, "--help")
    known = {name.split()[0] for name in found} | {"root"}
    untried = known - {name.split()[0] for name in CASES}
    if untried:
        raise SystemExit(f"no input in CASES for: {', '.join(sorted(untried))}")
    for name, arguments in CASES.items():
        result = surface.run_cli(*arguments)
        if name in WRITTEN:
            result["written"] = _written(Path(WRITTEN[name]))
        found[name] = {"arguments": list(arguments), **result}
        if name.startswith("serve-config") and Path("served").exists():
            Path("served").rename(name.replace(" ", "-"))
    return {**found, **_module()}


def command_names(lines):
    """Return the commands on the root's help page."""
    # Below the panel of options one panel a group.
    start = next(i for i, line in enumerate(lines) if "Start" in line)
    found = (re.match(r"[│|] ([a-z][a-z-]*)\s{2,}\S", line) for line in lines[start + 1 :])
    return [match[1] for match in found if match]


def _write_inputs():
    recipe_of("first", {**surface.RUNS["unpacked"], "train.max_steps": 2})
    recipe_of("asks", surface.RUNS["answers"])
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": f"{n}"},
            ]
        }
        for n in range(24)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("axolotl.yml").write_text(
        "base_model: openai/gpt-oss-20b\nadapter: qlora\nlora_r: 8\nlora_alpha: 16\n"
        "sequence_len: 4096\nsample_packing: true\nmicro_batch_size: 1\nnum_epochs: 1\n"
        "datasets:\n  - path: rows.jsonl\n    type: chat_template\n    ds_type: json\n"
        "learning_rate: 2e-4\noutput_dir: ./out\nflash_attention: true\n"
    )
    lines = Path("rows.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    lines += ["{broken", '{"messages": [{"role": "user", "content": "Hi"}]}', '{"other": 1}']
    Path("broken.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _written(path):
    if path.is_dir():
        return digests(path)
    return surface.file_sha256(path) if path.is_file() else None


def _module():
    """The other way to start a run, of which only the refusals are quick."""
    found = {}
    for name, arguments in {"nothing": [], "bad": ["first.yaml", "train.sed=1"]}.items():
        command = [sys.executable, "-m", surface.RUN_MODULE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        said = {"stdout": surface.short(done.stdout), "stderr": surface.short(done.stderr)}
        found[f"module {name}"] = {"code": done.returncode, **said}
    return found


def plans():
    """Return the plan of every shipped recipe, on cards of three sizes and on several."""
    found = {}
    for path in _recipes():
        for options in (
            ["--gpu", "rtx4090-24gb"],
            ["--gpu", "h100-80gb"],
            ["--gpu", "h200-141gb", "--tokens", "1000000"],
            ["--gpus", "8", "--strategy", "ddp"],
            ["--gpus", "8", "--strategy", "fsdp2"],
        ):
            ended = surface.run_cli("plan", path, *options, "--json")
            if ended["code"] in (0, 3) and ended["stdout"] != [""]:
                ended["stdout"] = json.loads("\n".join(ended["stdout"]))
            found[" ".join([path, *options])] = ended
    return found


def _recipes():
    paths = sorted(map(str, Path("recipes").glob("*/*.yaml")))
    return [path for path in paths if "accelerate" not in path]


def rendered():
    """Return count and hash of what training reads: each file of conversations, each recipe."""
    found = {}
    for path in sorted(Path("data").glob("*/*.jsonl")):
        no_answers = path.stem in ("tools_train", "tools_eval")  # prompts to be played
        of_preferences = path.stem.startswith(("pairs", "labels"))
        if path.parent.name in ("conversations", "tiny") and not (of_preferences or no_answers):
            for packing in ("false", "true"):
                settings = [f"data.train={path}", "data.max_length=4096", f"data.packing={packing}"]
                name = f"{path}{' packed' if packing == 'true' else ''}"
                found[name] = _digest(surface.rendered_rows(_TINY, settings, "train"))
    for path in _recipes():
        if "grpo" in Path(path).stem:  # its rows are prompts: nothing is rendered before a run
            continue
        held_out = "\n  eval:" in Path(path).read_text(encoding="utf-8")
        for split in ("train", "eval") if held_out else ("train",):
            found[f"{path} {split}"] = _digest(surface.rendered_rows(path, [], split))
    return found


def _digest(rows):
    """Hash ids, weights and positions of rows; where one row ends is part of it."""
    kinds = {"input_ids": np.int64, "loss_weights": np.float64, "position_ids": np.int64}
    hashes = {name: hashlib.sha256() for name in kinds}
    count = tokens = 0
    trained = 0.0
    for row in rows:
        count, tokens = count + 1, tokens + len(row["input_ids"])
        trained += float(sum(row["loss_weights"]))
        for name, kind in kinds.items():
            if name in row:
                values = np.asarray(row[name], dtype=kind)
                hashes[name].update(len(values).to_bytes(8, "little") + values.tobytes())
    sums = {f"{name}_sha256": each.hexdigest() for name, each in hashes.items()}
    return {"rows": count, "tokens": tokens, "summed_weights": trained, **sums}
