"""Serving bundles against the public schemas of their targets, as far as files alone can show."""

import json
import re
import subprocess
from dataclasses import replace

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.bundle import TARGETS, notes, write_bundle
from gptoss_tune.export.serve.deployment.adapters import Adapters
from gptoss_tune.export.serve.served import Served

# Azure ML CLI v2: reference-yaml-endpoint-online and reference-yaml-deployment-managed-online.
ENDPOINT = {"$schema", "name", "description", "tags", "auth_mode", "identity", "traffic"}
DEPLOYMENT = {
    *("$schema", "name", "description", "tags", "endpoint_name", "model", "model_mount_path"),
    *("environment", "environment_variables", "instance_type", "instance_count"),
    *("app_insights_enabled", "scale_settings", "request_settings", "liveness_probe"),
    *("readiness_probe", "egress_public_network_access", "data_collector", "code_configuration"),
}
PROBE = {"initial_delay", "period", "timeout", "success_threshold", "failure_threshold"}
REQUEST = {"request_timeout_ms", "max_concurrent_requests_per_instance", "max_queue_wait_ms"}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_names_the_model(bundles, served, target, tmp_path, merged):
    files = bundles.write(served, target, tmp_path / "out")
    text = "\n".join(files.values())
    assert str(merged) in text
    assert "latest" not in text.replace("azureedge.net/latest", "")
    assert target == "transformers" or "my-model" in text
    for name in files:
        if name.endswith(".sh"):
            assert (tmp_path / "out" / name).stat().st_mode & 0o111


def test_vllm_command(bundles, served, tmp_path, merged):
    (command,) = bundles.words(bundles.write(served, "vllm", tmp_path / "out")["serve.sh"])
    assert command[:3] == ["vllm", "serve", str(merged)]
    assert bundles.option(command, "--served-model-name") == "my-model"
    assert bundles.option(command, "--max-model-len") == "4096"
    assert bundles.option(command, "--tensor-parallel-size") == "2"
    assert bundles.option(command, "--tool-call-parser") == "openai"


def test_servers_listen_on_this_machine_alone(bundles, served, tmp_path):
    for target in ("vllm", "sglang", "transformers"):
        (command,) = bundles.words(bundles.write(served, target, tmp_path / target)["serve.sh"])
        assert bundles.option(command, "--host") == "127.0.0.1"


@pytest.mark.parametrize("target", ["vllm", "sglang", "nim"])
def test_a_server_that_others_reach_wants_a_key(bundles, served, target, tmp_path):
    others = replace(served, host="0.0.0.0")
    files = bundles.write(others, target, tmp_path / "out")
    key = "SGLANG_API_KEY" if target == "sglang" else "VLLM_API_KEY"
    assert f"${{{key}:?" in files["compose.yaml"]
    assert yaml.safe_load(files["compose.yaml"])["services"]["model"]["ports"] == [
        "0.0.0.0:8000:8000"
    ]
    assert key in notes(others, target)[-1]
    if target == "nim":
        return
    script = tmp_path / "out" / "serve.sh"
    stub = tmp_path / ("vllm" if target == "vllm" else "python3")
    stub.write_text('#!/bin/sh\necho "$@" "$TIKTOKEN_ENCODINGS_BASE"\n')
    stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    refused = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert refused.returncode != 0 and "the key that clients must send" in refused.stderr
    started = subprocess.run([script], env={**environment, key: "k y"}, capture_output=True)
    assert started.returncode == 0 and b"0.0.0.0" in started.stdout
    assert str(tmp_path / "out/vocabulary").encode() in started.stdout
    assert target == "vllm" or b"--api-key k y" in started.stdout


