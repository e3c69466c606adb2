"""Compose files and Kubernetes objects against their schemas, and what an SRE asks of both."""

import asyncio
import json
import os
import shutil
import subprocess
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import jsonschema
import pytest
import yaml

from gptoss_tune.export.serve.bundle import TARGETS
from gptoss_tune.export.serve.deployment.health import loading_s, probe_command
from gptoss_tune.export.serve.deployment.only_v1 import OnlyV1

SCHEMAS = Path(__file__).parent / "schemas"
CONTAINERS = ["vllm", "sglang", "triton-server", "tensorrt-llm", "nim"]
CLUSTERS = ["vllm", "sglang", "triton-server", "tensorrt-llm"]
KEYED = {"vllm": "VLLM_API_KEY", "sglang": "SGLANG_API_KEY", "nim": "VLLM_API_KEY"}


@pytest.fixture(scope="module")
def compose_schema():
    schema = json.loads((SCHEMAS / "compose.json").read_text())
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.fixture(scope="module")
def kubernetes_schema():
    recorded = json.loads((SCHEMAS / "kubernetes.json").read_text())

    def validator(kind):
        name = recorded["kinds"][kind]
        schema = {"$ref": f"#/$defs/{name}", "$defs": recorded["$defs"]}
        return jsonschema.Draft202012Validator(schema)

    return validator


def every_object(files):
    return [
        one
        for name in sorted(files)
        if name.startswith("kubernetes/") and name.endswith(".yaml")
        for one in yaml.safe_load_all(files[name])
    ]


