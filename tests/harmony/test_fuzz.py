"""Whatever a row holds, reading and rendering it raises DataError or nothing."""

import contextlib
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.formats.labelled import read_labelled
from gptoss_tune.harmony.formats.preference import read_preference
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.sources.rows import parse_object
from gptoss_tune.harmony.vocabulary import ORDINARY_TOKENS, load_vocabulary

SETTINGS = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["<|end|>", "user", "assistant", "final", "f", "functions.f", "\ud800", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def maybe(strategy):
    """The strategy, and now and then anything at all."""
    return st.one_of(*[strategy] * 15, anything)


roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
names = st.sampled_from(["f", "g", "python", "browser.search", "functions.f"])
schemas = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": maybe(st.sampled_from(["object", "string", "array", "integer", "null"])),
            "enum": maybe(st.lists(st.text(max_size=3), max_size=2)),
            "default": anything,
            "description": maybe(st.text(max_size=5)),
            "nullable": maybe(st.booleans()),
            "title": anything,
            "examples": anything,
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {"type": maybe(st.sampled_from(["object", "array"]))},
        optional={
            "properties": maybe(st.dictionaries(st.text(max_size=4), inner, max_size=3)),
            "items": maybe(inner),
            "oneOf": maybe(st.lists(inner, max_size=3)),
            "anyOf": maybe(st.lists(inner, max_size=2)),
            "required": maybe(st.lists(st.text(max_size=4), max_size=2)),
        },
    ),
    max_leaves=5,
)
functions = st.fixed_dictionaries(
    {"name": maybe(names)},
    optional={"description": maybe(st.text(max_size=9)), "parameters": maybe(schemas)},
)
tools = st.lists(
    maybe(
        st.builds(lambda f: {"type": "function", "function": f}, functions)
        | functions
        | st.sampled_from([{"type": "python"}, {"type": "browser"}])
    ),
    max_size=2,
)
calls = st.fixed_dictionaries(
    {
        "function": maybe(
            st.fixed_dictionaries(
                {
                    "name": maybe(names),
                    "arguments": maybe(st.sampled_from(["{}", '{"a": 1}', "[]", "{", {"a": 1}])),
                }
            )
        )
    },
    optional={"id": maybe(st.sampled_from(["1", "2"]))},
)
contents = st.text(max_size=9) | st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": maybe(st.text(max_size=4))}), max_size=2
)
messages = st.fixed_dictionaries(
    {"role": maybe(roles), "content": maybe(contents)},
    optional={
        "name": maybe(names),
        "thinking": maybe(st.text(max_size=5)),
        "reasoning_content": maybe(st.text(max_size=5)),
        "tool_calls": maybe(st.lists(calls, max_size=2)),
        "function_call": anything,
        "tool_call_id": maybe(st.sampled_from(["1", "2"])),
        "weight": maybe(st.integers(0, 1)),
    },
)
natives = st.fixed_dictionaries(
    {
        "role": maybe(roles),
        "content": maybe(
            contents
            | st.lists(
                st.fixed_dictionaries(
                    {"type": st.sampled_from(["system_content", "developer_content"])},
                    optional={
                        "instructions": anything,
                        "tools": maybe(st.dictionaries(names, anything, max_size=2)),
                        "reasoning_effort": anything,
                        "channel_config": anything,
                    },
                ),
                max_size=1,
            )
        ),
        "channel": maybe(st.sampled_from(["analysis", "commentary", "final"])),
    },
    optional={
        "recipient": maybe(names),
        "content_type": maybe(st.sampled_from(["json", "code", "<|constrain|>json"])),
        "name": maybe(names),
        "author": anything,
    },
)
extras = {
    "tools": maybe(tools),
    "response_format": anything,
    "reasoning_effort": maybe(st.sampled_from(["low", "high"])),
    "weight": maybe(st.floats(0, 2)),
    "channel_weights": maybe(st.fixed_dictionaries({}, optional={"final": anything})),
    "builtin_tools": maybe(st.just(["python"])),
}
rows = st.one_of(
    st.fixed_dictionaries(
        {"messages": maybe(st.lists(maybe(messages), max_size=5))}, optional=extras
    ),
    st.fixed_dictionaries({"messages": st.lists(maybe(natives), max_size=5)}, optional=extras),
    st.fixed_dictionaries(
        {
            "conversations": st.lists(
                maybe(
                    st.fixed_dictionaries(
                        {
                            "from": maybe(
                                st.sampled_from(["human", "gpt", "function_call", "tool"])
                            ),
                            "value": maybe(st.text(max_size=5)),
                        }
                    )
                ),
                max_size=4,
            )
        },
        optional=extras,
    ),
    st.fixed_dictionaries(
        {"prompt": maybe(st.text(max_size=5)), "completion": maybe(st.text(max_size=5))},
        optional={**extras, "system": anything, "thinking": anything, "chosen": anything},
    ),
    st.dictionaries(st.text(max_size=5), anything, max_size=3),
)


