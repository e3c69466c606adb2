"""Record what llama.cpp's converter writes for a few small merges; run where llama.cpp's source is.

    python tests/export/gguf/record_golden.py LLAMA_CPP tests/export/gguf/golden.json

Each case is a base; the converter gets the safetensors folder that ``merge --format mxfp4`` or
``bf16`` writes of it. Long values are kept as hashes. The tests write the same merges as GGUF and
compare: ``conftest.py`` loads this file for the cases and for the form of a listing.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.gguf.file import open_gguf

_LONG = 200


def plain(folder):
    """Nothing is changed."""


def own_settings(folder):
    """Sampling settings, a template inside the tokenizer's settings, named ones beside it."""
    generation = json.loads((folder / "generation_config.json").read_text())
    generation |= {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    named = folder / "additional_chat_templates"
    named.mkdir()
    (named / "tool_use.jinja").write_text("{{ messages }}")
    (named / "rag.jinja").write_text("{{ documents }}")


def own_rotary(folder):
    """Another context, and no sliding window as long as the release's."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "yarn", "factor": 8.0, "truncate": False}
    config |= {"max_position_embeddings": 32768, "sliding_window": 64, "rope_theta": 10000.0}
    config |= {"num_experts_per_tok": 2, "experts_per_token": 2, "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))


def no_yarn(folder):
    """A rotary embedding without YaRN, a template in the tokenizer's settings alone."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "default"}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = (folder / "chat_template.jinja").read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink()


def few_tokens(folder):
    """Tokens that are absent, one that is not special, and rows of the embedding without any."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    gone = tokenizer["added_tokens"].pop()
    kept = {"id": gone["id"], "content": "my word", "special": False, "normalized": True}
    tokenizer["added_tokens"].append({**gone, **kept})
    file.write_text(json.dumps(tokenizer, ensure_ascii=False))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.get("added_tokens_decoder", {}).pop(str(gone["id"]), None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def wide_dtype(folder):
    """The weights that are no codes in float32, with values that bf16 does not have."""
    weights = load_file(folder / "model.safetensors")
    wide = {k: v.float() * 1.001 if v.is_floating_point() else v for k, v in weights.items()}
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})


CASES = {
    # Name of the folder: format of the experts, arguments of the tiny base, what is changed in it.
    "tuned": ("mxfp4", {"layers": 12, "experts": 4}, plain),
    "dense": ("bf16", {"layers": 2, "experts": 4}, plain),
    "from-bf16": ("mxfp4", {"layers": 2, "experts": 4, "format": "bf16"}, plain),
    "gpt-oss-20b-mine-v2.1": ("mxfp4", {"layers": 1, "experts": 4}, own_settings),
    "other": ("mxfp4", {"layers": 3, "experts": 4, "hidden": 128, "intermediate": 64}, own_rotary),
    "acme_bot 7b": ("bf16", {"layers": 1, "experts": 2}, no_yarn),
    "words": ("mxfp4", {"layers": 1, "experts": 4}, few_tokens),
    "wide": ("bf16", {"layers": 1, "experts": 2}, wide_dtype),
}
SHARDED = "tuned"
SHARD_SIZE = 60_000
"""Bytes of a shard of the folder whose tensors the converter meets in another order."""


def make_base(name, folder):
    """Make the base of a case."""
    _, sizes, change = CASES[name]
    tiny_checkpoint(folder, **sizes)
    change(folder)
    return folder


def listing(place):
    """Return keys, tensors and hash of a GGUF, in the form that golden.json has."""
    model = open_gguf(place)
    tensors = {}
    for name, entry in model.tensors.items():
        data = model.read_rows(name, 0, entry.shape[0])
        tensors[name] = [entry.type, list(entry.shape), entry.offset, _short_hash(data)]
    keys = {name: [key.type, _shortened(key.value)] for name, key in model.keys.items()}
    whole = hashlib.sha256(model.files[0].path.read_bytes()).hexdigest()
    return {"keys": keys, "tensors": tensors, "sha256": whole}


def _shortened(value):
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONG:
        return value
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "length": len(value)}


def _short_hash(data):
    return hashlib.sha256(data).hexdigest()[:16]


def convert(llama_cpp, folder, out):
    """Run llama.cpp's converter on a folder."""
    command = [sys.executable, str(llama_cpp / "convert_hf_to_gguf.py"), str(folder)]
    subprocess.run([*command, "--outfile", str(out)], check=True, capture_output=True)


def main(llama_cpp, target):
    llama_cpp = Path(llama_cpp)
    update = (llama_cpp / "gguf-py" / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', update, re.MULTILINE)[1]
    converter = (llama_cpp / "conversion" / "gpt_oss.py").read_bytes()
    cases = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, (expert_format, _, _)) in enumerate(CASES.items()):
            work = Path(scratch) / str(number)
            base = open_checkpoint(make_base(name, work / "base"))
            options = {"expert_format": expert_format}
            merge(base, [], work / name, MergeOptions(**options))
            convert(llama_cpp, work / name, work / "out.gguf")
            cases[name] = listing(work / "out.gguf")
            if name == SHARDED:
                shutil.rmtree(work / name)
                merge(base, [], work / name, MergeOptions(**options, max_shard_size=SHARD_SIZE))
                convert(llama_cpp, work / name, work / "out2.gguf")
                order = list(open_gguf(work / "out2.gguf").tensors)
            print(name, cases[name]["sha256"], flush=True)
    recorded = {
        "converter": {
            "gguf-py": version,
            "conversion/gpt_oss.py": _short_hash(converter),
            "conversion/base.py": _short_hash((llama_cpp / "conversion/base.py").read_bytes()),
        },
        "cases": cases,
        "sharded_order": order,
    }
    Path(target).write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
