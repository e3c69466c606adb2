"""The form: made from the schema, the same recipe back, mistakes by their field, files kept."""

from pathlib import Path

import pytest

from gptoss_tune.recipe import load_recipe, recipe_json_schema, resolved_lines
from gptoss_tune.recipe.json_schema import settings_below
from gptoss_tune.recipe.load import read_recipe_values, recipe_of_settings
from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.shipped import shipped
from gptoss_tune.ui.recipe.fields import field_of, fields_by_key, groups
from gptoss_tune.ui.recipe.values import changed_yaml, form_values, settings_of

SHIPPED = [p for p in sorted(shipped("recipes").rglob("*.yaml")) if p.parent.name != "accelerate"]
SMALL = {"model.name_or_path": "openai/gpt-oss-20b", "data.train": "a.jsonl",
         "train.output_dir": "runs/x", "train.max_steps": "10"}  # fmt: skip
RICH = """
model: {name_or_path: "017", revision: "no", dtype: float32}
method: {name: kto, beta: 0.2, desirable_weight: 2}
lora: {rank: 8, target_modules: [k_proj], target_parameters: [], layers: [3, 1]}
data:
  train:
    - {path: "a, b.jsonl", weight: 2.5, columns: {prompt: "{{ q }}", completion: "{{ a }}"}}
    - "c: d.jsonl"
  eval: null
  eval_fraction: 0.1
  roles: {bot: assistant}
  tool_names: {"get.weather": get_weather}
  ignored_keys: [id, "null", "1"]
  packing: false
train: {output_dir: "runs/é", num_train_epochs: 1, learning_rate: 1e-5}
evaluation: {prompts: [p.jsonl], reasoning_effort: [low, high], drift: {probes: q.jsonl}}
guard: {loss_spike: null}
tracking: {wandb: offline, project: "true"}
"""


NESTED = RICH.replace("kto, beta: 0.2, desirable_weight: 2", "sft").replace(
    "packing: false", "channel_weights: {analysis: 0, final: 2}"
)