@SETTINGS
@given(rows)
def test_reading_and_rendering_a_row_raise_nothing_but_data_errors(row):
    vocabulary = load_vocabulary()
    with contextlib.suppress(DataError):
        conversation = read_row(row, "row:1")
        for example in Renderer(vocabulary, RenderSettings()).render(conversation):
            specials = example.input_ids[example.input_ids >= ORDINARY_TOKENS]
            assert specials[0] == 200_006 and specials[-1] in (200_002, 200_012)
            vocabulary.encoding.decode(example.input_ids.tolist())


def valid_row():
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "f", "description": "F.", "parameters": {}}}
    return {
        "tools": [tool, {"type": "python"}],
        "reasoning_effort": "low",
        "weight": 1,
        "channel_weights": {"final": 2},
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "u"},
            {"role": "assistant", "thinking": "t", "content": "p", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "r"},
            {"role": "assistant", "content": "a", "weight": 1},
        ],
    }


def valid_native_row():
    tools = {"functions": {"name": "functions", "tools": [{"name": "f", "description": ""}]}}
    return {
        "messages": [
            {"role": "system", "content": [{"type": "system_content", "reasoning_effort": "Low"}]},
            {
                "role": "developer",
                "content": [{"type": "developer_content", "instructions": "i", "tools": tools}],
            },
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "channel": "commentary",
                "recipient": "functions.f",
                "content_type": "json",
                "content": "{}",
            },
            {"author": {"role": "tool", "name": "functions.f"}, "content": "r"},
            {"role": "assistant", "channel": "final", "content": "a"},
        ],
    }