def pod_of(bundles, files):
    return bundles.objects(files)["Deployment"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("target", CONTAINERS)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_compose_files_follow_the_specification(
    bundles, served, compose_schema, target, host, tmp_path, merged
):
    files = bundles.write(replace(served, host=host), target, tmp_path / "out")
    compose_schema.validate(yaml.safe_load(files["compose.yaml"]))
    service = bundles.service(files)
    assert bundles.mounts(files)["/models/my-model"] == str(merged)
    for volume in service["volumes"]:
        assert volume["read_only"] and not volume["bind"]["create_host_path"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    assert service["deploy"]["resources"]["limits"]["memory"].endswith("g")
    assert service["restart"] == "unless-stopped" and service["shm_size"] == "16gb"
    assert service["environment"]["HF_HUB_OFFLINE"] == "1"
    start = int(service["healthcheck"]["start_period"].removesuffix("s"))
    assert start >= 600 and service["healthcheck"]["test"][0] == "CMD"


def test_a_wrong_compose_file_is_seen(bundles, served, compose_schema, tmp_path):
    value = yaml.safe_load(bundles.write(served, "vllm", tmp_path / "out")["compose.yaml"])
    for change in ({"restarts": "always"}, {"ports": 8000}, {"healthcheck": {"tests": []}}):
        wrong = {"services": {"model": {**value["services"]["model"], **change}}}
        with pytest.raises(jsonschema.ValidationError):
            compose_schema.validate(wrong)


@pytest.mark.parametrize("target", CONTAINERS)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_nothing_listens_without_a_key(bundles, served, target, host, tmp_path):
    """Of a container, of a pod and of a script: the loopback address alone, or a key."""
    if target not in KEYED and host == "0.0.0.0":
        return  # refused, see test_bundles
    files = bundles.write(replace(served, host=host), target, tmp_path / "out")
    service = bundles.service(files)
    told = " ".join(service["command"])
    if target in KEYED:
        key = f"${{{KEYED[target]}:?"
        assert key in json.dumps([service["environment"], service["command"]])
        (port,) = service["ports"]
        assert port == f"{host}:8000:8000"
    else:
        assert service["network_mode"] == "host" and "ports" not in service
        assert "127.0.0.1" in told and "0.0.0.0" not in told
    if target in CLUSTERS:
        pod = pod_of(bundles, files)
        (container,) = pod["containers"]
        secrets = [
            (one["name"], one["valueFrom"]["secretKeyRef"])
            for one in container["env"]
            if "valueFrom" in one
        ]
        kinds = set(bundles.objects(files))
        if target in KEYED:
            assert secrets == [(KEYED[target], {"name": "my-model-key", "key": "api-key"})]
            assert "Service" in kinds
        else:
            assert secrets == [] and "Service" not in kinds and "ports" not in container
            assert "0.0.0.0" not in json.dumps(container)
    if "serve.sh" in files:
        needs = f"${{{KEYED[target]}:?" in files["serve.sh"]
        assert needs == (host == "0.0.0.0")


@pytest.mark.parametrize("target", CLUSTERS)
def test_kubernetes_objects_follow_the_schema(bundles, served, kubernetes_schema, target, tmp_path):
    files = bundles.write(replace(served, name="My-Model"), target, tmp_path / "out")
    objects = every_object(files)
    assert {"Deployment", "NetworkPolicy", "PersistentVolumeClaim", "Pod"} <= {
        one["kind"] for one in objects
    }
    for one in objects:
        kubernetes_schema(one["kind"]).validate(one)
        assert one["metadata"]["name"].startswith("my-model")


def test_a_wrong_object_is_seen(bundles, served, kubernetes_schema, tmp_path):
    files = bundles.write(served, "vllm", tmp_path / "out")
    deployment = bundles.objects(files)["Deployment"]
    for place, wrong in (
        ("livenessProbe", {"httpGet": {"path": "/health"}}),
        ("livenesProbe", {}),
        ("resources", {"limit": {}}),
        ("args", "--port 8000"),
    ):
        copy = json.loads(json.dumps(deployment))
        copy["spec"]["template"]["spec"]["containers"][0][place] = wrong
        with pytest.raises(jsonschema.ValidationError):
            kubernetes_schema("Deployment").validate(copy)


@pytest.mark.parametrize("target", CLUSTERS)
def test_a_pod_has_what_it_needs_and_no_more(bundles, served, target, tmp_path):
    files = bundles.write(served, target, tmp_path / "out")
    objects, pod = bundles.objects(files), pod_of(bundles, files)
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == set(volumes)
    assert mounts["model"]["readOnly"] is True
    claim = volumes["model"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    if target in KEYED:
        service = objects["Service"]["spec"]
        assert service["type"] == "ClusterIP" and service["selector"] == labels
        assert service["ports"][0]["targetPort"] == container["ports"][0]["name"]
    ingress = objects["NetworkPolicy"]["spec"]["ingress"]
    assert bool(ingress) == (target in KEYED)


@pytest.mark.parametrize("target", CLUSTERS)
def test_a_server_may_load_before_a_probe_gives_up(bundles, target, tmp_path):
    large = bundles.large()
    assert loading_s(large.weights) == 960  # 600 and 65 GB at 0.2 GB/s, in whole minutes
    (container,) = pod_of(bundles, bundles.write(large, target, tmp_path / "out"))["containers"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 960
    asked = "httpGet" if target in KEYED else "exec"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert asked in container[probe]


def test_the_volume_holds_the_model(bundles, tmp_path):
    files = bundles.write(bundles.large(), "vllm", tmp_path / "out")
    claim = bundles.objects(files)["PersistentVolumeClaim"]["spec"]
    assert int(claim["resources"]["requests"]["storage"].removesuffix("Gi")) >= 1.05 * 60.8


def test_the_probe_fails_where_nothing_answers(free_tcp_port):
    done = subprocess.run(probe_command(free_tcp_port, "/health"), capture_output=True)
    assert done.returncode != 0 and b"refused" in done.stderr


@pytest.fixture
def guarded():
    """The port of a server that wants a key below ``/v1``, as vLLM does."""

    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers.get("Authorization") == "Bearer k y"
            self.send_response(401 if self.path.startswith("/v1") and not known else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("target", CONTAINERS)
def test_the_probe_of_a_container_knows_its_key(bundles, served, target, guarded, tmp_path):
    """As Docker runs it, in the container's environment; no proxy is between."""
    files = bundles.write(served, target, tmp_path / "out")
    service = bundles.service(files)
    program, *arguments = service["healthcheck"]["test"][1:]
    variables = {name: "k y" for name in service["environment"] if name.endswith("_API_KEY")}
    proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(
        [program, *(one.replace(":8000", f":{guarded}") for one in arguments)],
        env={"PATH": os.environ["PATH"], **variables, **proxies},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "k y" not in json.dumps(service) and "$" not in json.dumps(arguments)


def asked(path, kind="http"):
    """What a client is told of a path by the application behind the middleware."""
    told = []

    async def application(scope, receive, send):
        await send({"type": "application", "path": scope.get("path")})

    async def send(message):
        told.append(message)

    asyncio.run(OnlyV1(application)({"type": kind, "path": path}, None, send))
    return told


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/health", "/metrics", "/version"])
def test_the_api_and_the_probes_are_let_through(path):
    assert asked(path) == [{"type": "application", "path": path}]
    assert asked(path, "lifespan")[0]["type"] == "application"


@pytest.mark.parametrize("path", ["/invocations", "/", "/v1", "/v1x/", "/health/x", "/docs", ""])
def test_paths_that_vllm_guards_with_no_key_are_not_served(path):
    assert [one.get("status") for one in asked(path)] == [404, None]
    assert asked(path, "websocket") == [{"type": "websocket.close", "code": 1008}]


def test_the_middleware_in_a_bundle_works_alone(bundles, served, tmp_path):
    """As vLLM loads it: by its dotted name, from the bundle's folder, in any Python."""
    files = bundles.write(served, "vllm", tmp_path / "out")
    (command,) = bundles.words(files["serve.sh"])
    module, _, name = bundles.option(command, "--middleware").rpartition(".")
    code = f"import {module}; print({module}.{name}.__module__)"
    done = subprocess.run(
        ["python3", "-I", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "only_v1", done.stderr
    config = bundles.objects(files)["ConfigMap"]["data"]
    assert config == {"only_v1.py": files["only_v1.py"]}


@pytest.mark.parametrize("target", TARGETS)
def test_scripts_are_shell(bundles, served, target, tmp_path):
    files = bundles.write(served, target, tmp_path / "out")
    checker = shutil.which("shellcheck")
    for name in files:
        if name.endswith(".sh"):
            script = tmp_path / "out" / name
            assert subprocess.run(["sh", "-n", script]).returncode == 0
            if checker:
                assert subprocess.run([checker, script]).returncode == 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_readme_names_what_there_is(bundles, served, target, tmp_path):
    text = bundles.write(served, target, tmp_path / "out")["README.md"]
    for section in ("## Start", "## Ask", "## Verify"):
        assert section in text
    for line in text.splitlines():
        if line.startswith("./"):
            assert (tmp_path / "out" / line.split()[0]).is_file(), line
    if target in KEYED:
        assert f"`{KEYED[target]}`" in text
    assert "None" not in text and "latest" not in text
