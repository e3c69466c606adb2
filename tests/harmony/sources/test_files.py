"""Bad files and lines: one message each, with file, line, reason and what to do."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptoss_tune.errors import DataError, HubError, RecipeError
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.sources.files import read_file
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.recipe import DataSection, DataSource

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LINE = (json.dumps(GOOD) + "\n").encode()


def rows_of(path, name=None):
    return list(read_file(path, name or path.name))


def load(path, vocabulary, **settings):
    data = DataSection.model_validate({"train": str(path), **settings})
    return load_dataset(data, split="train", vocabulary=vocabulary)


def message_of(path, vocabulary, **settings):
    with pytest.raises(DataError) as caught:
        load(path, vocabulary, **settings)
    return str(caught.value)


def test_broken_json_in_line_17_of_a_gz(tmp_path, vocabulary):
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(LINE * 16 + b'{"messages": [}\n' + LINE))
    message = message_of(path, vocabulary)
    assert message == (
        f"{path}:17: column 15 is not JSON (Expecting value); expected one whole JSON value"
    )


def test_a_line_that_ends_too_early_is_named_with_its_column(tmp_path, vocabulary):
    path = tmp_path / "d.jsonl"
    path.write_bytes(LINE + b'{"messages": [\r\n' + LINE)
    assert f"{path}:2: column 15 is not JSON" in message_of(path, vocabulary)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".json.gz", ".parquet.gz"])
def test_a_cut_off_compressed_file(suffix, tmp_path, vocabulary):
    path = tmp_path / f"d{suffix}"
    raw = json.dumps([GOOD] * 400).encode() if ".json." in suffix else LINE * 400
    if suffix.endswith(".zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(raw)
    else:
        path.write_bytes(gzip.compress(raw))
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in message_of(path, vocabulary)


def test_not_a_gz_at_all(tmp_path, vocabulary):
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(LINE)
    assert "cannot be read (Not a gzipped file" in message_of(path, vocabulary)


BAD_LINES = {
    b'{"messages": []}': "messages is an empty list; a row needs at least one question",
    b'{"messages": 3}': "messages is 3; expected a list",
    b"[1]": "the row is a list; expected an object",
    b"null": "the row is null; expected an object",
    b'{"messages": [], "messages": []}': "the key 'messages' is there twice",
    b'{"messages": [{"role": "user", "role": "user"}]}': "the key 'role' is there twice",
    b'{"messages": [NaN]}': "NaN is not JSON",
    b'{"a": "\xff"}': "byte 8 is not UTF-8 (0xff)",
    b'{"messages": [3]}': "messages[0] is a number; expected an object",
    b'{"messages": [{"role": "boss", "content": "x"}]}': "messages[0].role is 'boss'; expected one",
    b'{"messages": [{"role": "user", "content": null}]}': "messages[0].content is null",
    b'{"messages": [{"role": "user", "content": {"a": 1}}]}': "content is an object; expected text",
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': (
        "messages[0].content[0] is a part of type 'image_url'; gpt-oss reads text only"
    ),
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}': (
        "messages[0].content holds half a surrogate pair at character 0 (\\ud800)"
    ),
    b"{" * 3000: "not JSON",
    b'{"a":' * 100_000: "nested too deeply to read",
    b'{"messages": ' + b"9" * 5000 + b"}": "Exceeds the limit",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:40].decode("latin-1"))
def test_a_bad_line_is_named_with_its_reason(line, tmp_path, vocabulary):
    path = tmp_path / "d.jsonl"
    path.write_bytes(LINE + b"\n" + line + b"\n" + LINE)
    message = message_of(path, vocabulary)
    assert message.startswith(f"{path}:3: ")
    assert BAD_LINES[line] in message
    assert len(message) < 400


def test_a_bom_and_windows_line_ends_are_fine(tmp_path, vocabulary):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + LINE.replace(b"\n", b"\r\n") * 3 + b"  \r\n")
    assert len(load(path, vocabulary)) == 3


def test_a_path_with_spaces_and_other_scripts_is_fine(tmp_path, vocabulary):
    folder = tmp_path / "my data ü 数据"
    folder.mkdir()
    path = folder / "a file.jsonl"
    path.write_bytes(LINE)
    assert len(load(path, vocabulary)) == 1


@pytest.mark.slow
def test_ten_megabytes_of_text(tmp_path, vocabulary):
    path = tmp_path / "d.jsonl"
    text = "hello world " * 900_000
    asked = {"messages": [{"role": "user", "content": text}, GOOD["messages"][1]]}
    told = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": text}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (asked, told, GOOD)))
    assert len(load(path, vocabulary)) == 1
    truncated = load(path, vocabulary, too_long="truncate", max_length=128)
    # The question alone fills the row, so nothing of its answer would be trained.
    assert truncated["length"][:] == [128, 73]
    message = message_of(path, vocabulary, too_long="error", max_length=128)
    assert f"{path}: a sample has 1,800,0" in message and "over data.max_length 128" in message
    assert message.endswith(": 2 rows (lines 1, 2)")


@pytest.mark.parametrize("run", [" ", "\n", " \n\t", "\u2003"])
def test_a_run_of_white_space_that_overflows_the_tokenizer_is_refused(run, tmp_path, vocabulary):
    path = tmp_path / "d.jsonl"
    text = "a" + run * 400_000 + "b"
    row = {"messages": [{"role": "user", "content": text}, GOOD["messages"][1]]}
    path.write_text(json.dumps(row) + "\n")
    message = message_of(path, vocabulary, max_length=131_072)
    assert message.startswith(f"{path}:1: a text holds over 100,000 white-space characters")


@pytest.mark.parametrize(
    "text", ["a" * 300_000, "ab1!" * 80_000, "\u6f22" * 200_000, "!" * 300_000]
)
def test_text_without_spaces_is_tokenised_and_counted(text, tmp_path, vocabulary):
    """openai-harmony's own encoder takes minutes for these: its merging is quadratic."""
    path = tmp_path / "d.jsonl"
    row = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": text}]}
    path.write_text(json.dumps(row) + "\n")
    (length,) = load(path, vocabulary, max_length=131_072, too_long="truncate")["length"][:]
    assert length == min(131_072, 72 + len(vocabulary.encode(text)))
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_an_empty_file_and_a_file_of_blank_lines(tmp_path, vocabulary):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"")
    assert message_of(path, vocabulary) == f"{path}: the file is empty; expected at least one row"
    path.write_bytes(b"\n  \n")
    assert "no sample for train (0 rows read" in message_of(path, vocabulary)


