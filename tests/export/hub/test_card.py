"""The card: what people wrote stays, the licence is the base's, no path leaves."""

import json
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, RepositoryError
from gptoss_tune.export.hub.card_results import evaluation_results
from gptoss_tune.export.hub.card_text import new_card, parse_card, updated_card
from gptoss_tune.export.hub.licence import Licence, licence_of
from gptoss_tune.export.hub.model_card import Facts, loss_plot, model_card, run_card
from gptoss_tune.export.hub.public_recipe import data_names, public_recipe
from gptoss_tune.export.hub.push import push
from gptoss_tune.recipe import Recipe
from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.shipped import shipped

REPO = "me/tuned"
BASE = "openai/gpt-oss-20b"
APACHE = (shipped("data") / "tiny_checkpoint" / "LICENSE").read_text()
NC = "Creative Commons Attribution-NonCommercial 4.0 International\n\nYou may not.\n"
HAND = "---\nlicense: apache-2.0\nlanguage: [de]  # ours\n---\n# Bot\n\nHand-written: limits.\n"


def head_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_written_by_hand_keeps_every_word_of_its_text():
    ours = new_card("bot", {"license": "cc-by-nc-4.0", "tags": ["gptoss-tune"]}, "first")
    card = updated_card(HAND, ours, "README.md")
    assert "# Bot\n\nHand-written: limits.\n" in card and "first" in card
    assert head_of(card) == {
        "license": "cc-by-nc-4.0",
        "language": ["de"],
        "tags": ["gptoss-tune"],
    }
    edited = card.replace("---\n# Bot", "---\n# Robot") + "\n## Evaluation\n\nBLEU 3.\n"
    edited = edited.replace("tags:\n", "tags:\n- support\n")
    again = updated_card(edited, new_card("bot", {"tags": ["gptoss-tune"]}, "second"), "x")
    assert "# Robot" in again and "BLEU 3." in again and again.count("begin {") == 1
    assert "second" in again and "first" not in again
    assert head_of(again) == {"language": ["de"], "tags": ["gptoss-tune", "support"]}


def test_metadata_of_an_earlier_push_does_not_stay():
    first = new_card("bot", {"datasets": ["a/b"], "base_model": "x/y", "tags": ["t"]}, "one")
    second = new_card("bot", {"base_model": "x/z", "tags": ["t"]}, "two")
    assert updated_card(first, second, "README.md") == second
    changed = first.replace("- a/b", "- a/b\n- mine/own")
    assert head_of(updated_card(changed, second, "x"))["datasets"] == ["mine/own"]


def test_a_text_in_the_section_does_not_end_it():
    evil = "x <!-- gptoss-tune: end --> <!-- gptoss-tune: begin {} --> y"
    card = new_card("bot", {"tags": ["t"]}, evil)
    assert not parse_card(card, "x").by_hand
    assert updated_card(card, card, "x") == card


@pytest.mark.parametrize(
    "text, said",
    [
        ("---\na: [\n---\n", "cannot be read as YAML"),
        ("---\n- a\n---\n", "expected a mapping"),
        ("<!-- gptoss-tune: begin {} -->\nx", "damaged"),
        ("<!-- gptoss-tune: end -->", "damaged"),
        ("x <!-- gptoss-tune: end --> <!-- gptoss-tune: begin {} -->", "damaged"),
    ],
)
def test_a_card_that_cannot_be_read_is_refused_with_the_way_out(text, said):
    with pytest.raises(CheckpointError, match=said) as refused:
        parse_card(text, "me/x/README.md")
    assert "--replace-card" in str(refused.value)


def test_a_card_on_the_hub_survives_a_push_and_replace_card_replaces_it(hub, some_files):
    hub.repos[REPO] = {"private": True, "files": {"README.md": HAND.encode()}, "commits": ["hand"]}
    push(some_files, REPO, message="m")
    card = hub.repos[REPO]["files"]["README.md"].decode()
    assert "Hand-written: limits." in card and "An adapter." in card
    push(some_files, REPO, message="m", replace_card=True)
    assert hub.repos[REPO]["files"]["README.md"] == some_files["README.md"]


