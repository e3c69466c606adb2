"""What a push makes of a repository: exactly what was verified, and nothing of others lost."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, HubError, RepositoryError
from gptoss_tune.export.hub.base_name import compare_shape, hub_base_name
from gptoss_tune.export.hub.card_text import new_card
from gptoss_tune.export.hub.name import check_name
from gptoss_tune.export.hub.push import check_push, push, refuse_places
from gptoss_tune.export.hub.repository import can_change_what_loads, changes_to
from gptoss_tune.weights import open_checkpoint

REPO = "me/tuned"
PUSH = ["--repo", REPO, "--base-name", "openai/gpt-oss-20b", "--no-logits"]


def content(name):
    return name.encode()


def files_of(*names):
    card = new_card("tuned", {"tags": ["gptoss-tune"]}, "ours").encode()
    return {"README.md": card, **{name: content(name) for name in names}}


def test_an_adapter_then_the_merged_model_leaves_no_adapter(hub, run, merged):
    assert CliRunner().invoke(app, ["push", str(run), *PUSH]).exit_code == 0
    done = CliRunner().invoke(app, ["push", str(run), *PUSH, "--merged", str(merged)])
    assert done.exit_code == 0, (done.output, done.exception)
    files = set(hub.repos[REPO]["files"])
    assert not {name for name in files if name.startswith("adapter")}
    assert {"model.safetensors", "config.json"} <= files
    assert "deleted in the same commit: adapter_config.json, adapter_model.safetensors" in (
        done.output
    )
    assert len(hub.repos[REPO]["commits"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after",
    [
        (
            ["model.safetensors"],
            ["model-00001-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (["model-00001-of-00003.safetensors"], ["model-00001-of-00002.safetensors"]),
        (["adapter_model.safetensors", "loss.svg", "recipe.yaml", "run_card.json"], ["NOTICE"]),
        (["additional_chat_templates/rag.jinja"], ["config.json"]),
        (["chat_template.jinja", "tokenizer.json", "tokenizer.model"], ["tokenizer.json"]),
    ],
    ids=["one file then shards", "fewer shards", "what explains", "named template", "tokenizer"],
)
def test_what_an_earlier_push_left_goes_in_the_same_commit(hub, before, after):
    push(files_of(*before), REPO, message="one")
    done = push(files_of(*after), REPO, message="two")
    assert set(hub.repos[REPO]["files"]) == {"README.md", *after}
    assert hub.repos[REPO]["commits"] == ["one", "two"]
    assert set(done.deleted) == set(before) - set(after)


def test_what_others_put_there_is_kept_where_no_loader_looks(hub):
    push(files_of("adapter_config.json"), REPO, message="one")
    theirs = {"figures/loss.png": b"x", "notes.md": b"y", "runs/model.safetensors": b"z"}
    hub.repos[REPO]["files"].update(theirs)
    done = push(files_of("config.json"), REPO, message="two")
    assert done.kept == tuple(sorted(theirs)) and done.deleted == ("adapter_config.json",)
    assert theirs.items() <= hub.repos[REPO]["files"].items()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "consolidated.00.pth", "model.fp8.safetensors", "params.json"),
        *("additional_chat_templates/a.py", "modeling_gpt_oss.py", "gpt-oss.gguf", "vocab.txt"),
    ],
)
def test_what_others_put_there_and_a_loader_reads_is_refused(hub, name):
    push(files_of("adapter_config.json"), REPO, message="one")
    hub.repos[REPO]["files"][name] = b"theirs"
    with pytest.raises(RepositoryError, match="--replace") as refused:
        push(files_of("config.json"), REPO, message="two")
    assert name in str(refused.value) and refused.value.exit_code == 2
    assert hub.repos[REPO]["commits"] == ["one"] and can_change_what_loads(name)
    push(files_of("config.json"), REPO, message="two", replace=True)
    assert set(hub.repos[REPO]["files"]) == {"README.md", "config.json"}


def test_weights_of_a_repository_that_no_push_wrote_are_not_overwritten(hub):
    theirs = {"model.safetensors": b"theirs", "config.json": b"{}", "LICENSE": b"theirs"}
    hub.repos[REPO] = {"private": True, "files": dict(theirs), "commits": ["first"]}
    with pytest.raises(RepositoryError, match=r"holds config\.json, model\.safetensors, which no"):
        push(files_of("model.safetensors", "config.json"), REPO, message="m")
    assert hub.repos[REPO]["files"] == theirs


CARD = files_of()["README.md"].decode()
SECTION = CARD[CARD.index("<!-- gptoss-tune: begin") :]


@pytest.mark.parametrize(
    "card",
    [
        "# Theirs\n\nMade with\n\n- gptoss-tune\n- patience\n",
        "---\ntags:\n- lora\n---\nMade with\n\n- gptoss-tune\n",
        "---\ntags:\n- gptoss-tune\n---\n# Made by hand\n",
        f"---\ntags:\n- lora\n---\nA push writes\n\n{SECTION}\n",
        f"What a card looks like:\n\n{CARD}",
    ],
    ids=["a bullet", "a bullet below metadata", "only the tag", "only the comment", "a whole card"],
)
def test_a_card_that_only_speaks_of_a_push_is_none(hub, card):
    theirs = {"README.md": card.encode(), "model.safetensors": b"theirs", "tokenizer.json": b"{}"}
    hub.repos[REPO] = {"private": True, "files": dict(theirs), "commits": ["first"]}
    with pytest.raises(
        RepositoryError, match=r"holds model\.safetensors, tokenizer\.json, which no"
    ):
        push(files_of("adapter_config.json"), REPO, message="m")
    assert hub.repos[REPO]["files"] == theirs


def test_names_like_ours_that_people_added_are_kept(hub):
    written = ["config.json", "LICENSE", "chat_template.jinja", "tokenizer_config.json"]
    push(files_of(*written), REPO, message="one")
    names = ["LICENSE-of-data.txt", "USAGE_POLICY.pdf", "prompts.jinja", "tokenizer_notes.md"]
    theirs = dict.fromkeys(names, b"theirs")
    hub.repos[REPO]["files"].update(theirs)
    done = push(files_of("adapter_config.json"), REPO, message="two")
    assert done.kept == tuple(names) and set(done.deleted) == set(written)
    assert theirs.items() <= hub.repos[REPO]["files"].items()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recipe.yaml", "loss.svg", "LICENSE", "NOTICE", "run_card.json"])
def test_what_others_put_under_our_names_is_not_overwritten(hub, name):
    theirs = {"README.md": b"# Theirs", ".gitattributes": b"", name: b"theirs"}
    hub.repos[REPO] = {"private": True, "files": dict(theirs), "commits": ["first"]}
    with pytest.raises(RepositoryError, match=f"holds {name}, which no .* --replace"):
        push(files_of(name), REPO, message="m")
    assert hub.repos[REPO]["files"] == theirs
    push(files_of(name), REPO, message="m", replace=True)
    files = hub.repos[REPO]["files"]
    assert files[name] == content(name) and files["README.md"].startswith(b"---")
    push(files_of(name), REPO, message="again")
    assert b"# Theirs" in hub.repos[REPO]["files"]["README.md"]


def test_a_commit_in_between_is_looked_at_again(hub, some_files):
    push(some_files, REPO, message="one")
    waited = []

    def tree(method, path, body, route=hub.route):
        answer = route(method, path, body)
        if "/tree/" in path and not waited:  # another process commits after we looked
            hub.repos[REPO]["files"]["stale.md"] = b"x"
            hub.repos[REPO]["commits"].append("between")
        return answer

    hub.route = tree
    done = push({**some_files, "NOTICE": b"n"}, REPO, message="two", wait=waited.append)
    assert waited == [1.0] and done.kept == ("stale.md",)
    assert hub.repos[REPO]["commits"] == ["one", "between", "two"]


@pytest.mark.parametrize("status", [400, 402, 403])
def test_a_refused_push_leaves_no_repository_that_it_made(hub, some_files, status):
    words = "Private repository storage limit reached, please upgrade your plan"
    hub.plant("/info/lfs/objects/batch", *[(status, {"X-Error-Message": words})] * 9)
    with pytest.raises(HubError, match="storage of its owner is used up") as refused:
        push(some_files, REPO, message="m", wait=lambda seconds: None)
    assert words in str(refused.value) and f"HTTP {status}" in str(refused.value)
    assert hub.repos == {} and hub.count("DELETE", "/api/repos/delete") == 1


def test_a_repository_of_others_survives_a_refused_push(hub, some_files):
    hub.repos[REPO] = {"private": True, "files": {}, "commits": []}
    hub.plant("/preupload/", *[(403, {"X-Error-Message": "no"})] * 9)
    with pytest.raises(HubError, match='the Hub says: "no'):
        push(some_files, REPO, message="m")
    assert REPO in hub.repos


@pytest.mark.parametrize(
    "name, said",
    [
        ("tuned", "expected owner/name"),
        ("a/b/c", "expected owner/name"),
        ("me/", "expected owner/name"),
        ("https://huggingface.co/acme/bot", "write --repo acme/bot"),
        ("https://huggingface.co/acme/bot/tree/main", "write --repo acme/bot"),
        ("me/has space", "letters, digits"),
        ("me/--x", "letters, digits"),
        ("me/x.git", "letters, digits"),
        ("me/" + "x" * 100, "at most 96"),
        ("../x", "letters, digits"),
    ],
)
def test_bad_names_are_refused_before_anything_is_read(hub, tmp_path, name, said):
    with pytest.raises(RepositoryError, match=said):
        check_name(name)
    done = CliRunner().invoke(app, ["push", str(tmp_path), "--repo", name])
    assert isinstance(done.exception, RepositoryError) and done.exception.exit_code == 2
    assert hub.requests == []


@pytest.mark.parametrize(
    "told, said",
    [
        ({"name": "me", "auth": {"accessToken": {"role": "read"}}}, "only reads"),
        ({"name": "you", "orgs": [{"name": "acme"}]}, "in no organisation 'me'"),
        ({"name": "you", "orgs": [{"name": "Me", "roleInOrg": "read"}]}, "only reads in the org"),
        (
            {
                "name": "me",
                "auth": {
                    "accessToken": {
                        "role": "fineGrained",
                        "fineGrained": {"global": [], "scoped": [{"permissions": ["repo.read"]}]},
                    }
                },
            },
            "only reads",
        ),
        ({"name": "me", "auth": {"accessToken": {"role": "write"}}}, None),
        ({"name": "you", "orgs": [{"name": "ME", "roleInOrg": "write"}]}, None),
    ],
)
def test_rights_are_asked_before_the_verification(hub, run, told, said):
    hub.whoami = told
    if said is None:
        check_push(REPO)
        return
    done = CliRunner().invoke(app, ["push", str(run), *PUSH])
    assert isinstance(done.exception, HubError) and said in str(done.exception)
    assert {path for _, path in hub.requests} == {"/api/whoami-v2"}


def test_a_base_of_another_shape_is_refused(hub, base):
    opened = open_checkpoint(base)
    config = {key: opened.config[key] for key in ("num_hidden_layers", "hidden_size")}
    right = json.dumps(config).encode()
    wrong = json.dumps(config | {"num_hidden_layers": 36}).encode()
    for name, text in (("right", right), ("wrong", wrong), ("odd", b"[]")):
        hub.repos[f"openai/{name}"] = {"private": False, "files": {"config.json": text}}
    assert compare_shape(opened, "openai/right") is True
    assert compare_shape(opened, "openai/missing") is False
    assert compare_shape(opened, "openai/odd") is False
    with pytest.raises(CheckpointError, match="num_hidden_layers 2 and not 36"):
        compare_shape(opened, "openai/wrong")


@pytest.mark.parametrize("name", ["gpt-oss-20b", "a/b/c", "https://huggingface.co/a/b", "/tmp/x"])
def test_a_base_name_is_owner_and_name(base, name):
    with pytest.raises(CheckpointError, match="--base-name is"):
        hub_base_name(open_checkpoint(base), name)


def test_a_file_that_names_a_folder_of_this_machine_is_refused(tmp_path):
    files = {"tokenizer_config.json": f'{{"name_or_path": "{tmp_path}/base"}}'.encode()}
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: names the folder"):
        refuse_places(files, [tmp_path])
    refuse_places(files, [tmp_path / "other"])


def test_every_name_that_a_merge_or_training_writes_is_ours(merged, adapter):
    names = [path.name for folder in (merged, adapter) for path in folder.iterdir()]
    names = [name for name in names if name != "README.md"] + ["run_card.json", "recipe.yaml"]
    changes = changes_to(names, [], REPO, pushed_before=True, replace=False)
    assert set(changes.deleted) == set(names)


def test_a_pushed_adapter_is_used_by_its_name(hub, run, base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["push", str(run), *PUSH]).exit_code == 0
    for command in (
        ["chat", REPO, "--prompt", "Hi", "--max-new-tokens", "1"],
        ["serve-config", REPO, "--target", "vllm", "--out", "bundle"],
        ["merge", REPO, "--out", "merged", "--no-verify"],
    ):
        done = CliRunner().invoke(app, [*command, "--base", str(base)])
        assert done.exit_code == 0, (command, done.output, done.exception)
    assert list((tmp_path / "bundle" / "adapters").glob("*/adapter_model.safetensors"))
    assert (tmp_path / "merged" / "model.safetensors").is_file()
