"""Bundles of several adapters beside one base: what is written, what is refused, what it takes."""

import json
import math
import re

import peft
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.adapters.bundle import beside, read_bundle
from gptoss_tune.export.serve.adapters.names import adapter_names, served_base_name
from gptoss_tune.export.serve.deployment.adapters import Adapters
from gptoss_tune.export.serve.deployment.places import BUNDLE_MOUNT, TO_SCRIPT
from gptoss_tune.export.serve.served import Served
from gptoss_tune.export.serve.sizes.lora import slot_bytes
from gptoss_tune.export.serve.vllm import vllm_arguments

PROMPT = [[200006, 1428, 200008, 40, 41, 42, 200007]]
OF_20B = {
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
OF_120B = {**OF_20B, "num_local_experts": 128, "num_hidden_layers": 36}


def run(*arguments):
    return CliRunner().invoke(app, ["adapter", *map(str, arguments)])


def bundled(base, several, out, *options):
    result = run(*several.values(), "--base", base, "--for", "vllm", "--bundle", out, *options)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def bundle(base, several, chosen, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "out"
    return out, bundled(base, {**several, "chosen": f"chosen={chosen[0]}"}, out)


def test_all_adapters_have_one_rank_that_vllm_takes(bundle, several):
    out, _ = bundle
    assert sorted(p.name for p in (out / "adapters").iterdir()) == sorted([*several, "chosen"])
    for folder in (out / "adapters").iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (16, 16)
        assert config["rank_pattern"] == {} and config["alpha_pattern"] == {}
        weights = load_file(folder / "adapter_model.safetensors")
        rows = {b.shape[1] for name, b in weights.items() if "lora_B" in name}
        assert rows == ({16} if folder.name == "tone" else {16, 4 * 16})


class AsVllm:
    """The factors of a folder as vLLM 0.33.0 has them on the GPU for a gpt-oss model.

    ``lora_model.py``: keys without ``base_model.model.`` and ``.lora_A.weight``, scale alpha / r
    into B. ``model_manager.py``, ``_stack_moe_lora_weights``: ``experts.base_layer`` is
    gate_up_proj, ``experts`` down_proj; A ``reshape(E, -1, in)``, B ``reshape(out, -1, E)`` with
    the experts put first; a layer without ``experts`` is left at zero, whatever ``base_layer``
    holds. ``layers/fused_moe.py``, ``set_lora``: copied into zeros of ``max_lora_rank``.
    """

    def __init__(self, folder, experts, max_lora_rank):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] <= max_lora_rank
        self.rank, self.experts = max_lora_rank, experts
        self.factors = {}
        for name, tensor in load_file(folder / "adapter_model.safetensors").items():
            parts = name.split(".")
            assert parts[:2] == ["base_model", "model"] and parts[-1] == "weight"
            key, which = ".".join(parts[2:-2]), parts[-2]
            scale = config["lora_alpha"] / config["r"] if which == "lora_B" else 1.0
            self.factors.setdefault(key, {})[which] = tensor * scale

    def changes(self):
        """The change of each weight in transformers' layout."""
        changes = {}
        for key, pair in self.factors.items():
            a, b = pair["lora_A"], pair["lora_B"]
            if ".experts" not in key:
                changes[f"{key}.weight"] = self._slot(b[None]) @ self._slot(a[None], rows=True)
                continue
            stem = key.removesuffix(".base_layer")
            if stem not in self.factors:
                continue  # dropped without a word
            projection = "gate_up_proj" if key.endswith(".base_layer") else "down_proj"
            a = a.reshape(self.experts, -1, a.shape[-1])
            b = b.reshape(b.shape[0], -1, self.experts).permute(2, 0, 1)
            change = self._slot(b) @ self._slot(a, rows=True)
            changes[f"{stem}.{projection}"] = change.mT  # transformers has [E, in, out]
        return {k: v[0] if k.endswith(".weight") else v for k, v in changes.items()}

    def _slot(self, factor, *, rows=False):
        shape = list(factor.shape)
        shape[1 if rows else 2] = self.rank
        slot = torch.zeros(shape)
        slot[:, : factor.shape[1], : factor.shape[2]] = factor
        return slot


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(PROMPT)).logits


