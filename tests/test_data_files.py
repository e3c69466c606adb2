"""The shipped data: every row is well formed, unique and true where a machine can tell."""

import calendar
import doctest
import hashlib
import json
import re
from collections import Counter
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
KINDS = ("reasoning", "multi_turn", "tools", "code")
CONVERSATIONS = [f"conversations/{kind}.jsonl" for kind in KINDS]
EVAL = "conversations/eval.jsonl"
TINY = ["tiny/train.jsonl", "tiny/eval.jsonl"]
FILES = [*CONVERSATIONS, EVAL, *TINY]
PROMPTS = ["prompts/reasoning.jsonl", "prompts/tools.jsonl", "prompts/tiny.jsonl"]
PROBES = "probes/refusal.jsonl"
# What their rows hold is checked in benchmark/suites/.
SUITES = [
    f"suites/{name}.jsonl" for name in ("code", "instructions", "maths", "multilingual", "tools")
]
# What their rows hold is checked in safeguard/test_data.py.
POLICIES = [
    *("safeguard/train.jsonl", "safeguard/eval.jsonl"),
    *("tiny/policies.jsonl", "tiny/policies_eval.jsonl"),
]
# What their rows hold is checked in rollout/tiny_task/.
TOOLS = [f"tiny/tools_{part}.jsonl" for part in ("warmup", "train", "eval")]
# What their rows hold is checked in test_preference_files.py.
PREFERENCES = [
    f"{folder}/{kind}{part}.jsonl"
    for folder in ("preferences", "tiny")
    for kind in ("pairs", "labels")
    for part in ("", "_eval")
]

# Of the shipped rows the two most alike share 0.09 of their word 5-grams (measured when the set
# was written); a copy with a few words exchanged shares far more than this bound.
NEAR_DUPLICATE = 0.25

# Chinese and Japanese are written without spaces: there a character counts as a word.
WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\W\u3040-\u30ff\u4e00-\u9fff]+")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
JSON_TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def load(name):
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def located(*names):
    for name in names:
        for number, row in enumerate(load(name), start=1):
            yield f"{name}:{number}", row


