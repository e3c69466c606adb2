"""``evaluation.safety``: what contradicts itself is refused with file and line, before anything."""

import pytest

from gptoss_tune.errors import RecipeError
from gptoss_tune.export.hub.public_recipe import public_recipe
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.distributed.agreement import compared
from gptoss_tune.workflows.cluster.inputs import named_files

ASKED = (
    "model: {name_or_path: base}\ndata: {train: rows.jsonl}\n"
    "train: {output_dir: run, max_steps: 1}\n"
)


@pytest.fixture
def refused(tmp_path):
    """Return a function from the text of ``evaluation`` to the message that refuses it."""

    def read(text):
        file = tmp_path / "recipe.yaml"
        file.write_text(f"{ASKED}evaluation:\n{text}", encoding="utf-8")
        with pytest.raises(RecipeError) as caught:
            load_recipe(file)
        return str(caught.value)

    return read


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            "  safety:\n    requests: r.jsonl\n",
            6,
            "requests without evaluation.safety.judge.url, expected a judge who says which",
        ),
        (
            "  safety:\n    judge: {url: http://j}\n",
            6,
            "http://j without evaluation.safety.requests, expected answers to judge",
        ),
        ("  safety:\n    policy: p.md\n", 6, "p.md without evaluation.safety.requests"),
        ("  safety:\n    hints: true\n", 6, "true without evaluation.prompts"),
        ("  safety:\n    without_analysis: true\n", 6, "true without evaluation.prompts"),
        (
            "  safety:\n    requests: r\n    judge: {url: http://j}\n"
            "    second_judge: {url: http://j}\n",
            8,
            "the first judge once more, expected another model or another server",
        ),
        (
            "  safety:\n    requests: r\n    judge: {url: 'http://h:8000'}\n"
            "    second_judge: {url: 'http://h:8000/v1'}\n",
            8,
            "the first judge once more",
        ),
        (
            "  safety:\n    requests: r\n    judge: {url: 'http://h:8000/v1/'}\n"
            "    second_judge: {url: 'http://h:8000/'}\n",
            8,
            "the first judge once more",
        ),
        (
            "  safety:\n    requests: r\n    judge: {url: http://j}\n"
            "    second_judge: {model: m}\n",
            8,
            "m without evaluation.safety.second_judge.url, expected a judge to be asked",
        ),
        (
            "  safety:\n    requests: r\n    judge: {url: 'http://me:pw@j'}\n",
            7,
            "expected an address without a name, a password",
        ),
        ("  safety:\n    requests: r\n    judge: {url: 'j:8000'}\n", 7, "the address of a server"),
        ("  safety:\n    requests: r\n    judge: {url: 'http://j:x'}\n", 7, "the address of a"),
        ("  safety:\n    harm: true\n", 6, "evaluation.safety.harm"),
        ("  safety:\n    judge: {key: x}\n", 6, "evaluation.safety.judge.key"),
    ],
)
def test_contradictions_are_refused_with_their_line(refused, text, line, words):
    message = refused(text)
    assert f"recipe.yaml:{line}" in message and words in message
    assert "pw@" not in message


def test_several_mistakes_come_in_one_message(refused):
    message = refused("  safety:\n    hints: true\n    max_requests: 9\n    policy: p.md\n")
    assert message.count("without evaluation.") == 3


@pytest.fixture
def asked(tmp_path):
    for name in ("r.jsonl", "p.md"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"{ASKED}evaluation:\n  safety:\n    requests: {tmp_path / 'r.jsonl'}\n"
        f"    policy: {tmp_path / 'p.md'}\n"
        "    judge: {url: 'http://judge.internal:8000/v1', api_key_env: KEY}\n",
        encoding="utf-8",
    )
    return load_recipe(file)


def test_files_and_addresses_go_where_they_belong(asked, tmp_path):
    assert asked.evaluation.wanted and asked.evaluation.generates
    named = named_files("base", None, asked.data, asked.evaluation)
    assert named[-2:] == [str(tmp_path / "r.jsonl"), str(tmp_path / "p.md")]
    text = public_recipe({"recipe": asked.model_dump(mode="json")}, "openai/gpt-oss-20b")
    assert "judge.internal" not in text and str(tmp_path) not in text
    assert "url: http://localhost:8000" in text and "policy: p.md" in text
    settings = {
        "evaluation.safety.requests": [str(tmp_path / "r.jsonl")],
        "evaluation.safety.policy": str(tmp_path / "p.md"),
    }
    before = compared({}, settings)
    assert all(one[0].startswith("sha256 ") for one in before.values() if one)
    (tmp_path / "p.md").write_text("another", encoding="utf-8")
    assert compared({}, settings) != before