def test_a_missing_file_is_named_with_its_neighbour(tmp_path, vocabulary):
    (tmp_path / "train.jsonl").write_bytes(LINE)
    message = message_of(tmp_path / "trian.jsonl", vocabulary)
    assert "no such file" in message and f"did you mean '{tmp_path / 'train.jsonl'}'" in message


def test_a_folder_and_a_pattern_without_data(tmp_path, vocabulary):
    assert "the folder holds no .jsonl" in message_of(tmp_path, vocabulary)
    assert "no file matches" in message_of(tmp_path / "*.jsonl", vocabulary)
    (tmp_path / "a.md").write_text("x")
    assert "the format of .md is not known" in message_of(tmp_path / "a.md", vocabulary)


def test_a_missing_hub_dataset(vocabulary, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = DataSection.model_validate({"train": "nobody/nothing-here-at-all"})
    with pytest.raises(
        HubError, match=r"nobody/nothing-here-at-all: no such file here, and the Hub"
    ):
        load_dataset(data, split="train", vocabulary=vocabulary)


def test_streaming_needs_a_commit():
    source = DataSource.model_validate({"path": "a/b", "streaming": True, "revision": "main"})
    with pytest.raises(RecipeError, match="the revision must be a whole commit"):
        open_source(source)


def test_a_parquet_file_with_the_wrong_columns(tmp_path, vocabulary):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"asked": ["a"], "said": ["b"]}), path)
    message = message_of(path, vocabulary)
    assert message.startswith(f"{path}:1: no known columns (got 'asked', 'said')")


def test_a_file_that_is_no_parquet(tmp_path, vocabulary):
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1 and more")
    assert "not a whole Parquet file" in message_of(path, vocabulary)