@pytest.mark.parametrize("name", ["support", "sql", "tone", "chosen"])
def test_what_vllm_reads_is_what_peft_computes(bundle, base, several, chosen, lab, name):
    plain = lab.plain_model(base, torch.float32)
    untuned = logits(plain)
    with torch.no_grad():
        parameters = dict(plain.named_parameters())
        for key, change in AsVllm(bundle[0] / "adapters" / name, 4, 16).changes().items():
            parameters[key] += change
    served = logits(plain)
    source = several.get(name, chosen[1])
    plain = lab.plain_model(base, torch.float32)
    wanted = logits(peft.PeftModel.from_pretrained(plain, source))
    assert (wanted - untuned).norm() > 0.1 * untuned.norm(), "an adapter that changes nothing"
    assert (served - wanted).norm() < 1e-4 * (wanted - untuned).norm()


def values(words, name):
    """The values of an option that may have several."""
    found = words[words.index(name) + 1 :]
    return found[: next((i for i, w in enumerate(found) if w.startswith("--")), len(found))]


def test_flags_of_the_server(bundle, bundles, listings, base, several):
    files = {name: (bundle[0] / name).read_text() for name in ("serve.sh", "compose.yaml")}
    assert (bundle[0] / "serve.sh").stat().st_mode & 0o111
    assert TO_SCRIPT in files["serve.sh"].splitlines()
    (words,) = bundles.words(files["serve.sh"])
    service = bundles.service(files)
    for command, folder in ((words, "adapters"), (service["command"], f"{BUNDLE_MOUNT}/adapters")):
        assert values(command, "--max-lora-rank") == ["16"]
        assert values(command, "--max-loras") == values(command, "--max-cpu-loras") == ["4"]
        assert values(command, "--served-model-name") == ["base"]
        modules = [json.loads(each) for each in values(command, "--lora-modules")]
        assert modules == [
            {"name": name, "path": f"{folder}/{name}", "base_model_name": "base"}
            for name in (*several, "chosen")
        ]
        assert "--enable-lora" in command and "--enable-expert-parallel" not in command
        for version in ("vllm-0.33.0", "vllm-0.31.0"):
            assert bundles.flag_mistakes(command, listings[version]) == []
    assert words[:3] == ["vllm", "serve", str(base)]
    mounts = bundles.mounts(files)
    assert mounts["/models/base"] == str(base)
    assert mounts[f"{BUNDLE_MOUNT}/adapters"] == "./adapters"
    assert service["environment"]["HF_HUB_OFFLINE"] == "1"


def test_what_the_bundle_tells(bundle, base, several):
    out, printed = bundle
    told = json.loads((out / "names.json").read_text())
    assert list(told["adapters"]) == sorted([*several, "chosen"]) and told["rank"] == 16
    ranks = {name: each["rank"] for name, each in told["adapters"].items()}
    assert ranks == {"sql": 9, "support": 4, "tone": 2, "chosen": 4}
    assert told["base"]["fingerprint"]["content"]
    page = (out / "README.md").read_text()
    for name in ("base", *several):
        assert f"| `{name}` |" in page
    assert "gptoss-tune verify --bundle . --served http://localhost:8000" in page
    assert "because of sql (rank 9) every slot is 2 times as large" in printed
    assert "clients ask for: base, support, sql, tone, chosen" in printed
    read = read_bundle(out)
    assert read.base_name == "base" and read.base == str(base)
    assert set(read.adapters) == {*several, "chosen"}
    assert all((folder / "adapter_config.json").is_file() for folder in read.adapters.values())


