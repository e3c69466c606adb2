"""Bundles for a GGUF: flags of llama-server, places of LM Studio, the Modelfile of Ollama.

Neither Ollama nor LM Studio is run: the scripts are, by a shell; the flags are those that
llama.cpp's source lists.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import gguf
import jsonschema
import numpy as np
import pytest
import yaml
from gguf import GGUFValueType as Type
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.laptop.bundle import LAPTOP_TARGETS, laptop_notes, write_laptop_bundle
from gptoss_tune.export.serve.laptop.model import open_laptop_model

HERE = Path(__file__).parent
TOLD = {"reasoning_effort": "low"}


def write_gguf(path, architecture="gpt-oss", kind=None, context=(4096, Type.UINT32)):
    """A file with a header and one small tensor, which is all that a bundle reads."""
    writer = gguf.GGUFWriter(path, architecture)
    if kind:
        writer.add_type(kind)
    writer.add_key_value("gpt-oss.context_length", *context)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def compose_schema():
    schema = json.loads((HERE.parent / "schemas" / "compose.json").read_text())
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "a model's folder"
    folder.mkdir()
    return write_gguf(folder / "mine-mxfp4.gguf")


@pytest.fixture
def model(file):
    return open_laptop_model(str(file.parent), TOLD, "my-model", 2048)


def bundle(model, target, out):
    names = write_laptop_bundle(model, target, out)
    assert sorted(p.name for p in out.iterdir()) == names
    assert all((out / name).stat().st_mode & 0o111 for name in names if name.endswith(".sh"))
    return {name: (out / name).read_text() for name in names}


def start_command(script):
    (line,) = [x for x in script.replace("\\\n", " ").splitlines() if x.startswith("exec ")]
    return shlex.split(line)[1:]


def flag_mistakes(command, flags):
    """What llama-server's table does not know, or reads otherwise, of a command."""
    found, words = [], list(command)
    while words:
        flag = words.pop(0)
        if flag not in flags:
            found.append(f"{flag}: no such flag")
            continue
        if flags[flag]:
            words.pop(0)
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_llama_server_takes_every_flag(file, tmp_path, host):
    flags = json.loads((HERE / "flags.json").read_text())["takes a value"]
    model = open_laptop_model(str(file), TOLD, "my-model", 2048, host=host)
    files = bundle(model, "llama.cpp", tmp_path / "out")
    command = start_command(files["serve.sh"])
    service = yaml.safe_load(files["compose.yaml"])["services"]["model"]
    assert command[0] == "llama-server"
    for words in (command[1:], service["command"]):
        assert flag_mistakes(words, flags) == []
        assert "--jinja" in words and words[words.index("--ctx-size") + 1] == "2048"
        told = json.loads(words[words.index("--chat-template-kwargs") + 1])
        assert told == {"reasoning_effort": "low"}
    assert command[command.index("--model") + 1] == str(file)
    assert command[command.index("--host") + 1] == host
    assert flag_mistakes(["--ctx-len", "1"], flags) == [
        "--ctx-len: no such flag",
        "1: no such flag",
    ]


def test_a_server_that_others_reach_wants_a_key_which_no_list_of_processes_shows(file, tmp_path):
    model = open_laptop_model(str(file), TOLD, "my-model", 2048, host="0.0.0.0")
    files = bundle(model, "llama.cpp", tmp_path / "out")
    stub = tmp_path / "llama-server"
    stub.write_text('#!/bin/sh\necho "$@"; echo "key $LLAMA_API_KEY"\n')
    stub.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = tmp_path / "out" / "serve.sh"
    refused = subprocess.run([script], env=path, capture_output=True, text=True)
    assert refused.returncode != 0 and "the key that clients must send" in refused.stderr
    started = subprocess.run(
        [script], env={**path, "LLAMA_API_KEY": "k y"}, capture_output=True, text=True
    )
    first, last = started.stdout.splitlines()
    assert "k y" not in first and last == "key k y" and str(file) in first
    compose = yaml.safe_load(files["compose.yaml"])["services"]["model"]
    assert compose["ports"] == ["0.0.0.0:8080:8080"]
    assert ":?" in compose["environment"]["LLAMA_API_KEY"]
    assert any("0.0.0.0" in note for note in laptop_notes(model, "llama.cpp"))


