"""Every flag of every bundle against the argument parsers of the servers, by version.

``flags/`` holds what ``record_flags.py`` read in the packages: those inside the pinned images, and
the newest. A flag that a version lacks, a value that its parser refuses or a name of a parser that
it does not know is a mistake here, as it would be after a container has started.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gptoss_tune.export.adapter_formats import VLLM_RANKS
from gptoss_tune.export.serve.bundle import IMAGES
from gptoss_tune.export.serve.deployment.adapters import Adapters
from gptoss_tune.export.serve.served import Served
from gptoss_tune.export.serve.sizes.memory import USED_FRACTION

VLLM = ("vllm-0.33.0", "vllm-0.31.0")
SGLANG = ("sglang-0.5.23", "sglang-0.5.21")
HERE = Path(__file__).parent


def commands_of(files, bundles):
    """Every command of a bundle that starts a server, by where it stands."""
    found = {}
    if "serve.sh" in files:
        (found["serve.sh"],) = bundles.words(files["serve.sh"])
    if "compose.yaml" in files:
        service = bundles.service(files)
        found["compose.yaml"] = service.get("entrypoint", []) + service["command"]
    if "kubernetes/server.yaml" in files:
        (container,) = bundles.objects(files)["Deployment"]["spec"]["template"]["spec"][
            "containers"
        ]
        found["kubernetes"] = container.get("command", []) + container["args"]
    if "environment/Dockerfile" in files:
        last = files["environment/Dockerfile"].splitlines()[-1]
        found["Dockerfile"] = json.loads(last.removeprefix("ENTRYPOINT "))
    return found


@pytest.mark.parametrize("version", VLLM)
@pytest.mark.parametrize(
    "target, host",
    [
        *(("vllm", "127.0.0.1"), ("vllm", "0.0.0.0"), ("nim", "127.0.0.1"), ("nim", "0.0.0.0")),
        ("azure-ml", "127.0.0.1"),
    ],
)
def test_vllm_takes_every_flag(bundles, listings, served, tmp_path, version, target, host):
    served = Served(**{**vars(served), "host": host})
    found = commands_of(bundles.write(served, target, tmp_path / "out"), bundles)
    assert found
    for where, command in found.items():
        assert bundles.flag_mistakes(command, listings[version]) == [], where
        told = set(command)
        assert {"--max-model-len", "--reasoning-parser", "--tool-call-parser"} <= told


@pytest.mark.parametrize("version", VLLM)
@pytest.mark.parametrize("rank", VLLM_RANKS)
def test_vllm_takes_the_flags_of_an_adapter(bundles, listings, tmp_path, version, rank):
    beside = Adapters({"one": rank, "two": 1}, rank, 2, 1, by_expert=True, revision="main")
    served = Served("my-model", "openai/gpt-oss-20b", adapters=beside)
    found = commands_of(bundles.write(served, "vllm", tmp_path / "out"), bundles)
    assert set(found) == {"serve.sh", "compose.yaml"}
    for where, command in found.items():
        assert bundles.flag_mistakes(command, listings[version]) == [], where
        assert {"--max-loras", "--max-cpu-loras", "--enable-expert-parallel"} <= set(command)


def test_ranks_are_those_that_vllm_knows(listings):
    for version in VLLM:
        assert listings[version]["flags"]["--max-lora-rank"]["choices"] == list(VLLM_RANKS)


@pytest.mark.parametrize("version", SGLANG)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_sglang_takes_every_flag(bundles, listings, served, tmp_path, version, host):
    served = Served(**{**vars(served), "host": host})
    found = commands_of(bundles.write(served, "sglang", tmp_path / "out"), bundles)
    assert set(found) == {"serve.sh", "compose.yaml", "kubernetes"}
    for where, command in found.items():
        assert bundles.flag_mistakes(command, listings[version]) == [], where


@pytest.mark.parametrize(
    "target, listing", [("triton-server", "tritonserver"), ("tensorrt-llm", "tensorrt-llm")]
)
def test_flags_that_were_read_in_the_source(bundles, listings, served, tmp_path, target, listing):
    found = commands_of(bundles.write(served, target, tmp_path / "out"), bundles)
    assert set(found) == {"compose.yaml", "kubernetes"}
    for where, command in found.items():
        assert bundles.flag_mistakes(command, listings[listing]) == [], where


@pytest.mark.parametrize("version", ["vllm-0.24.0", "vllm-0.33.0"])
def test_tritons_engine_takes_every_key(bundles, listings, served, tmp_path, version):
    files = bundles.write(served, "triton-server", tmp_path / "out")
    engine = json.loads(files["model_repository/my-model/1/model.json"])
    known = listings[version]["engine_fields"]
    types = {"int": int, "str": str, "flag": bool}
    for name, value in engine.items():
        assert name in known, name
        kind = known[name]["type"]
        assert kind in ("list", "other") or isinstance(value, types[kind]), name


def test_transformers_takes_every_flag(bundles, served, tmp_path):
    """The installed command itself parses the arguments."""
    from transformers.cli.transformers import app

    (command,) = bundles.words(bundles.write(served, "transformers", tmp_path / "b")["serve.sh"])
    serve = app.commands["serve"]
    context = serve.make_context("serve", command[2:], resilient_parsing=False)
    assert context.params["force_model"] == served.path
    assert context.params["host"] == "127.0.0.1" and context.params["continuous_batching"]


def test_pinned_images_are_of_versions_whose_flags_are_recorded(listings):
    for target, image in IMAGES.items():
        assert ":" in image.reference and "latest" not in image.reference
        if target in ("vllm", "azure-ml"):
            assert image.reference.endswith(":v" + listings["vllm-0.31.0"]["version"])
        if target == "sglang":
            assert image.reference.endswith(":v" + listings["sglang-0.5.21"]["version"])
        if target == "triton-server":
            assert listings["vllm-0.24.0"]["version"] in image.server


def test_the_fraction_is_what_vllm_takes(listings):
    for version in VLLM:
        assert listings[version]["defaults"]["gpu_memory_utilization"] == USED_FRACTION


@pytest.mark.parametrize(
    "change, mistake",
    [
        (lambda c: [*c, "--max-model-length", "5"], "--max-model-length: no such flag"),
        (lambda c: [w.replace("openai_gptoss", "gpt_oss") for w in c], "no parser 'gpt_oss'"),
        (lambda c: ["many" if w == "4096" else w for w in c], "'many' is no int"),
        (lambda c: [*c, "--max-lora-rank", "24"], "'24' is none of"),
        (lambda c: [*c, "--enable-lora", "true"], "takes no value"),
        (lambda c: [*c, "--port"], "wants a value"),
    ],
)
def test_a_wrong_command_is_seen(bundles, listings, served, tmp_path, change, mistake):
    (command,) = bundles.words(bundles.write(served, "vllm", tmp_path / "out")["serve.sh"])
    (found,) = bundles.flag_mistakes(change(command), listings["vllm-0.33.0"])
    assert mistake in found


def test_a_flag_that_a_version_has_lost_is_seen(bundles, listings, served, tmp_path):
    (command,) = bundles.words(bundles.write(served, "sglang", tmp_path / "out")["serve.sh"])
    listing = json.loads(json.dumps(listings["sglang-0.5.23"]))
    del listing["flags"]["--reasoning-parser"]
    assert bundles.flag_mistakes(command, listing) == ["--reasoning-parser: no such flag"]


def recorder():
    """The script that records, as a module."""
    spec = importlib.util.spec_from_file_location("record_flags", HERE / "record_flags.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recorder_reads_types_as_argparse_would(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/a.py").write_text(
        "Kind = Literal['x', 'y']\n"
        "class Base:\n    port: int = 3\n"
        "class Config(Base):\n"
        "    kind: Kind | None = None\n    on: bool = Field(default=True)\n"
        "    names: str | list[str] | None = None\n    share: Annotated[float, 1] = 0.5\n"
        "    ranks: 'Optional[Literal[1, 2]]' = 1\n    odd: dict[str, int] | str = ''\n"
    )
    package = recorder().Package(tmp_path, ["config"])
    kinds = {name: package.kind(kind) for name, (kind, _) in package.fields("Config").items()}
    assert kinds == {
        "port": {"type": "int"},
        "kind": {"type": "choice", "choices": ["x", "y"]},
        "on": {"type": "flag"},
        "names": {"type": "list"},
        "share": {"type": "float"},
        "ranks": {"type": "choice", "choices": [1, 2]},
        "odd": {"type": "other"},
    }


@pytest.mark.skipif(
    "os.environ.get('GPTOSS_TUNE_CHECK_FLAGS') != '1'", reason="downloads 700 MB; asked by variable"
)
@pytest.mark.slow
@pytest.mark.parametrize("version", [*VLLM, "vllm-0.24.0", *SGLANG])
def test_the_record_is_what_the_package_has(version):
    name, _, number = version.partition("-")
    command = [sys.executable, HERE / "record_flags.py", f"{name}=={number}", "--check"]
    subprocess.run(command, check=True)


def test_yaml_of_compose_reads_back(bundles, served, tmp_path):
    files = bundles.write(served, "vllm", tmp_path / "out")
    assert yaml.safe_load(files["compose.yaml"])["services"]["model"]["command"][0] == (
        "/models/my-model"
    )