def mistakes_in_value(value, schema, where):
    """The part of JSON Schema that the tools use; an unknown keyword is a mistake too."""
    known = {"type", "description", "enum", "minimum", "maximum", "items", "properties", "required"}
    found = [f"{where}: unknown keyword {key}" for key in sorted(set(schema) - known)]
    kind = schema.get("type")
    if kind is not None and not isinstance(value, JSON_TYPES[kind]):
        return [*found, f"{where}: {value!r} is no {kind}"]
    if isinstance(value, bool) and kind in ("integer", "number"):
        found.append(f"{where}: {value!r} is no {kind}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{where}: {value!r} is below {schema['minimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        found.append(f"{where}: {value!r} is above {schema['maximum']}")
    if kind == "array":
        for item in value:
            found += mistakes_in_value(item, schema["items"], where)
    if kind == "object":
        properties = schema["properties"]
        found += [f"{where}: {key} is missing" for key in schema["required"] if key not in value]
        found += [f"{where}: {key} is undeclared" for key in value if key not in properties]
        for key in value.keys() & properties.keys():
            found += mistakes_in_value(value[key], properties[key], f"{where}.{key}")
    return found


def mistakes_in_calls(message, tools, where):
    found = []
    for call in message["tool_calls"]:
        if set(call) != {"id", "type", "function"} or call["type"] != "function":
            found.append(f"{where}: malformed call {call}")
            continue
        name = call["function"]["name"]
        if name not in tools:
            found.append(f"{where}: {name} is not declared")
            continue
        arguments = json.loads(call["function"]["arguments"])
        found += mistakes_in_value(arguments, tools[name], f"{where}: {name}")
    return found


def mistakes_in_row(row):
    """Everything wrong with one row; an empty list for a good one."""
    found = []
    if not set(row) <= {"messages", "tools", "reasoning_effort"}:
        found.append(f"unknown columns in {sorted(row)}")
    if row.get("reasoning_effort", "low") not in ("low", "medium", "high"):
        found.append(f"effort {row['reasoning_effort']}")
    tools = {t["function"]["name"]: t["function"]["parameters"] for t in row.get("tools", [])}
    if len(tools) != len(row.get("tools", [])):
        found.append("a tool is declared twice")
    expected = {"system", "user"}
    open_calls, seen_ids = [], set()
    for i, message in enumerate(row["messages"]):
        where, role = f"message {i}", message["role"]
        if role not in expected:
            found.append(f"{where}: role {role}, expected one of {sorted(expected)}")
        allowed = {"role", "content"}
        if role == "assistant":
            allowed |= {"thinking", "tool_calls"}
        elif role == "tool":
            allowed |= {"tool_call_id", "name"}
        if not set(message) <= allowed:
            found.append(f"{where}: keys {sorted(message)}")
        texts = [message.get(key) for key in ("content", "thinking")]
        if any(text is not None and (not text or text != text.strip()) for text in texts):
            found.append(f"{where}: empty text or space around it")
        if message["content"] is None and "tool_calls" not in message:
            found.append(f"{where}: no content")

        if role == "assistant" and "tool_calls" in message:
            found += mistakes_in_calls(message, tools, where)
            open_calls = [(c["id"], c["function"]["name"]) for c in message["tool_calls"]]
            ids = [call_id for call_id, _ in open_calls]
            if len(set(ids)) < len(ids) or seen_ids & set(ids):
                found.append(f"{where}: a call id is used twice")
            seen_ids |= set(ids)
            expected = {"tool"}
        elif role == "tool":
            call = (message["tool_call_id"], message["name"])
            if not open_calls or call != open_calls.pop(0):
                found.append(f"{where}: answers {call}, which is not the next open call")
            expected = {"tool"} if open_calls else {"assistant"}
        else:
            expected = {"user"} if role in ("system", "assistant") else {"assistant"}
    last = row["messages"][-1]
    if last["role"] != "assistant" or "tool_calls" in last:
        found.append("the conversation does not end with an answer")
    return found


def shingles(row):
    text = " ".join(
        f"{message.get('thinking', '')} {message['content'] or ''}" for message in row["messages"]
    )
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def assistant_texts(row):
    return [m["content"] for m in row["messages"] if m["role"] == "assistant" and m["content"]]


def answers_before_user(row):
    return sum(m["role"] == "assistant" and "tool_calls" not in m for m in row["messages"])


@pytest.mark.parametrize("name", [*FILES, *PREFERENCES])
def test_file_is_plain_json_lines(name):
    raw = (DATA / name).read_bytes()
    assert raw.endswith(b"}\n")
    assert b"\r" not in raw
    assert not raw.startswith(b"\xef\xbb\xbf")
    for line in raw.decode("utf-8").splitlines():
        row = json.loads(line)
        assert json.dumps(row, ensure_ascii=False) == line, "one spelling of JSON throughout"


@pytest.mark.parametrize("name", FILES)
def test_rows_are_well_formed(name):
    found = [f"{where}: {m}" for where, row in located(name) for m in mistakes_in_row(row)]
    assert not found, "\n".join(found)


def test_counts():
    counts = {name: len(load(name)) for name in FILES}
    assert all(counts[name] >= 80 for name in CONVERSATIONS), counts
    assert sum(counts[name] for name in CONVERSATIONS) >= 320
    assert counts[EVAL] == 20
    assert [counts[name] for name in TINY] == [24, 6]


def test_no_row_resembles_another():
    rows = [(where, shingles(row)) for where, row in located(*CONVERSATIONS, EVAL)]
    found = [
        f"{a} and {b}"
        for (a, left), (b, right) in combinations(rows, 2)
        if len(left & right) > NEAR_DUPLICATE * len(left | right)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("part", ["first question", "last answer"])
def test_no_question_or_answer_twice(part):
    def key(row):
        if part == "last answer":
            return row["messages"][-1]["content"]
        return next(m["content"] for m in row["messages"] if m["role"] == "user")

    counts = Counter(key(row) for _, row in located(*FILES))
    assert not [text for text, n in counts.items() if n > 1]


def test_reasoning_rows_reason():
    rows = load(CONVERSATIONS[0])
    assert all("thinking" in row["messages"][-1] for row in rows)
    lengths = sorted(len(row["messages"][-1]["thinking"]) for row in rows)
    assert lengths[-1] > 8 * lengths[0], "chains of thought of very different length"


@pytest.mark.parametrize("name", FILES)
def test_effort_agrees_with_thinking(name):
    """A row that never thinks asks for little effort; it must not teach silence at a higher one."""
    for where, row in located(name):
        if not any("thinking" in message for message in row["messages"]):
            assert row.get("reasoning_effort") == "low", where


def test_multi_turn_rows_have_two_to_five_answers():
    for where, row in located(CONVERSATIONS[1]):
        assert 2 <= answers_before_user(row) <= 5, where


def test_tool_rows_cover_every_way_of_calling():
    ways = Counter()
    for _, row in located(CONVERSATIONS[2]):
        assert row["tools"]
        calls = [m["tool_calls"] for m in row["messages"] if "tool_calls" in m]
        results = [m["content"] for m in row["messages"] if m["role"] == "tool"]
        ways["none"] += not calls
        ways["single"] += len(calls) == 1 and len(calls[0]) == 1
        ways["parallel"] += any(len(c) > 1 for c in calls)
        ways["chained"] += len(calls) > 1
        ways["error"] += any('"error"' in result for result in results)
    assert all(ways[way] >= 5 for way in ("none", "single", "parallel", "chained", "error")), ways


def test_eval_holds_five_of_each_kind():
    rows = load(EVAL)
    kinds = Counter(
        "tools"
        if "tools" in row
        else "multi_turn"
        if answers_before_user(row) > 1
        else "code"
        if "```" in row["messages"][-1]["content"]
        else "reasoning"
        for row in rows
    )
    assert kinds == dict.fromkeys(KINDS, 5)


def test_addresses_are_reserved_ones():
    """Mail addresses and URLs lead to nobody: example domains only (RFC 2606)."""
    for where, row in located(*FILES, *PREFERENCES):
        text = json.dumps(row, ensure_ascii=False)
        for host in re.findall(r"(?:[\w.+-]@|https?://)([\w-]+(?:\.[\w-]+)+)", text):
            labels = host.split(".")
            assert "example" in labels[-2:], f"{where}: {host}"


def test_tiny_rows_are_short_and_distinct():
    prompts = [row["messages"][0]["content"] for _, row in located(*TINY)]
    assert len(set(prompts)) == len(prompts)
    for where, row in located(*TINY):
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"], where
        answer = row["messages"][1]
        assert len(answer["content"].split()) <= 3, where
        assert 0 < len(answer["thinking"].split()) <= 8, where


def run_examples(text, where):
    """Execute the Python blocks of one answer; return how many examples were checked."""
    namespace = {"__name__": "answer"}
    checked = 0
    for language, body in FENCE.findall(text):
        examples = []
        if language == "python":
            before = set(namespace)
            exec(compile(body, where, "exec"), namespace)
            defined = [namespace[name] for name in namespace.keys() - before]
            examples = [o.__doc__ for o in defined if getattr(o, "__module__", "") == "answer"]
        elif language == "pycon":
            examples = [body]
        for example in examples:
            test = doctest.DocTestParser().get_doctest(example or "", namespace, where, where, 0)
            report = []
            outcome = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
            assert outcome.failed == 0, "".join(report)
            checked += outcome.attempted
            if language == "pycon":
                namespace.update(test.globs)
    return checked


@pytest.mark.parametrize("name", [*FILES, "README.md"])
def test_python_in_answers_does_what_it_says(name):
    if name.endswith(".md"):
        run_examples((DATA / name).read_text(encoding="utf-8"), name)
        return
    checked = Counter()
    for where, row in located(name):
        for text in assistant_texts(row):
            checked[where] += run_examples(text, where)
    if name == "conversations/code.jsonl":
        assert sum(count > 0 for count in checked.values()) >= 50
        assert checked.total() >= 120


def test_readme_table_is_true():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([\w/]+\.jsonl)` \| (\d+) \|", readme, re.MULTILINE))
    files = [*FILES, *PROMPTS, PROBES, *PREFERENCES, *POLICIES, *TOOLS, *SUITES]
    assert table == {name: str(len(load(name))) for name in files}


def test_prompts_and_probes_are_no_training_questions():
    """But for the demo's: those ask what was learned by heart, and expect just that."""

    def asked(row):
        return next(m["content"] for m in row["messages"] if m["role"] == "user")

    trained = {asked(row) for _, row in located(*CONVERSATIONS)}
    held = [asked(row) for _, row in located(*PROMPTS[:2])]
    held += [row["prompt"] for _, row in located(PROBES)]
    assert len(set(held)) == len(held) and not trained & set(held)
    learned = {asked(r): r["messages"][-1]["content"] for _, r in located("tiny/train.jsonl")}
    assert learned == {asked(row): row["answer"] for _, row in located("prompts/tiny.jsonl")}


def test_answers_of_the_reasoning_prompts_are_right():
    handshakes = len(list(combinations(range(3), 2))) + 3 * 4
    computed = [
        (17 * 60 + 12) - (14 * 60 + 35),
        17 * 23,
        sum(n % 6 == 0 and n % 4 != 0 for n in range(1, 101)),
        round(80 / 0.8),
        9 * (9 - 3) // 2,
        (31 - 9) // 2,
        handshakes,
        2**10 % 7,
        "no",
        Fraction(3, 8) * Fraction(2, 7),
        calendar.monthrange(2028, 2)[1],
        ", ".join(sorted(["pear", "apple", "fig"], key=len)),
    ]
    answers = [row["answer"] for row in load(PROMPTS[0])]
    first = [answer[0] if isinstance(answer, list) else answer for answer in answers]
    assert first == [str(value) for value in computed]


def test_readme_example_is_a_real_row():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    examples = [json.loads(body) for kind, body in FENCE.findall(readme) if kind == "json"]
    rows = [row for _, row in located(*FILES, *PREFERENCES, *TOOLS)]
    assert examples
    assert all(example in rows for example in examples)


def test_readme_names_the_vocabulary():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((DATA / "vocab" / "o200k_base.tiktoken").read_bytes()).hexdigest()
    assert digest in readme
