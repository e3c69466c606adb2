"""Scripts of bundles as a shell runs them, their servers replaced by programs that tell of it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from gptoss_tune.export.serve.texts import script


@pytest.fixture
def programs(tmp_path):
    """Writes a program that a script finds, and returns the environment that has it."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def write(name, text, **variables):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
        return {"PATH": f"{folder}:{os.environ['PATH']}", **variables}

    return write


def test_a_signal_reaches_the_server(bundles, served, tmp_path, programs):
    bundles.write(served, "vllm", tmp_path / "out")
    told = tmp_path / "told"
    environment = programs("vllm", f"echo $$ > {told}.new; mv {told}.new {told}; exec sleep 60")
    process = subprocess.Popen(
        [tmp_path / "out/serve.sh"], env=environment, start_new_session=True, stderr=-3
    )
    try:
        for _ in range(200):
            if told.exists():
                break
            time.sleep(0.05)
        assert int(told.read_text()) == process.pid
        process.terminate()
        assert process.wait(timeout=10) == -signal.SIGTERM
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("target", ["vllm", "sglang"])
def test_a_script_finds_its_folder(bundles, served, tmp_path, programs, target):
    """Also where CDPATH knows another folder of that name and ``cd`` prints where it went."""
    bundles.write(served, target, tmp_path / "out")
    (tmp_path / "other/out").mkdir(parents=True)
    program = "vllm" if target == "vllm" else "python3"
    environment = programs(program, 'echo "$TIKTOKEN_ENCODINGS_BASE"', CDPATH="other:.")
    done = subprocess.run(
        ["sh", "out/serve.sh"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == f"{tmp_path / 'out/vocabulary'}\n", done.stderr


def test_azure_finds_its_files_from_anywhere(bundles, served, tmp_path, programs):
    bundles.write(served, "azure-ml", tmp_path / "out")
    environment = programs("az", 'while [ "$1" != --file ]; do shift; done; cat "$2"')
    done = subprocess.run(
        [tmp_path / "out/deploy.sh"], env=environment, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "managedOnlineEndpoint" in done.stdout and "managedOnlineDeployment" in done.stdout


@pytest.mark.parametrize("package", ["transformers", "surely-no-package"])
def test_the_version_is_said_in_one_line(tmp_path, package):
    text = script(["echo", "started"], package=package)
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", text], env=environment, capture_output=True, text=True)
    assert done.stdout == "started\n"
    (line,) = done.stderr.splitlines()
    if package == "transformers":
        from importlib.metadata import version

        assert line == f"transformers {version('transformers')}"
    else:
        assert line == "surely-no-package is no package of python3: version not known"


def commands_of_page(page, heading):
    """The first block of commands below a heading."""
    return page.split(f"## {heading}\n")[1].split("```bash\n")[1].split("```")[0]


@pytest.mark.parametrize("target", ["vllm", "sglang"])
def test_both_servers_are_verified_as_the_page_says(bundles, served, target, tmp_path):
    """The script on the loopback address asks for no key, and none may be asked of the user."""
    key = "SGLANG_API_KEY" if target == "sglang" else "VLLM_API_KEY"
    for host, keys in (("127.0.0.1", [False, True]), ("0.0.0.0", [True])):
        page = bundles.write(replace(served, host=host), target, tmp_path / host)["README.md"]
        lines = [x for x in commands_of_page(page, "Verify").splitlines() if x[:1] != "#"]
        assert [f"--api-key-env {key}" in line for line in lines] == keys


@pytest.mark.parametrize(
    "host, url",
    [
        ("10.0.0.5", "http://10.0.0.5:8000"),
        ("::1", "http://[::1]:8000"),
        ("127.0.0.2", "http://127.0.0.2:8000"),
        ("0.0.0.0", "http://localhost:8000"),
        ("::", "http://localhost:8000"),
        ("127.0.0.1", "http://localhost:8000"),
    ],
)
def test_the_page_asks_the_address_that_is_listened_on(bundles, served, tmp_path, host, url):
    page = bundles.write(replace(served, host=host), "vllm", tmp_path / "out")["README.md"]
    assert f"curl {url}/v1/chat" in commands_of_page(page, "Ask")
    assert f"--served {url} " in commands_of_page(page, "Verify")


def test_no_command_of_a_page_has_the_key_as_an_argument(bundles, served, tmp_path, programs):
    """Only a program of the shell itself, which no list of processes shows."""
    page = bundles.write(served, "vllm", tmp_path / "out")["README.md"]
    told = 'echo "$0 $*" >> "$LOG"; cat >> "$STDIN"'
    log, stdin = tmp_path / "log", tmp_path / "stdin"
    for name in ("kubectl", "curl"):
        environment = programs(name, told, LOG=str(log), STDIN=str(stdin))
    environment["VLLM_API_KEY"] = "s3cret"
    kubernetes = page.split("kubernetes/copy-model.sh\n")[1].split("```")[0]
    for commands in (kubernetes, commands_of_page(page, "Ask")):
        done = subprocess.run(
            ["sh", "-ec", commands], env=environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        assert done.returncode == 0, done.stderr
    assert "s3cret" not in log.read_text()
    assert stdin.read_text() == "s3cretAuthorization: Bearer s3cret"
    assert "create secret generic my-model-key --from-file=api-key=/dev/stdin" in log.read_text()


def test_the_page_says_which_key_others_can_see(bundles, served, tmp_path):
    for target, seen in (("vllm", False), ("nim", False), ("sglang", True)):
        files = bundles.write(served, target, tmp_path / target)
        command = " ".join(bundles.service(files)["command"])
        assert ("API_KEY" in command) == ("as an argument alone" in files["README.md"]) == seen