@pytest.mark.parametrize("name", ["a$HOME b", "a:b:ro", "${X:?no}", "$$"])
def test_compose_mounts_files_with_any_name(name, tmp_path, compose_schema):
    folder = tmp_path / name
    folder.mkdir()
    file = write_gguf(folder / f"{name}.gguf")
    model = open_laptop_model(str(file), TOLD, "my-model", 2048)
    value = yaml.safe_load(bundle(model, "llama.cpp", tmp_path / "out")["compose.yaml"])
    compose_schema.validate(value)
    service = value["services"]["model"]
    (volume,) = service["volumes"]
    told = [volume["source"], volume["target"], service["command"][1]]
    # What compose makes of them: two dollars are one, and one alone is a variable's.
    assert all(re.fullmatch(r"([^$]|\$\$)*", text) for text in told)
    read = [text.replace("$$", "$") for text in told]
    assert read == [str(file), f"/models/{file.name}", f"/models/{file.name}"]
    assert volume["type"] == "bind" and volume["read_only"] is True


def test_a_container_of_llama_cpp_is_probed_bounded_and_of_the_image_asked_for(file, tmp_path):
    image = "registry.local/llama.cpp:server-b1"
    words = ["serve-config", str(file), "--target", "llama.cpp", "--image", image]
    words += ["--context", "2048"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"image {image}, as asked; its flags were not checked" in done.output
    service = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())["services"]["model"]
    assert service["image"] == image
    assert service["healthcheck"]["test"] == ["CMD", "curl", "-fsS", "http://127.0.0.1:8080/health"]
    assert int(service["healthcheck"]["start_period"].removesuffix("s")) >= 600
    assert service["deploy"]["resources"]["limits"]["memory"] == "17g"  # a small file, and 16
    assert image in (tmp_path / "out" / "README.md").read_text()
    for target, asked in (("llama.cpp", "a/b:latest"), ("ollama", image), ("lm-studio", image)):
        words[3], words[5] = target, asked
        refused = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "no")])
        assert isinstance(refused.exception, CheckpointError) and "--image" in str(
            refused.exception
        )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("target", LAPTOP_TARGETS)
def test_a_readme_says_what_to_set_how_to_start_to_ask_and_to_verify(target, file, tmp_path):
    model = open_laptop_model(str(file), TOLD, "my-model", 2048)
    files = bundle(model, target, tmp_path / "out")
    text = files["README.md"]
    titles = ["Set", "Start", "Ask", "Verify", "Checked"]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == titles
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    assert subprocess.run(["sh", "-n"], input=shell, text=True).returncode == 0
    for started in re.findall(r"^\./(\S+)$", shell, re.MULTILINE):
        assert started in files
    assert f"gptoss-tune verify {shlex.quote(str(file))} --adapter RUN" in shell
    (asked,) = re.findall(r"-d '(.*)'", shell)
    assert json.loads(asked)["model"] == "my-model"
    assert ("LLAMA_API_KEY" in text) == (target == "llama.cpp") == ("--served-name" in shell)
    assert "was trained" in text and "`low`" in text


def test_lm_studio_finds_the_file_where_it_looks(model, file, tmp_path):
    bundle(model, "lm-studio", tmp_path / "out")
    home = {**os.environ, "HOME": str(tmp_path)}
    script = tmp_path / "out" / "place.sh"
    subprocess.run([script], env=home, check=True, capture_output=True)
    placed = tmp_path / ".lmstudio" / "models" / "gptoss-tune" / "my-model" / file.name
    assert placed.read_bytes() == file.read_bytes()
    again = subprocess.run([script], env=home, capture_output=True, text=True)
    assert again.returncode != 0 and "is there already" in again.stderr