def test_json_documents_name_the_line_of_a_row(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('\ufeff{"[data":\n[\n  {"a": 1},\n\n  3, {"b":\n "]"}]}', encoding="utf-8")
    located = rows_of(path)
    assert [at for at, _ in located] == ["d.json:3 (row 1)", "d.json:5 (row 2)", "d.json:5 (row 3)"]
    assert located[0][1] == {"a": 1} and located[2][1] == {"b": "]"}
    assert "the row is a number" in str(located[1][1])
    path.write_text('[\n{"a": 1}\n,{"a": 1,,}]')
    with pytest.raises(DataError, match=r"d\.json:1: line 3 is not JSON"):
        rows_of(path)
    path.write_text(json.dumps(GOOD))
    assert rows_of(path) == [("d.json:1 (row 1)", GOOD)]
    path.write_text("[]")
    assert rows_of(path) == []


def test_csv_names_lines_and_cells(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(
        '\ufeffprompt,completion,weight\r\n"a, ""b""\r\nc",d,0.5\r\nx,y\r\nx,y,1,2\r\np,q,\r\n',
        encoding="utf-8",
        newline="",
    )
    located = rows_of(path)
    assert located[0] == ("d.csv:2", {"prompt": 'a, "b"\r\nc', "completion": "d", "weight": 0.5})
    assert located[1][0] == "d.csv:4" and "fewer cells than the header" in str(located[1][1])
    assert located[2][0] == "d.csv:5" and "more cells than the header" in str(located[2][1])
    assert located[3] == ("d.csv:6", {"prompt": "p", "completion": "q"})
    path.write_bytes(b"prompt,completion\na,\xff\n")
    with pytest.raises(DataError, match=r"d\.csv:\d: not UTF-8 \(0xff\)"):
        rows_of(path)
    path.write_text('prompt,completion\na,"b\n')
    with pytest.raises(DataError, match=r"not CSV"):
        rows_of(path)


def test_csv_cells_hold_json_and_ten_megabytes(tmp_path):
    path = tmp_path / "d.csv"
    messages = json.dumps(GOOD["messages"]).replace('"', '""')
    path.write_text(f'messages,note\n"{messages}",{"x" * 10_000_000}\n"[",y\n')
    located = rows_of(path)
    assert located[0][1]["messages"] == GOOD["messages"]
    assert "d.csv:3 (messages): column 2 is not JSON" in str(located[1][1])


def test_columns_of_structs_lose_their_nulls(tmp_path):
    path = tmp_path / "d.parquet"
    tools = [
        [{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}],
        [{"name": "g", "parameters": {"properties": {"b": {"type": "string"}}}}],
    ]
    messages = [GOOD["messages"], GOOD["messages"]]
    pq.write_table(pa.table({"messages": messages, "tools": tools}), path)
    assert [row["tools"] for _, row in rows_of(path)] == tools


def test_a_folder_is_read_in_the_order_of_its_names_without_hidden_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz", "sub/c.json", ".hidden/d.jsonl", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    found = find_files(str(tmp_path))
    assert [name for _, name in found] == [
        str(tmp_path / name) for name in ("a.jsonl.gz", "b.jsonl", "sub/c.json")
    ]
    assert [path.name for path, _ in find_files(str(tmp_path / "**" / "*.json*"))] == [
        "a.jsonl.gz",
        "b.jsonl",
        "c.json",
    ]


def test_every_rejected_row_is_named_in_one_pass(tmp_path, vocabulary):
    path = tmp_path / "d.jsonl"
    path.write_bytes(LINE + b"{}\n" + LINE + b"[]\n" + b"x\n")
    message = message_of(path, vocabulary)
    assert message.splitlines()[0] == (
        "3 rows cannot be trained on; fix them, or set data.on_error to skip:"
    )
    assert [line.split(": ")[0].strip() for line in message.splitlines()[1:]] == [
        f"{path}:{line}" for line in (2, 4, 5)
    ]
    assert len(load(path, vocabulary, on_error="skip")) == 2
    message = message_of(path, vocabulary, on_error="skip", max_errors=2)
    assert "over data.max_errors 2" in message


def test_reading_stops_after_a_hundred_bad_rows(tmp_path, vocabulary):
    path = tmp_path / "d.jsonl"
    columns = [json.dumps(dict.fromkeys("abcdefgh"[:n], 1)).encode() for n in range(1, 9)]
    kinds = [*columns, *(line for line in BAD_LINES if len(line) < 100)]
    path.write_bytes(b"".join(line + b"\n" for line in 250 * kinds) + LINE)
    message = message_of(path, vocabulary)
    assert "reading" in message and "stopped here" in message
    assert message.count("\n") == 21 and "... and" in message
    path.write_bytes(b"{}\n" * 5_000 + LINE)  # one mistake in every row is one line
    assert message_of(path, vocabulary).count("\n") == 1
