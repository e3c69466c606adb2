"""What --subjects says, without torch."""

import pytest

from gptoss_tune.benchmark.subjects.named import NamedSubject, look_at_subjects, read_subjects
from gptoss_tune.errors import CheckpointError, RecipeError


def test_kinds_and_labels():
    found = read_subjects(
        ["base,runs/mine", "bf16=merged/x", "http://localhost:8000/v1",
         "vllm=https://host/v1#openai/gpt-oss-20b"]
    )  # fmt: skip
    assert found == [
        NamedSubject("base", "base", ""),
        NamedSubject("mine", "model", "runs/mine"),
        NamedSubject("bf16", "model", "merged/x"),
        NamedSubject("localhost:8000", "server", "http://localhost:8000/v1"),
        NamedSubject("vllm", "server", "https://host/v1", "openai/gpt-oss-20b"),
    ]


def test_a_folder_may_hold_what_separates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "x=y"):
        (tmp_path / name).mkdir()
    assert [s.target for s in read_subjects(["a,b", "x=y"])] == ["a,b", "x=y"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "names none"),
        ("ftp://host", "is no address"),
        ("http://:80", "is no address"),
        ("http://host:port/v1", "is no address"),
        ("http://host/v1?key=abc", "has a query"),
        ("base,base", "two are called 'base'"),
        ("runs/a/,other/a", "two are called 'a'; name them apart, such as other=other/a"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(RecipeError, match=said):
        read_subjects([text])


def test_all_mistakes_at_once():
    with pytest.raises(RecipeError) as error:
        read_subjects(["ftp://host,base,http://h?x,base"])
    assert len(str(error.value).splitlines()) == 3


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        look_at_subjects(read_subjects([f"base,{tmp_path}/nothing"]))