def test_a_model_in_parts_is_named_part_by_part(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in (1, 2):
        writer = gguf.GGUFWriter(folder / f"m-{number:05}-of-00002.gguf", "gpt-oss")
        writer.add_uint16("split.no", number - 1)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(f"t{number}", np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    model = open_laptop_model(str(folder), {}, "my-model", 2048)
    names = [f"m-{number:05}-of-00002.gguf" for number in (1, 2)]
    modelfile = bundle(model, "ollama", tmp_path / "a")["Modelfile"]
    assert [line for line in modelfile.splitlines() if line.startswith("FROM ")] == [
        f"FROM {folder / name}" for name in names
    ]
    assert bundle(model, "lm-studio", tmp_path / "b")["place.sh"].count("ln -s") == 2
    compose = yaml.safe_load(bundle(model, "llama.cpp", tmp_path / "c")["compose.yaml"])
    assert len(compose["services"]["model"]["volumes"]) == 2


def test_a_modelfile_has_what_ollama_needs_to_tell_channels_apart(file, tmp_path):
    model = open_laptop_model(str(file), TOLD, "my-model", 2048, instructions="Be brief.")
    modelfile = bundle(model, "ollama", tmp_path / "out")["Modelfile"]
    assert "<|start|>" in modelfile and "<|end|>" in modelfile
    assert 'SYSTEM """Be brief."""' in modelfile
    assert "PARAMETER num_ctx 2048" in modelfile and "PARAMETER temperature 1" in modelfile
    # No other line: a template that broke out of its quotes would begin one.
    outside = "".join(modelfile.split('"""')[::2])
    assert {line.split()[0] for line in outside.splitlines() if line.strip()} == {
        *("FROM", "TEMPLATE", "SYSTEM", "PARAMETER")
    }
    with pytest.raises(CheckpointError, match='no """ in instructions'):
        odd = open_laptop_model(str(file), TOLD, "my-model", 2048, instructions='a """ b')
        write_laptop_bundle(odd, "ollama", tmp_path / "other")


def test_what_is_no_model_of_gpt_oss_is_refused(file, tmp_path):
    other = write_gguf(tmp_path / "other.gguf", "llama")
    with pytest.raises(CheckpointError, match="'model' of 'llama'; expected a model of 'gpt-oss'"):
        open_laptop_model(str(other), {}, "my-model", 2048)
    factors = write_gguf(tmp_path / "factors.gguf", kind="adapter")
    with pytest.raises(CheckpointError, match="a GGUF 'adapter' of 'gpt-oss'"):
        open_laptop_model(str(factors), {}, "my-model", 2048)
    with pytest.raises(CheckpointError, match="--context is 5000; the model reads at most 4096"):
        open_laptop_model(str(file), {}, "my-model", 5000)
    with pytest.raises(CheckpointError, match="--name is"):
        open_laptop_model(str(file), {}, "no name", 2048)
    for target, options in (("ollama", {"host": "0.0.0.0"}), ("llama.cpp", {"instructions": "x"})):
        with pytest.raises(CheckpointError, match=r"--(host|instructions)"):
            odd = open_laptop_model(str(file), {}, "my-model", 2048, **options)
            write_laptop_bundle(odd, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "context",
    [
        ("131072", Type.STRING),
        ([4096, 4096], Type.ARRAY, Type.INT32),
        (float("nan"), Type.FLOAT32),
        (4096.0, Type.FLOAT32),
        (True, Type.BOOL),
        (0, Type.UINT32),
        (-1, Type.INT32),
    ],
)
def test_a_context_that_is_no_number_of_tokens_is_refused(context, tmp_path):
    path = write_gguf(tmp_path / "odd.gguf", context=context)
    with pytest.raises(CheckpointError, match=r"odd\.gguf: .*context_length is .*positive integer"):
        open_laptop_model(str(path), {}, "my-model", 2048)


@pytest.mark.parametrize("target", LAPTOP_TARGETS)
def test_where_nothing_is_the_command_says_so(target, tmp_path):
    for name in ("nosuch", "nosuch.gguf"):
        words = ["serve-config", str(tmp_path / name), "--target", target]
        refused = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "no")])
        told = " ".join(f"{refused.output} {refused.exception}".replace("│", " ").split())
        assert "nothing is there" in told or "no such file" in told
        assert "gptoss-tune merge" not in told


@pytest.mark.parametrize("target", LAPTOP_TARGETS)
def test_the_command_writes_it_and_refuses_safetensors_with_the_way_out(target, file, tmp_path):
    def run(*words):
        return CliRunner().invoke(app, ["serve-config", *map(str, words), "--target", target])

    done = run(file, "--out", tmp_path / "out", "--context", 1024)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "out").iterdir())
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    refused = run(merged, "--out", tmp_path / "no")
    assert refused.exit_code == 2
    told = " ".join(refused.output.replace("│", " ").split())
    assert "is no GGUF" in told and "--format gguf" in told
    refused = run(file, "--out", tmp_path / "no", "--gpus", 2)
    assert refused.exit_code == 2 and "--gpus" in refused.output
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("target", ["vllm", "sglang", "nim"])
def test_servers_of_safetensors_refuse_a_gguf_with_the_way_out(target, file, tmp_path):
    words = ["serve-config", str(file.parent), "--target", target, "--out", str(tmp_path / "no")]
    refused = CliRunner().invoke(app, words)
    told = " ".join(refused.output.replace("│", " ").split())
    assert refused.exit_code == 2 and "is a GGUF" in told and "--format mxfp4" in told
