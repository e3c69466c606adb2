"""gptoss-tune convert of a checkpoint: the released layout, the same values, clear refusals."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights import open_checkpoint
from gptoss_tune.weights.checkpoint import open_any_layout

WAYS = [
    "dense values named `_blocks` (transformers 5.5.2 and later)",
    "`language_model.` before each name",
    "`model.language_model.`",
    "`module.`, MXFP4",
    "`_orig_mod.`",
    "`base_model.model.`",
    "no `model.`",
    "a linear layer an expert (Unsloth)",
    "a linear layer an expert (GPTQModel)",
    "three linear layers an expert",
    "three linear layers an expert (LLM Compressor)",
    "`original/` of a release",
    "`original/` in several files",
    "`original/` alone",
    "`original/` with dense experts",
]


def convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.fixture
def written(ways, bases, tmp_path):
    """Return a function that writes a way; the base it was made of, too."""

    def write(way):
        source = {**ways.TRANSLATED, **ways.OPENAI}[way](bases, tmp_path / "source")
        folder = source.parent if source.name == "original" else source
        packed = "MXFP4" in way or "no `model.`" in way or source.name == "original"
        packed = packed and "dense" not in way
        assert folder.is_dir()
        return source, bases["mxfp4" if packed else "bf16"]

    return write


def test_no_way_is_forgotten(ways):
    assert [*ways.TRANSLATED, *ways.OPENAI] == WAYS


@pytest.mark.parametrize("way", WAYS)
def test_every_layout_is_written_as_released(written, bases, tmp_path, way):
    source, base = written(way)
    out = tmp_path / "out"
    alone = ["--tokenizer", bases["mxfp4"]] if "alone" in way else []
    result = convert(source, "--out", out, *alone)
    assert result.exit_code == 0, result.output
    found, expected = load_file(out / "model.safetensors"), load_file(base / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    # The advice that other commands give was followed: they take the folder now.
    copy = open_checkpoint(out)
    assert not copy.renamed and open_any_layout(source).renamed
    assert copy.fingerprint()["content"] == open_any_layout(source).fingerprint()["content"]
    assert copy.fingerprint()["weights"] == open_any_layout(source).fingerprint()["weights"]


@pytest.mark.parametrize(
    "way", ["a linear layer an expert (Unsloth)", "three linear layers an expert"]
)
def test_converted_experts_have_the_released_logits(
    written, tmp_path, logits, released_logits, way
):
    source, _ = written(way)
    assert convert(source, "--out", tmp_path / "out").exit_code == 0
    assert torch.equal(logits(tmp_path / "out"), released_logits)


def test_openais_settings_are_the_same_model(written, bases, tmp_path, logits):
    source, _ = written("`original/` of a release")
    assert convert(source, "--out", tmp_path / "out").exit_code == 0
    assert torch.equal(logits(tmp_path / "out"), logits(bases["mxfp4"]))


@pytest.mark.parametrize("way", ["`original/` of a release", "`original/` with dense experts"])
def test_openais_settings_mean_what_the_releases_do(written, tmp_path, way):
    from transformers import GptOssConfig

    source, base = written(way)
    assert convert(source, "--out", tmp_path / "out").exit_code == 0
    # The window is longer than the prompts of the logits: the order of the layers' kinds is not.
    meaning = [
        GptOssConfig.from_dict(json.loads((folder / "config.json").read_text())).to_dict()
        for folder in (tmp_path / "out", base)
    ]
    spelled = ("dtype", "torch_dtype", "transformers_version")
    found, expected = ({k: v for k, v in each.items() if k not in spelled} for each in meaning)
    assert found == expected
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rope_ntk_alpha": ...}, "has no rope_ntk_alpha"), ({"norm_topk": True}, "has 'norm_topk'")],
)
def test_other_settings_than_openais_are_refused(written, tmp_path, change, message):
    source, _ = written("`original/` of a release")
    config = {**json.loads((source / "config.json").read_text()), **change}
    kept = {key: value for key, value in config.items() if value is not ...}
    (source / "config.json").write_text(json.dumps(kept))
    said = str(convert(source, "--out", tmp_path / "out").exception)
    assert f"{message}; expected the 16 settings of OpenAI's own code" in said


def test_what_was_read_as_what_is_told_and_kept(written, tmp_path):
    source, _ = written("`original/` of a release")
    out = tmp_path / "out"
    result = convert(source, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    counts = {each["stored_as"]: (each["stored"], each["read"]) for each in told["read_as"]}
    assert counts == {"OpenAI's names": (29, 29), "query, key and value in one": (4, 12)}
    assert json.loads((out / "merge_report.json").read_text())["base"]["read_as"] == told["read_as"]
    assert told["verification"]["passed"] and told["rounded"] == {}
    notice = (out / "NOTICE").read_text()
    assert notice == "The weights in this folder are those of source, converted by gptoss-tune.\n"


def test_the_table_counts_every_tensor(written, tmp_path):
    source, _ = written("a linear layer an expert (Unsloth)")
    said = convert(source, "--out", tmp_path / "out").output
    row = next(line for line in said.splitlines() if "a linear layer an expert" in line)
    assert "32" in row and "8" in row, said
    assert "all" in said and "released layout" not in said


def test_other_dtypes_are_rounded_once_and_counted(ways, bases, tmp_path):
    source = ways.in_dtype(torch.float32)(bases, tmp_path / "fp32")
    result = convert(source, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "tensors of float32 were rounded to bfloat16" in result.output
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(bases["bf16"] / "model.safetensors").items():
        assert torch.equal(found[name], tensor), name


def test_what_is_released_already_is_left_alone(bases, tmp_path):
    result = convert(bases["mxfp4"], "--out", tmp_path / "out")
    assert isinstance(result.exception, CheckpointError)
    assert "is in the released layout already" in str(result.exception)
    assert "merge --base" in str(result.exception) and not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_not_there_is_asked_for(written, tmp_path):
    source, _ = written("`original/` alone")
    result = convert(source, "--out", tmp_path / "out")
    assert "has no tokenizer.json and no tokenizer_config.json" in str(result.exception)
    result = convert(source, "--out", tmp_path / "out", "--tokenizer", tmp_path / "nowhere")
    assert "no such folder; expected one with tokenizer.json" in str(result.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_stopped_conversion_goes_on(written, tmp_path, monkeypatch):
    from gptoss_tune.export.merge.shards import SafetensorsFiles

    source, base = written("three linear layers an expert")
    write, shards = SafetensorsFiles._write, []

    def stop_at_the_second(files, shard):
        if shards:
            raise KeyboardInterrupt
        shards.append(shard.name)
        write(files, shard)

    small = ["--max-shard-size", "14MB"]
    monkeypatch.setattr(SafetensorsFiles, "_write", stop_at_the_second)
    assert convert(source, "--out", tmp_path / "out", *small).exit_code != 0
    kept = tmp_path / ".out.incomplete" / shards[0]
    before = kept.stat().st_mtime_ns
    monkeypatch.setattr(SafetensorsFiles, "_write", write)
    assert convert(source, "--out", tmp_path / "out", *small).exit_code == 0
    assert (tmp_path / "out" / shards[0]).stat().st_mtime_ns == before
    assert open_checkpoint(tmp_path / "out").is_base_of(open_checkpoint(base).fingerprint())


def test_an_expert_that_is_missing_is_named(written, tmp_path):
    source, _ = written("a linear layer an expert (Unsloth)")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_local_experts": 5}))
    result = convert(source, "--out", tmp_path / "out")
    assert "has 4 experts in the files, config.json says 5; expert 4" in str(result.exception)


def test_options_of_the_other_kind_are_refused(written, tmp_path):
    source, _ = written("`_orig_mod.`")
    result = convert(source, "--out", tmp_path / "out", "--gpus", "2", "--force")
    said = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2 and "--gpus and --force are for a recipe" in said
    recipe = tmp_path / "axolotl.yml"
    recipe.write_text("base_model: openai/gpt-oss-20b\n")
    result = convert(recipe, "--tokenizer", source, "--revision", "main")
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert "--revision and --tokenizer are for a checkpoint" in said
    assert convert(source).exit_code == 2  # without --out
    shutil.rmtree(source)
    assert "no such folder" in str(convert(source, "--out", tmp_path / "out").exception)