def there_and_back(path):
    return settings_of(form_values(read_recipe_values(path)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_through_the_form_is_the_recipe(path, tmp_path):
    recipe = recipe_of_settings(there_and_back(path), "the form")
    assert recipe == load_recipe(path)
    saved = tmp_path / "saved.yaml"
    saved.write_text(changed_yaml(resolved_lines(recipe)), encoding="utf-8")
    assert load_recipe(saved) == recipe


@pytest.mark.parametrize("text", [RICH, NESTED], ids=["kto", "sft"])
def test_every_kind_of_field_keeps_its_value(tmp_path, text):
    path = tmp_path / "rich.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = recipe_of_settings(there_and_back(path), "the form")
    assert recipe == load_recipe(path)
    path.write_text(changed_yaml(resolved_lines(recipe)), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_the_form_has_every_setting_of_the_schema():
    asked = {key for key, _ in fields_by_key()}
    grouped = {group.key for group in groups()}

    def refuse_unasked(path):
        for name in settings_below(path):
            key = ".".join((*path, name))
            if key in grouped:
                refuse_unasked((*path, name))
            else:
                assert key in asked

    for section in recipe_json_schema()["properties"]:
        refuse_unasked((section,))
    for name, section in METHODS.items():
        for setting in section.model_fields:
            assert setting == "name" or (f"method.{setting}", name) in fields_by_key()


def test_a_field_says_what_it_takes():
    fields = fields_by_key()
    rank = fields["lora.rank", ""]
    assert (rank.kind, rank.expected) == ("number", "a whole number from 1 to 1024")
    assert fields["data.packing", ""].options == ("true", "false")
    assert fields["lora.target_modules", ""].kind == "choices"
    assert fields["guard.loss_spike", ""].null_is_a_choice
    assert fields["method.name", ""].options == tuple(METHODS)
    assert field_of("data.train[1].columns.prompt", "sft").key == "data.train"
    assert field_of("method.beta", "ipo").identity == "method.beta-ipo"
    assert field_of("nowhere.at.all", "sft") is None


def test_mistakes_stand_beside_their_fields(client):
    form = {**SMALL, "lora.rank": "0", "train.learning_rate": "fast", "data.train": '{pth: "a"}',
            "train.num_train_epochs": "2", "method.name": "dpo", "method.beta": "-1"}  # fmt: skip
    found = client.post("/recipe/check", {"form": form}).json()["mistakes"]
    fields = {one["field"]: one["message"] for one in found}
    assert fields.keys() >= {"lora.rank", "train.learning_rate", "data.train", "method.beta-dpo"}
    assert "from 1 to 1024" in fields["lora.rank"]
    assert "override 2" not in "".join(fields.values())


def test_two_settings_that_do_not_go_together_are_told(client):
    form = {**SMALL, "train.num_train_epochs": "2"}
    (mistake,) = client.post("/recipe/check", {"form": form}).json()["mistakes"]
    assert mistake["field"].startswith("train.")


def test_the_yaml_says_only_what_differs(client):
    form = {**SMALL, "lora.rank": "16", "lora.target_modules": ["v_proj", "q_proj"]}
    answer = client.post("/recipe/check", {"form": form}).json()
    assert answer["mistakes"] == []
    assert "rank" not in answer["yaml"] and "target_modules: [q_proj, v_proj]" in answer["yaml"]


def test_a_form_of_nonsense_is_told_so(client):
    for form in ({}, {"lora.rank": ["1"], "x": "y"}, {"lora.rank": {"a": 1}}, [1], "x"):
        answer = client.post("/recipe/check", {"form": form})
        assert answer.status_code == 200 and answer.json()["mistakes"], form


def test_a_plan_follows_the_form(client):
    fits = client.post("/recipe/plan", {"form": SMALL, "gpu": "h100-80gb"}).json()["html"]
    assert "Fits" in fits and "experts" in fits
    small = client.post("/recipe/plan", {"form": SMALL, "gpu": "t4-16gb"}).json()["html"]
    assert "Does not fit" in small and "cheapest first" in small
    several = {"form": SMALL, "gpu": "h100-80gb", "gpus": 4}
    assert "each of 4" in client.post("/recipe/plan", several).json()["html"]
    for wrong in ({"gpus": 0.5}, {"gpus": -1}, {"gpu": "abacus"}, {"gpus": "4"}):
        answer = client.post("/recipe/plan", {"form": SMALL, **wrong})
        assert answer.status_code == 422 and answer.json()["error"], wrong


def test_a_file_is_never_overwritten_unasked(client, tmp_path):
    saved = client.post("/recipe/save", {"form": SMALL, "path": "mine/first.yaml"})
    assert saved.json() == {"path": str(Path("mine") / "first.yaml")}
    before = (tmp_path / "mine" / "first.yaml").read_text()
    assert load_recipe(tmp_path / "mine" / "first.yaml").train.max_steps == 10
    other = {"form": {**SMALL, "train.max_steps": "11"}, "path": "mine/first.yaml"}
    asked = client.post("/recipe/save", other)
    assert asked.status_code == 409 and "there already" in asked.json()["asks"]
    assert (tmp_path / "mine" / "first.yaml").read_text() == before
    assert client.post("/recipe/save", {**other, "overwrite": True}).status_code == 200
    assert load_recipe(tmp_path / "mine" / "first.yaml").train.max_steps == 11


@pytest.mark.parametrize(
    "path",
    ["../out.yaml", "/tmp/out.yaml", "mine.txt", "", "link/out.yaml", "a\0.yaml", "folder.yaml"],
)
def test_a_file_is_saved_below_the_current_folder_only(client, tmp_path, path):
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "folder.yaml").mkdir()
    answer = client.post("/recipe/save", {"form": SMALL, "path": path, "overwrite": True})
    assert answer.status_code == 422 and answer.json()["error"]


def test_an_unsound_form_is_not_saved(client, tmp_path):
    answer = client.post("/recipe/save", {"form": {}, "path": "a.yaml"})
    assert answer.status_code == 422 and not (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.yaml", "notes.txt", "no.yaml", "\0"])
def test_only_recipes_are_opened(client, tmp_path, name):
    (tmp_path / "notes.txt").write_text("a secret")
    (tmp_path.parent / "secret.yaml").write_text("a secret: 1")
    page = client.get("/recipe", params={"file": name})
    assert page.status_code == 200 and "has mistakes" in page.text
    assert "a secret" not in page.text and "root:" not in page.text


def test_a_file_with_mistakes_opens_with_what_can_be_read(client, tmp_path):
    (tmp_path / "bad.yaml").write_text(
        'model: {name_or_path: "<script>alert(1)</script>", experts_precision: fp5}\n'
        "data: {train: a.jsonl}\ntrain: {output_dir: runs/x, max_steps: 3}\nlora: {rnak: 8}\n"
    )
    page = client.get("/recipe?file=bad.yaml").text
    assert "bad.yaml:4" in page and "rnak" in page and "<script>alert" not in page
    assert 'value="fp5" selected' in page
    assert 'value="&lt;script&gt;alert(1)&lt;/script&gt;"' in page


def test_the_page_lists_shipped_and_local_recipes(client, tmp_path):
    (tmp_path / "mine.yaml").write_text("# mine\nmodel: {}\ndata: {}\ntrain: {}\n")
    (tmp_path / "other.yaml").write_text("services: {}\n")
    page = client.get("/recipe?file=").text
    assert 'value="mine.yaml"' in page and "other.yaml" not in page
    assert page.count("gpt-oss-20b/") >= 2
    assert 'value="openai/gpt-oss-20b"' in client.get("/recipe").text  # the smallest real one


def test_train_starts_what_is_saved_and_nothing_else(client, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: {name_or_path: openai/gpt-oss-20b}\ndata: {train: a.jsonl}\n"
        "train: {output_dir: runs/x, max_steps: 9}\n"
    )
    answer = client.post("/recipe/train", {"form": SMALL, "path": "r.yaml"})
    assert answer.status_code == 422 and "save the recipe first" in answer.json()["error"]
    for path in ("", "no.yaml", "/etc/passwd", "--help"):
        answer = client.post("/recipe/train", {"form": SMALL, "path": path})
        assert answer.status_code == 422
    assert client.services.jobs.get(1) is None  # nothing was started
