"""The server: its port, its address, its end; and what it needs to start."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from gptoss_tune import error_hints
from gptoss_tune.cli.run.ui import ui
from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.ui.server.serve import _listening, serve


def test_a_taken_port_is_told_and_a_free_one_found():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"port {port} .*--port"):
            _listening(port)
    with _listening(None) as free:
        assert free.getsockname()[0] == "127.0.0.1"


def test_a_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(RecipeError, match="no such folder"):
        serve(tmp_path / "no", port=None, browser=False)


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(error_hints, "is_installed", lambda module: module != "uvicorn")
    with pytest.raises(MachineError, match=r'pip install "gptoss-tune\[ui\]"') as told:
        ui()
    assert "\n" not in str(told.value)


def test_the_pages_need_no_torch():
    code = (
        "import sys, gptoss_tune.ui.server.serve; "
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_ends_it(tmp_path):
    command = [sys.executable, "-m", "gptoss_tune", "ui", str(tmp_path), "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=\S{40,}", address)
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=30)
        assert (server.returncode, said) == (0, "")
    finally:
        server.kill()
        server.wait()
