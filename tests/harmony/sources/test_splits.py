"""Folders that hold several splits: the one that the source names is read, or the choice asked."""

import json
import os

import datasets
import pytest

from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.sources.open import listed_files, open_source
from gptoss_tune.recipe import DataSection, DataSource


@pytest.fixture
def folder(tmp_path):
    def make(*names, card=None):
        place = tmp_path / "set"
        for name in names:
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"prompt": name, "completion": "a"}) + "\n")
        if card is not None:
            (place / "README.md").write_text(f"---\n{card}\n---\n# A set\n")
        return place

    return make


def names_of(place, **chosen):
    return [str(file.relative_to(place)) for file, _ in find_files(str(place), **chosen)]


def refusal(place, **chosen):
    with pytest.raises(DataError) as caught:
        find_files(str(place), **chosen)
    return str(caught.value)


SPELLED = {
    "shards": ("data/train-00000-of-00002.jsonl", "data/test-00000-of-00001.jsonl"),
    "files": ("train.jsonl", "test.jsonl"),
    "folders": ("train/a.jsonl", "test/a.jsonl"),
    "folders within": ("data/train/x/a.jsonl", "data/eval/x/a.jsonl"),
    "words": ("my_train_1.jsonl", "my-evaluation.jsonl"),
    "other words": ("Training.jsonl", "testing 2.jsonl"),
    "compressed": ("train.jsonl.gz", "test.json.zst"),
}


@pytest.mark.parametrize("kind", SPELLED)
def test_files_of_a_split_are_found_by_their_names(kind, folder):
    train, test = SPELLED[kind]
    place = folder(train, test)
    assert names_of(place, split="train") == [train]
    assert names_of(place, split="test") == [test]
    listed = ", ".join(sorted(("train", "test"), key=lambda split: names_of(place, split=split)))
    assert f"holds files of the splits {listed}; name the files of one" in refusal(place)
    assert "has no split 'validation'; its files are of" in refusal(place, split="validation")


def test_validation_has_four_names(folder):
    place = folder("train.jsonl", "val.jsonl", "dev.jsonl", "valid.jsonl", "validation.jsonl")
    assert len(names_of(place, split="validation")) == len(names_of(place, split="dev")) == 4


def test_splits_of_their_own_names(folder):
    place = folder(
        "data/train_sft-00000-of-00001.jsonl",
        "data/test_sft-00000-of-00001.jsonl",
        "data/train_gen-00000-of-00001.jsonl",
    )
    assert names_of(place, split="train_gen") == ["data/train_gen-00000-of-00001.jsonl"]
    message = refusal(place, split="train")
    assert "no split 'train'; its files are of test_sft, train_gen, train_sft" in message


def test_a_folder_of_one_split_or_of_none_is_read_whole(folder, tmp_path):
    place = folder("a.jsonl", "b.jsonl", "trainer.jsonl", "contest.jsonl", "attest/x.jsonl")
    assert len(names_of(place)) == 5 == len(names_of(place, split="train"))
    assert "has no split 'test'; its files are of no split by their names" in (
        refusal(place, split="test")
    )
    folder("train-1.jsonl")
    assert len(names_of(place)) == 6
    assert "of no split by their names, beside those of train" in refusal(place, split="train")
    folder("test.jsonl")
    assert "of the splits test, train and files of none; name the files" in refusal(place)
    assert names_of(place / "attest") == ["x.jsonl"]


CARD = """configs:
- config_name: default
  data_files:
  - {split: train, path: [data/a-*, 'more/**']}
  - split: test
    path: data/b*.jsonl
- config_name: other
  data_dir: other
- config_name: flat
  data_files: data/a-1.jsonl
- config_name: named
  data_files: {train: data/a-2.jsonl, holdout: "*/c.jsonl"}
"""
FILES = ("data/a-1.jsonl", "data/a-2.jsonl", "data/b.jsonl", "data/c.jsonl", "more/x/y.jsonl")
OTHER = ("other/train.jsonl", "other/dev.jsonl")


def test_the_card_names_the_files_of_configurations_and_splits(folder):
    place = folder(*FILES, *OTHER, card=CARD)
    assert names_of(place, split="train") == [*FILES[:2], FILES[4]]
    assert names_of(place, split="test") == [FILES[2]]
    assert names_of(place, name="other", split="validation") == ["other/dev.jsonl"]
    assert names_of(place, name="flat") == [FILES[0]]
    assert names_of(place, name="named", split="holdout") == [FILES[3]]
    assert "holds files of the splits train, test; name the files" in refusal(place)
    assert "configurations default, other, flat, named, not 'x'; set name" in refusal(
        place, name="x"
    )


def test_a_card_without_a_default_has_its_configuration_named(folder):
    card = "configs:\n- {config_name: a, data_files: data/a*}\n- {config_name: b, data_files: x}"
    place = folder(*FILES, card=card)
    assert "names the configurations a, b; set name on this source" in refusal(place)
    assert names_of(place, name="a") == list(FILES[:2])
    assert "gives the configuration 'b' the files 'x', and none is here" in refusal(place, name="b")
    place = folder(card=card.replace("b,", "b, default: true,"))
    assert "configuration 'b'" in refusal(place)


def test_a_card_cannot_lead_out_of_the_folder(folder, tmp_path):
    (tmp_path / "secret.jsonl").write_text("{}")
    for pattern in ("../secret.jsonl", str(tmp_path / "secret.jsonl"), "../*", "/etc/*"):
        place = folder("a.jsonl", card=f"configs:\n- {{data_files: '{pattern}'}}")
        assert "and none is here" in refusal(place)