def test_fewer_slots_than_adapters(base, several, tmp_path):
    printed = bundled(base, several, tmp_path / "out", "--max-loras", "1")
    words = (tmp_path / "out" / "serve.sh").read_text()
    assert "--max-loras 1 " in words and "--max-cpu-loras 3" in words
    assert "--max-loras 1 of rank 16" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("A", "B", "--for", "vllm", "--out", "O"), "several go into one folder with"),
        (("A", "--for", "vllm", "--out", "O", "--bundle", "P"), "one adapter goes to --out"),
        (("A", "B", "--bundle", "P"), "--for vllm"),
        (("A", "B", "--for", "sglang", "--bundle", "P"), "--for is sglang"),
        (("A", "--for", "vllm"), "name the folder to create"),
        (("A", "--for", "vllm", "--out", "O", "--max-loras", "2"), "is of a --bundle"),
        (("A", "--for", "vllm", "--out", "O", "--gpus", "2"), "--gpus: is of a --bundle"),
        (("A", "B", "--for", "vllm", "--bundle", "P", "--max-loras", "3"), "of 2 adapters"),
        (("A", "B", "--for", "vllm", "--bundle", "P", "--compact"), "factors of all experts"),
    ],
    ids=[
        "no-bundle",
        "both",
        "peft",
        "sglang",
        "neither",
        "slots",
        "gpus",
        "too-many-slots",
        "compact",
    ],
)
def test_what_does_not_go_together(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_every_adapter_that_cannot_be_served_is_named_at_once(base, several, tmp_path, lab):
    whole = lab.adapter(base, tmp_path / "whole", seed=4)
    lab.edit_json(whole / "adapter_config.json", use_dora=True)
    head = lab.adapter(base, tmp_path / "head", target_modules=["lm_head"], target_parameters=None)
    half = lab.adapter(base, tmp_path / "half", target_parameters=[lab.experts[0]])
    saved = lab.adapter(base, tmp_path / "saved", seed=5)
    lab.edit_json(saved / "adapter_config.json", modules_to_save=["embed_tokens"])
    ends = ["--base", base, "--for", "vllm", "--bundle", tmp_path / "out"]
    first = run(several["sql"], whole, saved, *ends).exception
    assert isinstance(first, CheckpointError)
    assert "2 of 3 adapters" in str(first) and "whole: " in str(first) and "saved: " in str(first)
    assert "DoRA" in str(first) and "modules_to_save" in str(first)
    second = run(several["sql"], head, half, *ends).exception
    assert "2 of 3 adapters" in str(second)
    assert "head: " in str(second) and "vLLM needs both projections" in str(second)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half", "head", "saved", "whole"]


def test_one_adapter_under_two_names_is_refused(base, several, tmp_path):
    again = run(
        *(several["sql"], f"b={several['sql']}", "--base", base, "--for", "vllm"),
        *("--bundle", tmp_path / "out"),
    )
    assert "sql, b: are the same adapter" in str(again.exception)


def test_adapters_of_different_bases_are_refused_by_name(base, dense_base, several, tmp_path, lab):
    """By what their runs recorded before anything is loaded, and by their shapes after."""
    other = lab.adapter(dense_base, tmp_path / "other", seed=6)
    ends = ["--for", "vllm", "--bundle", tmp_path / "out"]
    told = str(run(several["sql"], other, *ends).exception)
    assert "different bases" in told and f"sql: {base}" in told and f"other: {dense_base}" in told
    for folder, content in ((several["sql"], "1" * 64), (other, "2" * 64)):
        record = {"base": {"name": str(base), "fingerprint": {"content": content}}}
        (folder / "run.json").write_text(json.dumps(record))
    try:
        told = str(run(several["sql"], other, *ends).exception)
        assert "sql: " in told and "content 111111111111" in told
        assert "bundle those of one base" in told and "content 222222222222" in told
        told = str(run(several["tone"], other, "--base", base, *ends).exception)
        assert "other: " in told and "trained on a base whose weights differ" in told
        assert "tone" not in told
    finally:
        (several["sql"] / "run.json").unlink()
    assert not (tmp_path / "out").exists()


def test_two_names_of_one_base_are_one(base, several, tmp_path, lab):
    from gptoss_tune.weights import open_checkpoint

    content = open_checkpoint(base).fingerprint()["content"]
    copies = {}
    for name, said in (("sql", base), ("tone", "openai/elsewhere")):
        copies[name] = tmp_path / name
        lab.adapter(base, copies[name], seed=len(copies))
        record = {"base": {"name": str(said), "fingerprint": {"content": content}}}
        (copies[name] / "run.json").write_text(json.dumps(record))
    result = run(*copies.values(), "--for", "vllm", "--bundle", tmp_path / "out")
    assert result.exit_code == 0, result.exception


def test_names():
    assert adapter_names([(None, "runs/a"), ("b", "runs/c/")]) == {"a": "runs/a", "b": "runs/c/"}
    assert adapter_names([(None, "runs/a/adapter")]) == {"a": "runs/a/adapter"}
    assert adapter_names([(None, "me/bot")]) == {"bot": "me/bot"}
    assert adapter_names([(None, "runs/A bot (2)")]) == {"A-bot-2": "runs/A bot (2)"}
    both = adapter_names([(None, "one/bot"), (None, "two/bot")])
    assert both == {"one-bot": "one/bot", "two-bot": "two/bot"}
    with pytest.raises(CheckpointError, match=r"'bot': x/bot and y\nname each with NAME=RUN"):
        adapter_names([("bot", "x/bot"), ("Bot", "y")])
    with pytest.raises(CheckpointError, match="the name is 'a b'"):
        adapter_names([("a b", "x"), (None, "y")])
    assert served_base_name("openai/gpt-oss-20b", ["a"]) == "gpt-oss-20b"
    assert served_base_name("/models/Base", ["base"]) == "Base-base"
    assert served_base_name("/models/7", []) == "base"


def test_memory_of_a_slot():
    """Sums of the buffers' shapes in vLLM's layers, written out for the two releases.

    20b, a layer and a rank: each of 32 experts A and B of gate_up 3072 + 2 * 2944, of down 2944 +
    3072 (Marlin pads 2880 to 3072 and 2944); q, k, v 3 * 2880 + 4096 + 2 * 512; o 4096 + 2880;
    router 2880 + 32.
    """
    layer = 32 * (3072 + 5888 + 2944 + 3072) + (8640 + 5120) + 6976 + 2912
    assert slot_bytes(OF_20B, 8, packed=True) == 24 * layer * 8 * 2 == 193_105_920
    dense = 32 * (2880 + 5760 + 2880 + 2880) + (8640 + 5120) + 6976 + 2912
    assert slot_bytes(OF_20B, 8, packed=False) == 24 * dense * 8 * 2
    large = 128 * 14_976 + 13_760 + 6976 + (2880 + 128)
    assert slot_bytes(OF_120B, 64, packed=True) == 36 * large * 64 * 2 == 8_942_616_576
    halves = 32 * (3072 + 2 * 1536 + 1536 + 3072) + (8640 + 2560) + (2048 + 2880) + 2912
    assert slot_bytes(OF_20B, 8, 2, packed=True) == 24 * halves * 16
    spread = 8 * 14_976 + (8640 + 1024 + 256) + (1024 + 2880) + 2912
    assert slot_bytes(OF_20B, 8, 4, packed=True, by_expert=True) == 24 * spread * 16


def test_memory_of_the_machine_holds_the_adapters_that_wait(bundles):
    """20 of rank 64 beside 120b are 167 GiB in the process of each GPU, which cuts them later."""
    large = bundles.large(gpus=2)
    assert large.host_memory_gib == 61 + 16 + 32
    whole = slot_bytes(OF_120B, 64, packed=True)
    told = Adapters({f"a{n}": 64 for n in range(20)}, 64, 1, whole // 2, whole_bytes=whole)
    assert bundles.large(gpus=2, adapters=told).host_memory_gib == 16 + 32 + 394
    assert math.ceil((large.weights + 2 * 20 * whole) / 2**30) == 394


def test_an_adapter_waits_whole_whatever_a_gpu_holds(base, lab):
    checkpoint, opened = lab.open(base, lab.adapter(base, base.parent / "waiting", seed=9))
    told = [
        beside(Served("the-base", str(base), 4096, gpus), checkpoint, {"a": opened[0].adapter})
        for gpus in (1, 2)
    ]
    one, two = (each.adapters for each in told)
    assert one.bytes_on_host == two.bytes_on_host == one.bytes_on_gpu > two.bytes_on_gpu


def test_whole_experts_are_divided_where_rows_would_be_cut_differently(base, dense_base, lab):
    """The tiny base has 2 key-value heads, so two GPUs."""
    for path, packed in ((base, True), (dense_base, False)):
        adapters = {
            "experts": lab.adapter(path, path.parent / f"{path.name}-e", seed=8),
            "attention": lab.adapter(path, path.parent / f"{path.name}-a", target_parameters=None),
        }
        for name, by_expert in (("experts", packed), ("attention", False)):
            checkpoint, opened = lab.open(path, adapters[name])
            for gpus in (1, 2):
                options = Served("the-base", str(path), 4096, gpus)
                served = beside(options, checkpoint, {name: opened[0].adapter})
                wanted = by_expert and gpus > 1
                assert ("--enable-expert-parallel" in vllm_arguments(served, "m")) == wanted