@pytest.mark.parametrize("target", ["transformers", "triton-server", "tensorrt-llm"])
def test_a_server_without_keys_is_not_opened_to_others(served, target, tmp_path):
    with pytest.raises(CheckpointError, match="asks nobody for a key"):
        write_bundle(replace(served, host="0.0.0.0"), target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_address_means_nothing_to_an_endpoint(served, tmp_path):
    for host in ("0.0.0.0", "::1", "localhost"):
        with pytest.raises(CheckpointError, match=f"--host is {host}; azure-ml .*leave it out"):
            write_bundle(replace(served, host=host), "azure-ml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_address_of_this_machine_alone_is_one(bundles, served, tmp_path):
    for host in ("127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "localhost"):
        assert not replace(served, host=host).open_to_others
    for host in ("0.0.0.0", "::", "10.0.0.5", "128.0.0.1", "fe80::1"):
        assert replace(served, host=host).open_to_others
    files = bundles.write(replace(served, host="127.0.0.2"), "vllm", tmp_path / "out")
    assert "VLLM_API_KEY" not in files["serve.sh"]
    assert bundles.service(files)["ports"] == ["127.0.0.2:8000:8000"]


@pytest.mark.parametrize(
    "host", ["my_host:9000", "10.0.0.5:9000", "my-host", "1.2.3", "256.0.0.1", "", "::1%$(x)", "a"]
)
def test_what_is_no_address_is_refused(host):
    with pytest.raises(CheckpointError, match="expected an address such as"):
        Served("my-model", "model", host=host)


def test_nim_takes_what_nim_2_reads(bundles, served, tmp_path):
    text = bundles.write(served, "nim", tmp_path / "out")["compose.yaml"]
    service = yaml.safe_load(text)["services"]["model"]
    assert service["environment"]["NIM_MODEL_PATH"] == "/models/my-model"
    assert bundles.option(service["command"], "--served-model-name") == "my-model"
    assert bundles.option(service["command"], "--tensor-parallel-size") == "2"
    assert service["image"].startswith("nvcr.io/nim/nvidia/model-free-nim:2.")
    other = replace(served, image="nvcr.io/nim/nvidia/model-free-nim:2.1.6")
    text = bundles.write(other, "nim", tmp_path / "other")["compose.yaml"]
    assert yaml.safe_load(text)["services"]["model"]["image"] == other.image


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_user_has_to_set_is_said(merged, target, tmp_path):
    out = tmp_path / "bundle"
    arguments = ["serve-config", str(merged), "--target", target, "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--name", "tuned"])
    assert done.exit_code == 0, (done.output, done.exception)
    text = "".join(path.read_text() for path in out.rglob("*") if path.is_file())
    for variable in re.findall(r"\$\{(\w+):\?", text):
        assert variable in done.output
    assert "YY.MM" not in text


def test_sglang_and_transformers_commands(bundles, served, tmp_path, merged):
    (command,) = bundles.words(bundles.write(served, "sglang", tmp_path / "a")["serve.sh"])
    assert bundles.option(command, "--model-path") == str(merged)
    assert bundles.option(command, "--reasoning-parser") == "gpt-oss"
    (command,) = bundles.words(bundles.write(served, "transformers", tmp_path / "b")["serve.sh"])
    assert command[:3] == ["transformers", "serve", str(merged)]


def model_config_class():
    """The fields of Triton's ModelConfig that we write, with the numbers of model_config.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def field(message, name, number, kind, type_name=None, repeated=False):
        label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, type_name=type_name, label=label)

    group = file.message_type.add(name="ModelInstanceGroup")
    kind = group.enum_type.add(name="Kind")
    for number, name in enumerate(["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]):
        kind.value.add(name=name, number=number)
    field(group, "kind", 4, kinds.TYPE_ENUM, ".ModelInstanceGroup.Kind")
    field(group, "count", 2, kinds.TYPE_INT32)
    policy = file.message_type.add(name="ModelTransactionPolicy")
    field(policy, "decoupled", 1, kinds.TYPE_BOOL)
    config = file.message_type.add(name="ModelConfig")
    field(config, "name", 1, kinds.TYPE_STRING)
    field(config, "backend", 17, kinds.TYPE_STRING)
    field(config, "instance_group", 7, kinds.TYPE_MESSAGE, ".ModelInstanceGroup", repeated=True)
    field(config, "model_transaction_policy", 19, kinds.TYPE_MESSAGE, ".ModelTransactionPolicy")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ModelConfig"))


def test_triton_model_repository(bundles, served, tmp_path):
    files = bundles.write(served, "triton-server", tmp_path / "out")
    config = text_format.Parse(
        files["model_repository/my-model/config.pbtxt"], model_config_class()()
    )
    assert (config.name, config.backend) == ("my-model", "vllm")
    assert [(g.count, g.kind) for g in config.instance_group] == [(1, 3)]
    assert config.model_transaction_policy.decoupled
    engine = json.loads(files["model_repository/my-model/1/model.json"])
    assert engine["model"] == "/models/my-model" and engine["tensor_parallel_size"] == 2


def test_azure_endpoint_and_deployment(bundles, served, tmp_path, merged):
    files = bundles.write(served, "azure-ml", tmp_path / "out")
    endpoint, deployment = (yaml.safe_load(files[f"{n}.yaml"]) for n in ("endpoint", "deployment"))
    assert set(endpoint) <= ENDPOINT and set(deployment) <= DEPLOYMENT
    assert endpoint["$schema"].endswith("managedOnlineEndpoint.schema.json")
    assert deployment["$schema"].endswith("managedOnlineDeployment.schema.json")
    assert deployment["endpoint_name"] == endpoint["name"] == "my-model"
    assert set(deployment["liveness_probe"]) <= PROBE
    assert set(deployment["readiness_probe"]) <= PROBE
    assert set(deployment["request_settings"]) <= REQUEST
    assert deployment["request_settings"]["request_timeout_ms"] <= 180_000
    routes = deployment["environment"]["inference_config"]
    assert set(routes) == {"liveness_route", "readiness_route", "scoring_route"}
    assert all(set(route) == {"port", "path"} for route in routes.values())
    entry = files["environment/Dockerfile"].splitlines()[-1].removeprefix("ENTRYPOINT ")
    # Azure mounts the folder under its own name below model_mount_path.
    assert json.loads(entry)[:3] == ["vllm", "serve", f"/models/{merged.name}"]


def test_adapters_go_to_vllm_alone(bundles, merged, tmp_path):
    beside = Adapters({"my-model": 9}, rank=16, slots=1, slot_bytes=1)
    adapter = Served("the-base", "openai/gpt-oss-20b", adapters=beside)
    files = bundles.write(adapter, "vllm", tmp_path / "out")
    (command,) = bundles.words(files["serve.sh"])
    assert command[2] == "openai/gpt-oss-20b"
    assert bundles.option(command, "--max-lora-rank") == "16"
    module = json.loads(bundles.option(command, "--lora-modules"))
    assert module["name"] == "my-model" and module["path"] == "adapters/my-model"
    service = bundles.service(files)
    assert service["environment"]["HF_HUB_OFFLINE"] == "0"  # the base is looked up in the cache
    cache = bundles.mounts(files)["/root/.cache/huggingface"]
    assert cache.startswith("${HF_HOME:-") and "/models/the-base" not in bundles.mounts(files)
    with pytest.raises(CheckpointError, match=r"my-model: sglang is not known .*; merge first"):
        write_bundle(adapter, "sglang", tmp_path / "other")


def test_no_bundle_is_left_of_an_adapter_that_vllm_refuses(base, tmp_path, lab):
    half = lab.adapter(base, tmp_path / "half", target_parameters=[lab.experts[0]])
    out = tmp_path / "bundle"
    arguments = ["serve-config", str(half), "--target", "vllm", "--out", str(out)]
    refused = CliRunner().invoke(app, [*arguments, "--base", str(base)])
    assert isinstance(refused.exception, CheckpointError), refused.exception
    assert "vLLM needs both" in str(refused.exception)
    assert not out.exists()


@pytest.mark.parametrize(
    "command, hint",
    [
        ("serve-config ADAPTER --target vllm --out OUT --revision main", "--revision"),
        ("serve-config MERGED --target vllm --out OUT --revision main", "--revision"),
        ("serve-config MERGED --target vllm --out OUT --base BASE", "--base"),
        ("chat ADAPTER --prompt Hi --revision main", "--revision"),
        ("chat MERGED --prompt Hi --base BASE", "--base"),
        ("merge ADAPTER --out OUT --revision main", "--revision"),
        ("adapter ADAPTER --out OUT --revision main", "--revision"),
        ("push ADAPTER --repo me/x --revision main", "--revision"),
        ("verify MERGED --revision main", "--revision"),
        ("verify MERGED --adapter ADAPTER --revision main", "--revision"),
        ("verify MERGED --served-name x", "--served-name"),
        ("verify MERGED --api-key-env PATH", "--api-key-env"),
    ],
)
def test_options_without_effect_are_refused(base, adapter, merged, tmp_path, command, hint):
    places = {"ADAPTER": adapter, "MERGED": merged, "BASE": base, "OUT": tmp_path / "out"}
    arguments = [str(places.get(word, word)) for word in command.split()]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2 and f"Invalid value for {hint}" in refused.output, refused.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a", "has space", "1st", "x" * 40, "quote'", "-lead"])
def test_names_that_a_target_would_refuse(name):
    with pytest.raises(CheckpointError, match="letters, digits and dashes"):
        Served(name, "model")


def test_commands(bundles, base, adapter, merged, tmp_path):
    run = CliRunner().invoke
    arguments = ["serve-config", str(merged), "--target", "vllm", "--name", "tuned"]
    result = run(app, [*arguments, "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    assert "serve.sh" in result.output
    arguments = ["serve-config", str(adapter), "--target", "vllm", "--name", "tuned"]
    result = run(app, [*arguments, "--base", str(base), "--out", str(tmp_path / "lora")])
    assert result.exit_code == 0, result.output
    (command,) = bundles.words((tmp_path / "lora" / "serve.sh").read_text())
    module = json.loads(bundles.option(command, "--lora-modules"))
    assert module == {"name": "tuned", "path": "adapters/tuned", "base_model_name": "tuned-base"}
    config = json.loads((tmp_path / "lora/adapters/tuned/adapter_config.json").read_text())
    assert config["rank_pattern"] == {}
    refused = run(app, ["serve-config", str(tmp_path), "--target", "vllm", "--out", "x"])
    assert isinstance(refused.exception, CheckpointError)
