"""SECURITY.md names tests that exist, and the promise that no other file here shows."""

import http.server
import re
import threading
from pathlib import Path

import pytest

from gptoss_tune.display import shown_safely
from gptoss_tune.errors import MachineError
from gptoss_tune.export.verify.completions import CompletionsServer

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_page_names_is_there():
    named = set(re.findall(r"`(tests/[\w/.]+)`", (ROOT / "SECURITY.md").read_text()))
    assert len(named) >= 7
    assert not [name for name in named if not (ROOT / name).exists()]


def test_messages_leave_secrets_of_this_process_out(monkeypatch):
    secrets = {}
    for name in ("X_TOKEN", "X_KEY", "X_SECRET", "X_PASSWORD"):
        secrets[name] = f"no-known-shape-{name.lower()}"
        monkeypatch.setenv(name, secrets[name])
    monkeypatch.setenv("X_SETTING", "of no secret")
    shown = shown_safely(f"{secrets} https://user:pass-word@host/x ghp_{'a' * 36} of no secret")
    assert not [value for value in secrets.values() if value in shown]
    assert "pass-word" not in shown and "ghp_" not in shown and "of no secret" in shown


def test_a_server_cannot_send_the_prompts_elsewhere():
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(MachineError, match="gave no completion"):
            CompletionsServer(f"http://127.0.0.1:{server.server_port}", "m").first_token("hello")
        server.shutdown()
    assert asked == ["/v1/completions"]
