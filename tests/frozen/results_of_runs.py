"""Runs and merges: losses, bytes of adapters and of merged checkpoints, names of files."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import surface


def prepare(work):
    """Fill the empty working folder and make it the current one."""
    os.chdir(work)
    for name in ("data", "recipes"):
        Path(name).symlink_to(surface.ROOT / name)
    surface.make_base()
    lines = Path("data/tiny/train.jsonl").read_text(encoding="utf-8").splitlines()
    for name, chosen in (("rows", lines[:8]), ("eval", lines[8:11])):
        Path(f"{name}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")


def recipe_of(name, settings):
    """Write the recipe of the run ``runs/NAME`` and return its path."""
    path = f"{name}.yaml"
    output = {"train.output_dir": f"runs/{name}"}
    surface.write_recipe(path, {**surface.COMMON, **settings, **output})
    return path


def train(name, settings):
    """Train in this process; return how it ended."""
    return surface.run_cli("train", recipe_of(name, settings))


def runs():
    """Return the results of every kind of short run."""
    found = {}
    for name, settings in surface.RUNS.items():
        found[name] = described(name, train(name, settings))
    for name, interrupt in (("stopped", _stop), ("killed", _kill)):
        first = interrupt(name)
        resumed = described(name, train(name, surface.RESUMED), resumed=True)
        for key in ("adapter_sha256", "steps"):
            resumed[f"{key}_as_uninterrupted"] = resumed.get(key) == found["whole"].get(key)
        found[name] = {"interrupted": first, **resumed}
    for name, settings in surface.RANKS.items():
        recipe = recipe_of(name, settings)
        ended = surface.run_on_two_ranks(recipe, sharded=name == "fsdp2")
        found[name] = described(name, ended)
    return found


def _stop(name):
    """Send SIGTERM to this process once the first checkpoint is there."""

    def ask():
        if _wait_for(Path("runs", name, "checkpoint-2")):
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=ask)
    watcher.start()
    ended = train(name, surface.RESUMED)
    watcher.join()
    return {"code": ended["code"]}


def _kill(name):
    """Kill the process of a run once the first checkpoint is there."""
    process = surface.run_process(recipe_of(name, surface.RESUMED))
    _wait_for(Path("runs", name, "checkpoint-2"))
    process.kill()
    return {"code": process.wait(), "had_adapter": Path("runs", name, "adapter").exists()}


def _wait_for(path, seconds=180):
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def described(name, ended, *, resumed=False):
    """Return what a run left in its folder."""
    run = Path("runs", name)
    if ended["code"] != 0:
        return {"ended": ended, "files": files(run)}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((run / "run.json").read_text())
    answers = sorted((run / "evaluation").glob("*.json"))
    names = files(run)
    if resumed:  # which ones are kept depends on the step of the interruption
        names = [path for path in names if not path.startswith("checkpoint-")]
    return {
        "steps": [surface.steady(line) for line in lines if "loss" in line],
        "other_lines": [surface.steady(line) for line in lines if "loss" not in line],
        "metric_keys": sorted({key for line in lines for key in line}),
        "adapter_sha256": surface.file_sha256(run / "adapter/adapter_model.safetensors"),
        "adapter_config": _sorted(json.loads((run / "adapter/adapter_config.json").read_text())),
        "layers_sha256": surface.file_sha256(run / "layers.jsonl"),
        "record_keys": sorted(_keys(record)),
        "evaluation": {path.name: surface.steady(json.loads(path.read_text())) for path in answers},
        "files": names,
    }


def _sorted(config):
    """Return a configuration with its lists in order: PEFT writes sets."""
    return {name: sorted(v) if isinstance(v, list) else v for name, v in config.items()}


def _keys(record):
    """Yield the names in ``run.json``, two deep; settings are the business of the recipe."""
    for name, value in record.items():
        if isinstance(value, dict) and name not in ("recipe", "fingerprint"):
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield name


def files(folder):
    """Return the paths of all files in a folder, relative to it."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def digests(folder):
    """Return the hash of each file; of a run's record, which holds times, its names alone."""
    found = {name: surface.file_sha256(folder / name) for name in files(folder)}
    for name in found:
        if Path(name).name in ("run.json", "names.json"):  # the latter has the hash of the former
            found[name] = sorted(_keys(json.loads((folder / name).read_text())))
    return found


def merges():
    """Return the bytes of merges in both layouts, and how one that loses too much is refused."""
    for name in ("unpacked", "merge_aware"):
        train(name, surface.RUNS[name])
    cases = {
        "bf16": ("unpacked", "--format", "bf16"),
        "bf16_in_shards": ("unpacked", "--format", "bf16", "--max-shard-size", "200000"),
        "mxfp4": ("unpacked", "--format", "mxfp4"),
        "mxfp4_accepted": ("unpacked", "--format", "mxfp4", "--accept-loss"),
        "mxfp4_merge_aware": ("merge_aware", "--format", "mxfp4"),
        "bf16_of_two": ("unpacked", "runs/merge_aware=0.5", "--format", "bf16"),
    }
    found = {}
    for name, (run, *options) in cases.items():
        out = Path("merged", name)
        ended = surface.run_cli("merge", f"runs/{run}", *options, "--out", str(out), "--json")
        if isinstance(ended["stdout"], list) and ended["code"] == 0:
            ended["stdout"] = surface.steady(json.loads("\n".join(ended["stdout"])))
        found[name] = {"ended": ended, "files": digests(out) if out.is_dir() else None}
    return found