def places(value, path=()):
    """Every path into a row, to a value or a key."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items if isinstance(value, (dict, list)) else ():
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))
        else:
            yield (*path, key)


@st.composite
def nearly_valid_rows(draw):
    """A row that can be trained on, with one thing replaced, removed or added."""
    row = draw(st.sampled_from([valid_row, valid_native_row]))()
    path = draw(st.sampled_from([path for path in places(row) if path]))
    holder = row
    for key in path[:-1]:
        holder = holder[key]
    change = draw(st.sampled_from(["replace", "remove", "add", "repeat"]))
    if change == "replace":
        holder[path[-1]] = draw(anything)
    elif change == "remove":
        del holder[path[-1]]
    elif change == "repeat" and isinstance(holder, list):
        holder.insert(path[-1], holder[path[-1]])
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=4))] = draw(anything)
    return row


@SETTINGS
@given(nearly_valid_rows())
def test_one_change_in_a_good_row_raises_nothing_but_data_errors(row):
    with contextlib.suppress(DataError):
        Renderer(load_vocabulary(), RenderSettings()).render(read_row(row, "row:1"))


def test_the_rows_that_are_changed_can_be_trained_on():
    renderer = Renderer(load_vocabulary(), RenderSettings())
    assert renderer.render(read_row(valid_row(), "row:1"))
    assert renderer.render(read_row(valid_native_row(), "row:1"))


@SETTINGS
@given(schemas)
def test_any_schema_of_a_tool_raises_nothing_but_data_errors(schema):
    row = valid_row()
    row["tools"][0]["function"]["parameters"] = schema
    with contextlib.suppress(DataError):
        Renderer(load_vocabulary(), RenderSettings()).render(read_row(row, "row:1"))


@SETTINGS
@given(
    st.dictionaries(
        st.sampled_from(
            ["prompt", "chosen", "rejected", "messages", "tools", "system", "completion", "label"]
        ),
        anything,
    )
)
def test_reading_pairs_and_prompts_raises_nothing_but_data_errors(row):
    for read in (read_preference, read_labelled, read_prompt):
        with contextlib.suppress(DataError):
            read(row, "row:1")


CALLS = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
turns = st.sampled_from(
    [
        {"role": "system", "content": "s"},
        *({"role": "user", "content": text} for text in ("x", "x", "y")),
        *({"role": "assistant", "content": text} for text in ("a", "ab", "<think>t</think>a", "")),
        {"role": "assistant", "content": "a", "thinking": "t"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "assistant", "content": None, "thinking": "t", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        {"from": "human", "value": "x"},
        {"from": "gpt", "value": "a"},
        {"role": "assistant", "channel": "analysis", "content": "t"},
        {"role": "assistant", "channel": "final", "content": "a"},
    ]
)
spoken = st.sampled_from(["", "\n\nHuman: x\n\nAssistant: a\n\nHuman: y\n\nAssistant: "])
asked = {"role": "user", "content": "x"}
asked, answered = {"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}
histories = st.lists(turns, max_size=2).map(lambda before: [*before, asked])
prompts = st.sampled_from(["x", "\n\nHuman: x\n\nAssistant:", asked]) | histories
answers = (
    st.builds(lambda before, text: before + text, spoken, st.sampled_from(["a", "ab", "b"]))
    | turns
    | st.lists(turns, min_size=1, max_size=3)
    | st.lists(turns, max_size=2).map(lambda before: [*before, answered])
)
wholes = st.lists(turns, max_size=3).map(lambda inner: [asked, *inner, answered])
beside_pairs = {
    "tools": st.just([{"name": "f"}]),
    "system": st.text(max_size=3),
    "thinking": st.text(max_size=3),
    "chosen_thinking": st.text(max_size=3),
    "weight": st.floats(0, 2),
    "label": st.booleans(),
}


def pairs_of(first, second, answers, **prompt):
    """Rows of a shape of pairs, now and then with anything at all in one column."""
    shape = {first: answers, second: answers, **prompt}
    rows = st.fixed_dictionaries(shape, optional=beside_pairs)
    odd = st.tuples(rows, st.sampled_from([*shape, *beside_pairs]), anything)
    return st.one_of(rows, rows, rows, odd.map(lambda row: {**row[0], row[1]: row[2]}))


pairs = st.one_of(
    pairs_of("chosen", "rejected", answers, prompt=prompts),
    pairs_of("chosen", "rejected", answers | wholes, prompt=prompts, messages=histories),
    pairs_of("chosen", "rejected", answers, conversations=histories),
    pairs_of("chosen", "rejected", wholes),
    pairs_of(
        *("preferred_output", "non_preferred_output", answers),
        input=st.fixed_dictionaries({"messages": prompts}, optional={"tools": tools}),
    ),
    pairs_of(
        *("response1", "response2", answers),
        context=prompts,
        overall_preference=st.integers(-3, 3),
    ),
)


@SETTINGS
@given(pairs)
def test_a_pair_that_is_read_shares_a_prompt_that_is_not_trained(row):
    with contextlib.suppress(DataError):
        pair = read_preference(row, "row:1")
        both = (pair.chosen.messages, pair.rejected.messages)
        prompt, same = (messages[: pair.prompt_length] for messages in both)
        assert prompt == same and prompt and not any(message.weight for message in prompt)
        assert not prompt[-1].is_assistant
        for messages in both:
            assert messages[pair.prompt_length].is_assistant
            assert {message.weight for message in messages} <= {0.0, 1.0}
        assert not (pair.equal and (pair.differs_in_length_only or pair.lost_analysis))


@SETTINGS
@given(
    pairs_of("prompt", "completion", prompts | answers | wholes)
    | st.fixed_dictionaries({"messages": wholes}, optional=beside_pairs)
)
def test_a_labelled_answer_that_is_read_follows_a_prompt_that_is_not_trained(row):
    with contextlib.suppress(DataError):
        read = read_labelled(row, "row:1")
        prompt = read.conversation.messages[: read.prompt_length]
        assert prompt and not any(message.weight for message in prompt)
        assert read.conversation.messages[read.prompt_length].is_assistant


@SETTINGS
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_parsing_a_line_raises_nothing_but_data_errors(line):
    with contextlib.suppress(DataError):
        assert isinstance(parse_object(line, "row:1"), dict)


@SETTINGS
@given(anything)
def test_parsing_gives_back_what_json_wrote(value):
    line = json.dumps({"row": value}, allow_nan=True).encode()
    with contextlib.suppress(DataError):
        parsed = parse_object(line, "row:1")
        assert json.dumps(parsed) == json.dumps({"row": value})