@pytest.mark.parametrize(
    "card",
    [
        "a: &a [1]\nconfigs: [{config_name: *a, data_files: x}]",
        "configs: [",
        "a: *b",
        "configs: {a: 1}",
        "configs: [3]",
        "a: [" * 3000,
        "license: mit",
    ],
)
def test_a_card_that_is_odd(card, folder):
    place = folder("a.jsonl", card=card)
    try:
        assert names_of(place) == ["a.jsonl"]
    except DataError as error:
        assert "the front matter is not plain YAML" in str(error)


def test_a_name_without_configurations_and_a_split_of_a_file(folder):
    place = folder("a.jsonl")
    assert "no README.md of it names configurations; remove name" in refusal(place, name="en")
    assert "a split is set, and a file has none" in refusal(place / "a.jsonl", split="train")


def test_a_folder_within_that_cannot_be_listed_is_not_left_out(folder, monkeypatch):
    place = folder("a.jsonl", "b/c.jsonl")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"{place}/b: cannot be listed (Permission denied)" in refusal(place)


# ---- where a folder has the name of a dataset on the Hub


def test_a_folder_of_a_hub_name_honours_split_and_refuses_what_folders_lack(
    folder, tmp_path, monkeypatch
):
    folder("train.jsonl", "test.jsonl")
    (tmp_path / "some").mkdir()
    (tmp_path / "set").rename(tmp_path / "some" / "set")
    monkeypatch.chdir(tmp_path)
    for path in ("some/set", "./some/set"):
        data = DataSection.model_validate(
            {"train": {"path": path, "split": "train"}, "eval": {"path": path, "split": "test"}}
        )
        found = [(split, file.name) for split, _, file in listed_files(data)]
        assert found == [("train", "train.jsonl"), ("eval", "test.jsonl")]
        rows = [json.loads(raw)["prompt"] for _, raw in open_source(data.train[0]).rows()]
        assert rows == ["train.jsonl"]
    for name, value in (("revision", "main"), ("streaming", True)):
        source = {"path": "some/set", "split": "train", name: value}
        with pytest.raises(DataError, match=f"lies here, and what lies here has no {name}; remove"):
            open_source(DataSource.model_validate(source))


@pytest.mark.parametrize("path", ["a/b.jsonl", "d/*.json", "x.parquet", "y.arrow"])
def test_a_recipe_with_a_split_of_a_file_is_refused(path):
    from gptoss_tune.recipe.rules import data_rules

    data = DataSection.model_validate({"train": {"path": path, "split": "train"}})
    (found,) = data_rules(data)
    assert found.todo == "remove split"
    data = DataSection.model_validate({"train": {"path": "./some/set", "split": "train"}})
    assert list(data_rules(data)) == []


# ---- what save_to_disk writes, and what lies beside data


ROWS = [{"messages": [{"role": "user", "content": f"q{n}"}], "tools": {"a": n}} for n in range(5)]


def test_saved_datasets_are_read_split_by_split(tmp_path):
    first, second = (datasets.Dataset.from_list(rows) for rows in (ROWS, ROWS[:2]))
    place = tmp_path / "saved"
    datasets.DatasetDict({"train": first, "test": second}).save_to_disk(
        place, num_shards={"train": 2, "test": 1}
    )
    source = {"path": str(place), "split": "train"}
    assert [row for _, row in open_source(DataSource.model_validate(source)).rows()] == ROWS
    source["split"] = "test"
    rows = list(open_source(DataSource.model_validate(source)).rows())
    assert [row for _, row in rows] == ROWS[:2]
    assert rows[0][0] == f"{place}/test/data-00000-of-00001.arrow:1"
    assert "holds files of the splits train, test; name the files" in refusal(place)
    one = DataSource.model_validate({"path": str(place / "train")})
    assert [row for _, row in open_source(one).rows()] == ROWS
    (place / "train" / "data-00001-of-00002.arrow").unlink()
    assert "'data-00001-of-00002.arrow' is listed and not there" in refusal(place, split="test")


def test_a_selection_is_saved_with_its_rows_alone(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS).select([3, 1])
    dataset.save_to_disk(tmp_path / "saved")
    source = DataSource.model_validate({"path": str(tmp_path / "saved")})
    assert [row for _, row in open_source(source).rows()] == [ROWS[3], ROWS[1]]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{}", "state.json lists no data files"),
        ('{"_data_files": [{"filename": "../x"}]}', "'../x' is listed and not there"),
        ('{"_indices_data_files": [{"filename": "x"}]}', "was saved with a selection beside"),
    ],
)
def test_a_damaged_saved_dataset(state, message, tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text(state)
    assert message in refusal(tmp_path / "saved")


def test_what_datasets_writes_beside_the_data_is_no_data(folder):
    place = folder("a.jsonl", "dataset_infos.json", "b/c.json", "b/dataset_info.json")
    folder("b/state.json")
    assert names_of(place) == ["a.jsonl", "b/c.json"]
    (place / "b" / "dataset_info.json").unlink()
    assert names_of(place) == ["a.jsonl", "b/c.json", "b/state.json"]


def test_streaming_of_a_hub_dataset_still_needs_a_commit():
    source = DataSource.model_validate({"path": "a/b", "streaming": True})
    with pytest.raises(RecipeError, match="whole commit"):
        open_source(source)
