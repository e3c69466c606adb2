"""Who is let in: the token, this machine's names, this page's origin."""

import pytest

from gptoss_tune.ui.access import ACTION_HEADER

PAGES = ["/", "/run?run=a", "/run/live?run=a", "/run/report?run=a", "/recipe", "/chat", "/job",
         "/chat/events", "/style.css", "/static/ui.js"]  # fmt: skip
ACTIONS = ["/run/stop", "/recipe/check", "/recipe/save", "/recipe/train", "/recipe/preview",
           "/recipe/check-data", "/recipe/plan", "/job/stop", "/chat/load", "/chat/ask",
           "/chat/begin", "/chat/stop", "/chat/unload"]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_without_the_token_nothing_is_shown(client, path):
    assert client.plain.get(path).status_code == 403
    separator = "&" if "?" in path else "?"
    assert client.plain.get(f"{path}{separator}token=guessed").status_code == 403


def test_the_address_gives_a_cookie_that_only_this_page_sends(client):
    answer = client.plain.get(f"/?token={client.services.access.token}")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.services.access.token not in answer.text  # nor in the address that follows
    assert 'content="0; url=/"' in answer.text


def test_a_ticket_is_good_once(client):
    ticket = client.services.access.ticket()
    assert client.plain.get(f"/?token={ticket}").status_code == 200
    client.plain.cookies.clear()
    assert client.plain.get(f"/?token={ticket}").status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example",
                                  "10.0.0.3:8765", "", "[::2]:1", "[bad"])  # fmt: skip
def test_another_name_of_this_machine_is_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:1", "[::1]:8765", "LOCALHOST"])
def test_a_tunnel_may_change_the_port(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ACTIONS)
def test_what_changes_something_needs_origin_and_token(client, path):
    for spoiled in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {ACTION_HEADER: "guessed"},
        {ACTION_HEADER: ""},
    ):
        assert client.post(path, headers=spoiled).status_code == 403
    said = {ACTION_HEADER: client.services.access.action_token}
    assert client.let_in.post(path, json={}, headers=said).status_code == 403  # no origin
    assert client.post(path, client=client.plain).status_code == 403  # no cookie
    assert client.get(path).status_code in (404, 405)  # never by a link


def test_pages_forbid_scripts_of_others(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "nothing.js", "."])
def test_static_files_are_those_of_their_folder(client, name):
    assert client.get(f"/static/{name}").status_code == 404


def test_a_body_is_one_small_object(client):
    for body in ([], 1, "x"):
        sent = {"origin": "http://127.0.0.1:8765",
                ACTION_HEADER: client.services.access.action_token}  # fmt: skip
        answer = client.let_in.post("/recipe/check", json=body, headers=sent)
        assert answer.status_code == 400, body
    assert client.post("/recipe/check", {"form": {"x": "y" * 300_000}}).status_code == 413