@pytest.mark.parametrize("card", [b"---\na: [\n---\n", b"x" * (5 << 20)], ids=["YAML", "size"])
def test_a_card_that_cannot_be_added_to_is_replaced_as_advised(hub, some_files, card):
    hub.repos[REPO] = {"private": True, "files": {"README.md": card}, "commits": ["hand"]}
    with pytest.raises((CheckpointError, RepositoryError), match="with --replace-card"):
        push(some_files, REPO, message="m")
    assert hub.repos[REPO]["commits"] == ["hand"]
    push(some_files, REPO, message="m", replace_card=True)
    assert hub.repos[REPO]["files"]["README.md"] == some_files["README.md"]


def test_a_card_in_the_merged_folder_is_pushed_with_our_section(hub, run, merged, tmp_path):
    folder = tmp_path / "merged"
    shutil.copytree(merged, folder)
    (folder / "README.md").write_text(HAND)
    arguments = ["push", str(run), "--repo", REPO, "--merged", str(folder), "--no-logits"]
    done = CliRunner().invoke(app, [*arguments, "--base-name", BASE])
    assert done.exit_code == 0, (done.output, done.exception)
    card = hub.repos[REPO]["files"]["README.md"].decode()
    assert "Hand-written: limits." in card and "changes: passed" in card
    hub.repos[REPO]["files"]["README.md"] = card.replace("limits", "other limits").encode()
    done = CliRunner().invoke(app, [*arguments, "--base-name", BASE])
    assert isinstance(done.exception, RepositoryError) and "--replace-card" in str(done.exception)


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"LICENSE": APACHE}, "apache-2.0"),
        ({"LICENSE": APACHE + "\n   Copyright 2025 Someone\n"}, "apache-2.0"),
        ({"LICENSE": "Apache License\nVersion 2.0\nwith our changes: no commerce"}, "other"),
        ({"LICENSE": NC}, "cc-by-nc-4.0"),
        ({"LICENSE": NC, "README.md": "---\nlicense: cc-by-nc-4.0\n---\n"}, "cc-by-nc-4.0"),
        ({"LICENSE": NC, "README.md": "---\nlicense: apache-2.0\n---\n"}, "other"),
        ({"README.md": "---\nlicense: mit\n---\n"}, "mit"),
        ({"README.md": "---\nlicense: 'x\n  y'\n---\n"}, "unknown"),
        ({"LICENSE.md": "Our terms.", "README.md": "---\nlicense: other\n---\n"}, "other"),
        ({"LICENSE": APACHE, "LICENSE-extra": "But never on Sundays."}, "other"),
        ({}, "unknown"),
    ],
)
def test_the_licence_is_the_bases_and_never_assumed(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = licence_of(tmp_path)
    assert found.identifier == expected
    assert [file.name for file in found.files] == sorted(n for n in files if n != "README.md")
    assert found.known == (expected != "unknown")
    if expected not in ("apache-2.0", "other"):
        assert "apache" not in found.sentence.lower()


FIELDS = {
    "model": {"name_or_path": "/srv/acme/base"},
    "lora": {"init_from": "/srv/acme/runs/first"},
    "data": {
        "train": [{"path": "/srv/acme/tickets.jsonl"}, {"path": "acme/secret-folder"}],
        "eval": [{"path": "C:\\Users\\acme\\held.jsonl"}],
    },
    "train": {"output_dir": "/srv/acme/out", "resume": "/srv/acme/out/c-3", "max_steps": 1},
    "evaluation": {
        "prompts": ["/srv/acme/prompts.jsonl", "acme/more/p.jsonl"],
        "drift": {"references": ["acme/refs.jsonl"], "probes": ["/srv/acme/probes.jsonl"]},
    },
}


def test_no_path_of_the_recipe_is_published():
    assert Recipe.model_validate(FIELDS)
    text = public_recipe({"recipe": FIELDS}, BASE)
    assert "acme" not in text and "/srv" not in text
    found = yaml.safe_load(text)
    assert Recipe.model_validate(found)
    assert found["evaluation"]["drift"] == {
        "references": ["refs.jsonl"],
        "probes": ["probes.jsonl"],
    }
    assert found["lora"]["init_from"] == "first"
    assert found["data"]["eval"] == [{"path": "held.jsonl"}]


@pytest.mark.parametrize("name", METHODS)
def test_the_published_recipe_keeps_the_settings_of_its_method(name):
    settings = METHODS[name](name=name).model_dump(mode="json")
    settings |= {key: 0.25 for key in ("beta", "sft_weight") if key in settings}
    text = public_recipe({"recipe": {**FIELDS, "method": {**settings, "note": "/srv/x"}}}, BASE)
    assert yaml.safe_load(text)["method"] == settings
    assert Recipe.model_validate(yaml.safe_load(text)).method.name == name
    for strange in ({"name": "/srv/acme"}, {"name": ["/srv"]}, {"beta": "/srv/acme"}):
        found = public_recipe({"recipe": {**FIELDS, "method": strange}}, BASE)
        assert "beta" not in found


def facts_of(record, metrics=()):
    terms = Licence("apache-2.0", "Apache.")
    return Facts("me/x", BASE, None, ["q_proj"], record, metrics, "Verified.", terms)


def test_a_card_says_by_which_method_and_against_what_it_was_trained():
    record = {
        "recipe": {**FIELDS, "method": {"name": "dpo", "beta": 0.1}},
        "reference": {"of": "base", "rows": 12, "tokens": 3400, "seconds": 5.0, "cached": False},
        "preferences": {
            "first": {},
            "last": {"reward_accuracy": 1.0, "reward_margin": 2.5},
            "eval": {"eval_reward_accuracy": 0.875, "eval_reward_margin": None},
        },
    }
    facts = facts_of(record, [{"step": n, "loss": 0.5 / n} for n in (1, 2)])
    card = model_card(facts)
    assert "trained by direct preference optimisation (DPO) with gptoss-tune" in card
    assert "fine-tuned" not in card and "supervised" not in card
    assert "| method | direct preference optimisation (DPO) |" in card
    assert "| reference | the base (12 rows, 3,400 tokens, in 5 s) |" in card
    assert "| reward accuracy on held-out pairs | 0.875 |" in card
    assert "| last reward margin, mean of a training step | 2.5 |" in card
    assert head_of(card)["tags"] == ["gpt-oss", "gptoss-tune", "lora", "dpo"]
    told = json.loads(run_card(facts))
    assert told["recipe"]["method"] == {"name": "dpo"} and told["reference"] == record["reference"]
    assert told["preferences"] == {"eval_reward_accuracy": 0.875, "reward_margin": 2.5}
    assert "training loss, mean per pair" in loss_plot(facts)


def test_a_card_of_a_run_on_rewards_tells_them_and_not_where_it_sampled():
    method = {"name": "grpo", "sampler": "server", "server_url": "http://gpu7.acme.lan:8000/v1"}
    method |= {"server_folder": "/srv/acme/weights", "max_new_tokens": 64}
    record = {
        "recipe": {**FIELDS, "method": method},
        "reinforcement": {
            "first": {"reward": 0.1},
            "last": {"reward": 0.75, "reward_margin": 0.5},
            "eval": {"eval_reward": 0.875},
        },
        "rollouts": {"environment": "acme_shop:Shop", "episodes": 640},
    }
    facts = facts_of(record)
    card = model_card(facts)
    assert "trained by group relative policy optimisation (GRPO) with gptoss-tune" in card
    assert "| reward on held-out prompts | 0.875 |" in card
    assert "margin" not in card.partition("The recipe, complete")[0]
    assert head_of(card)["tags"] == ["gpt-oss", "gptoss-tune", "lora", "grpo"]
    told = json.loads(run_card(facts))
    assert told["reinforcement"] == {"eval_reward": 0.875} and "preferences" not in told
    assert told["recipe"]["method"] == {"name": "grpo"}
    for published in (card, json.dumps(told)):
        assert "acme" not in published and "/srv" not in published
    assert "server_url: http://localhost:8000/v1" in card


def test_a_card_of_fine_tuning_says_so_and_a_strange_method_is_not_recorded():
    card = model_card(facts_of({"recipe": FIELDS}))
    assert "fine-tuned with" in card and "| method | supervised fine-tuning |" in card
    assert "reference" not in card.partition("The recipe, complete")[0] and "reward" not in card
    assert head_of(card)["tags"] == ["gpt-oss", "gptoss-tune", "lora"]
    evil = {"recipe": {**FIELDS, "method": {"name": "evil\n---"}}, "reference": {"of": "/srv/x"}}
    card = model_card(facts_of(evil))
    assert "| method | not recorded |" in card and "/srv" not in card
    assert "method" not in json.loads(run_card(facts_of(evil)))["recipe"]


def test_a_name_on_the_hub_is_one_that_the_run_did_not_read_from_a_file():
    record = {"recipe": {"data": {"train": [{"path": "org/data-v1.0"}, {"path": "acme/folder"}]}}}
    assert data_names(record) == ["data-v1.0", "folder"]
    record["data"] = [
        {"path": "org/data-v1.0", "sha256": None},
        {"path": "acme/folder/a.jsonl", "sha256": "0"},
    ]
    assert data_names(record) == ["org/data-v1.0", "folder"]


def test_what_the_schema_does_not_know_is_left_out():
    record = {"recipe": {**FIELDS, "note": "/srv/acme", "data": {"train": [], "where": "/srv"}}}
    assert "srv" not in public_recipe(record, BASE)


def test_a_record_does_not_steer_the_metadata(hub, run):
    record = json.loads((run / "run.json").read_text())
    evil = ["evil/x\n---\nlicense: mit", "evil/<script>", "a/b/c", "ＥＶＩＬ/x", *["e/x"] * 99]
    record["recipe"]["data"]["train"] = [{"path": path} for path in evil]
    record["data"] = [{"path": path, "sha256": None} for path in evil]
    record["base"]["name"] = "evil/base"
    record["environment"]["home"] = "/srv/acme"
    (run / "run.json").write_text(json.dumps(record))
    arguments = ["push", str(run), "--repo", REPO, "--base-name", BASE]
    base = json.loads((run / "adapter" / "adapter_config.json").read_text())
    arguments += ["--base", base["base_model_name_or_path"]]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    files = hub.repos[REPO]["files"]
    head = head_of(files["README.md"].decode())
    assert head["license"] == "apache-2.0" and head["base_model"] == BASE
    assert head["datasets"] == ["e/x"]
    assert b"/srv/acme" not in b"".join(files.values())


def test_results_are_those_of_rows_that_were_not_trained_on():
    record = {
        "loss": 0.1,
        "eval_loss": 0.5,
        "evaluation": {"graded": {"passed": 3, "total": 4}},
        "preferences": {"eval": {"eval_reward_accuracy": 0.75}, "last": {"reward_margin": 2.0}},
    }
    found = {result.metric_name: result.metric_value for result in evaluation_results(record)}
    assert found == {
        "loss on held-out rows": 0.5,
        "reward accuracy on held-out pairs": 0.75,
        "answers graded right": 0.75,
    }
    strange = {"eval_loss": "0.5", "evaluation": {"graded": {"passed": 1, "total": 0}}}
    assert evaluation_results(strange) == [] == evaluation_results({"evaluation": [1]})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_snippet_of_a_card_answers(hub, run, merged, base, kind, capsys):
    arguments = ["push", str(run), "--repo", REPO, "--base-name", BASE, "--no-logits"]
    arguments += ["--merged", str(merged)] if kind == "merged" else []
    assert CliRunner().invoke(app, arguments).exit_code == 0
    card = hub.repos[REPO]["files"]["README.md"].decode()
    code = card.partition("```python\n")[2].partition("```")[0]
    places = {REPO: merged if kind == "merged" else run / "adapter", BASE: base}
    for name, place in places.items():
        code = code.replace(f'"{name}"', repr(str(place)))
    exec(code.replace("max_new_tokens=512", "max_new_tokens=2"), {})
    assert capsys.readouterr().out.strip()
    assert "<details>\n<summary>The recipe, complete</summary>\n\n```" in card
