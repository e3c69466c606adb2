"""From files to the dataset a trainer reads: splitting, mixing, packing, caching, processes."""

import gzip
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.harmony.dataset import cache, render_rows
from gptoss_tune.harmony.dataset import load as load_module
from gptoss_tune.harmony.dataset.load import load_dataset, render_source
from gptoss_tune.harmony.dataset.selection import pack_selection, packing_efficiency, select
from gptoss_tune.recipe import DataSection


def chat(number, words=3, **fields):
    question = f"Question {number}: " + " ".join(f"w{number}" for _ in range(words))
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"Answer {number}", "thinking": f"Thought {number}"},
        ],
        **fields,
    }


@pytest.fixture
def load(vocabulary):
    def run(train, *, split="train", seed=0, **settings):
        data = DataSection.model_validate({"train": train, **settings})
        return load_dataset(data, split=split, vocabulary=vocabulary, seed=seed)

    return run


def texts(rows, vocabulary):
    return [vocabulary.decode(row["input_ids"]) for row in rows]


def answers(rows, vocabulary):
    found = []
    for text in texts(rows, vocabulary):
        found += [part.split("<|return|>")[0] for part in text.split("final<|message|>")[1:]]
    return found


def test_the_columns_of_the_seam(load, write_jsonl):
    rows = load(write_jsonl([chat(1), chat(2)]))
    assert rows.column_names == ["input_ids", "loss_weights", "channels", "length", "sources"]
    kinds = {name: str(feature) for name, feature in rows.features.items()}
    assert kinds == {
        "input_ids": "List(Value('int32'))",
        "loss_weights": "List(Value('float32'))",
        "channels": "List(Value('int8'))",
        "length": "Value('int32')",
        "sources": "List(Value('int16'))",
    }
    for row in rows:
        lengths = {len(row[name]) for name in ("input_ids", "loss_weights", "channels")}
        assert lengths == {row["length"]}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "jsonl.zst"])
def test_every_file_format_gives_the_same_rows(suffix, load, tmp_path, vocabulary):
    rows = [{"prompt": f"Wie gehts {n}? ü", "completion": f"Gut {n}."} for n in range(5)]
    path = tmp_path / f"rows.{suffix}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if suffix == "jsonl":
        path.write_bytes(lines)
    elif suffix == "jsonl.gz":
        # Two members, as `cat a.gz b.gz` writes them.
        half = lines.index(b"\n") + 1
        path.write_bytes(gzip.compress(lines[:half]) + gzip.compress(lines[half:]))
    elif suffix == "jsonl.zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(lines)
    elif suffix == "json":
        path.write_text(json.dumps({"data": rows}))
    elif suffix == "csv":
        cells = "".join(f'"{row["prompt"]}","{row["completion"]}"\n' for row in rows)
        path.write_text("prompt,completion\n" + cells, encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    loaded = load(str(path))
    assert answers(loaded, vocabulary) == [f"Gut {n}." for n in range(5)]
    assert all("Wie gehts" in text and "ü" in text for text in texts(loaded, vocabulary))


def test_folders_patterns_and_lists_are_read_in_order(load, write_jsonl, tmp_path, vocabulary):
    for number in (2, 1, 3):
        write_jsonl([chat(number)], f"part{number}.jsonl")
    expected = [f"Answer {number}" for number in (1, 2, 3)]
    assert answers(load(str(tmp_path)), vocabulary) == expected
    assert answers(load(str(tmp_path / "part*.jsonl")), vocabulary) == expected
    files = [str(tmp_path / f"part{number}.jsonl") for number in (3, 1)]
    assert answers(load(files), vocabulary) == ["Answer 3", "Answer 1"]


def test_limit_and_templates(load, tmp_path, vocabulary):
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps({"q": f"q{n}", "a": f"a{n}"}) + "\n" for n in range(9)))
    columns = {"prompt": "Q: {{ q }}", "completion": "{{ a | upper }}"}
    rows = load([{"path": str(path), "limit": 2, "columns": columns}])
    assert answers(rows, vocabulary) == ["A0", "A1"]
    with pytest.raises(DataError, match=r"qa\.jsonl: the template of 'prompt' fails .*'q', 'a'"):
        load([{"path": str(path), "columns": {"prompt": "{{ question }}"}}])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_on_the_hub_is_read_by_name_split_and_revision(
    streaming, load, vocabulary, monkeypatch
):
    """The library's download stands aside; what it is asked for and what it gives are real."""
    asked = []
    rows = [{"tools": None, **chat(1)}, {"tools": [{"name": "f", "parameters": None}], **chat(2)}]

    def load_from_hub(path, name, **settings):
        asked.append((path, name, settings))
        found = datasets.Dataset.from_list(rows)
        return found.to_iterable_dataset() if settings["streaming"] else found

    monkeypatch.setattr(datasets, "load_dataset", load_from_hub)
    source = {"path": "somebody/chats", "name": "en", "split": "test", "revision": "a" * 40}
    loaded = load([{**source, "streaming": streaming}])
    assert answers(loaded, vocabulary) == ["Answer 1", "Answer 2"]
    settings = {"split": "test", "revision": "a" * 40, "streaming": streaming}
    assert asked == [("somebody/chats", "en", settings)]
    assert "type f = () => any" in texts(loaded, vocabulary)[1]
    with pytest.raises(DataError, match=r"somebody/chats: no sample for train"):
        load([{**source, "streaming": streaming}], max_length=8)


def test_packed_rows_hold_every_document_whole(load, write_jsonl, vocabulary):
    rows = [chat(number, words=number % 40) for number in range(120)]
    path = write_jsonl(rows)
    plain = load(path, max_length=512)
    packed = load(path, max_length=512, packing=True)
    assert packed.column_names == [
        "input_ids",
        "loss_weights",
        "channels",
        "position_ids",
        "length",
        "sources",
    ]
    documents = []
    for row in packed:
        assert row["length"] == len(row["input_ids"]) <= 512
        positions = np.array(row["position_ids"])
        starts = np.flatnonzero(positions == 0)
        for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
            assert positions[start:end].tolist() == list(range(end - start))
            assert row["loss_weights"][start] == 0  # no document predicts the next one's start
            documents.append(
                tuple(row[name][start:end] for name in ("input_ids", "loss_weights", "channels"))
            )
    expected = [(row["input_ids"], row["loss_weights"], row["channels"]) for row in plain]
    assert sorted(map(str, documents)) == sorted(map(str, expected))


def test_the_seed_decides_the_packed_rows(load, write_jsonl):
    path = write_jsonl([chat(number, words=number % 40) for number in range(60)])
    first = load(path, packing=True, max_length=512, seed=1)["input_ids"][:]
    assert load(path, packing=True, max_length=512, seed=1)["input_ids"][:] == first
    assert load(path, packing=True, max_length=512, seed=2)["input_ids"][:] != first


def test_the_efficiency_that_is_reported_is_that_of_the_rows(write_jsonl, vocabulary):
    path = write_jsonl([chat(number, words=number % 40) for number in range(60)])
    data = DataSection.model_validate({"train": path, "packing": True, "max_length": 512})
    rendered = [render_source(data.train[0], data, vocabulary)]
    selection = select(rendered, data, split="train", seed=0)
    rows = load_dataset(data, split="train", vocabulary=vocabulary, seed=0)
    reported = packing_efficiency(selection, pack_selection(selection, data, seed=0), data)
    assert reported == sum(rows["length"][:]) / (len(rows) * 512)


def test_a_held_out_share_is_drawn_by_the_seed_and_keeps_equal_rows_together(
    load, write_jsonl, vocabulary
):
    rows = [chat(number) for number in range(40)] + [chat(number) for number in range(40)]
    path = write_jsonl(rows)

    def split(seed):
        return [
            answers(load(path, split=name, eval_fraction=0.25, seed=seed), vocabulary)
            for name in ("train", "eval")
        ]

    train, held_out = split(0)
    assert len(set(held_out)) == 10 and len(held_out) == 20
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == 80
    assert split(0) == [train, held_out]
    assert split(1) != [train, held_out]


def test_a_held_out_file_is_read_as_it_is(load, write_jsonl, vocabulary):
    path, other = write_jsonl([chat(1)]), write_jsonl([chat(2)], "eval.jsonl")
    assert answers(load(path, split="eval", eval=other), vocabulary) == ["Answer 2"]
    with pytest.raises(DataError, match=r"set data\.eval or data\.eval_fraction"):
        load(path, split="eval")


def test_weights_mix_sources(load, write_jsonl, vocabulary):
    one = write_jsonl([chat(number) for number in range(10)], "one.jsonl")
    two = write_jsonl([chat(number) for number in range(100, 110)], "two.jsonl")
    mixed = load([{"path": one, "weight": 2.5}, {"path": two, "weight": 0.3}], seed=4)
    found = answers(mixed, vocabulary)
    counts = {answer: found.count(answer) for answer in found}
    of_one = [counts[f"Answer {number}"] for number in range(10)]
    assert sorted(of_one) == [2] * 5 + [3] * 5
    assert sum(int(answer.split()[1]) >= 100 for answer in found) == 3
    again = load([{"path": one, "weight": 2.5}, {"path": two, "weight": 0.3}], seed=4)
    assert answers(again, vocabulary) == found


def test_a_curriculum_orders_rows_by_effort(load, write_jsonl, vocabulary):
    efforts = ["high", "low", "medium", "low"] * 5
    rows = [chat(n, reasoning_effort=effort) for n, effort in enumerate(efforts)]
    path = write_jsonl(rows)
    loaded = load(path, curriculum="reasoning_effort")
    assert loaded["phase"][:] == [0] * 10 + [1] * 5 + [2] * 5
    order = [text.split("Reasoning: ")[1].split("\n")[0] for text in texts(loaded, vocabulary)]
    assert order == ["low"] * 10 + ["medium"] * 5 + ["high"] * 5
    packed = load(path, curriculum="reasoning_effort", packing=True, max_length=256)
    assert packed["phase"][:] == sorted(packed["phase"][:])
    for text, phase in zip(texts(packed, vocabulary), packed["phase"][:], strict=True):
        assert text.count("Reasoning: ") == text.count(
            f"Reasoning: {('low', 'medium', 'high')[phase]}"
        )


def test_too_long_samples(load, write_jsonl):
    path = write_jsonl([chat(1), chat(2, words=400), chat(3)])
    assert len(load(path, max_length=256)) == 2
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a sample has .* tokens, over data\.max_l"):
        load(path, max_length=256, too_long="error")


def test_truncation_never_ends_inside_a_header(load, write_jsonl, vocabulary):
    path = write_jsonl([chat(1)])
    (whole,) = load(path)
    headers = {"<|start|>", "assistant", "<|channel|>", "analysis", "final", "<|message|>"}
    for length in range(whole["length"] - 1, 8, -1):
        settings = {"max_length": length, "too_long": "truncate"}
        try:
            (row,) = load(path, **settings)
        except DataError as error:
            assert "no sample for train" in str(error)
            assert length <= whole["loss_weights"].index(1.0) + 3
            break
        assert row["input_ids"] == whole["input_ids"][: row["length"]]
        assert row["length"] <= length
        assert vocabulary.decode(row["input_ids"][-1:]) not in headers
        assert any(row["loss_weights"])


def test_nothing_to_train_is_skipped_or_an_error(load, write_jsonl):
    path = write_jsonl([chat(1), chat(2, weight=0)])
    assert len(load(path)) == 1
    with pytest.raises(DataError, match=r"rows\.jsonl:2: every token has loss weight 0"):
        load(path, nothing_to_train="error")


def test_a_second_load_renders_nothing(load, write_jsonl, monkeypatch):
    path = write_jsonl([chat(1), chat(2)])
    first = load(path)["input_ids"][:]

    def refuse(*_):
        raise AssertionError("rendered again")

    monkeypatch.setattr(load_module, "render_rows", refuse)
    assert load(path)["input_ids"][:] == first
    for changed in ({"date": "2024-01-01"}, {"max_length": 512}, {"turns": "last"}):
        with pytest.raises(AssertionError, match="rendered again"):
            load(path, **changed)
    write_jsonl([chat(1), chat(3)])  # other content under the same name
    with pytest.raises(AssertionError, match="rendered again"):
        load(path)


def test_a_rendering_that_fails_leaves_nothing_behind(load, write_jsonl, tmp_path, monkeypatch):
    path = write_jsonl([chat(1)])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(render_rows.RowRenderer, "columns", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(path)
    left = [entry for entry in cache.cache_folder().iterdir() if entry.suffix != ".lock"]
    assert left == []


def test_a_cache_that_cannot_be_written_is_an_error_of_the_machine(load, write_jsonl, monkeypatch):
    path = write_jsonl([chat(1)])
    blocker = write_jsonl([], "not-a-folder")
    monkeypatch.setenv("XDG_CACHE_HOME", blocker)
    with pytest.raises(MachineError, match="point XDG_CACHE_HOME to another disk"):
        load(path)


def test_several_processes_give_the_same_dataset_and_report(write_jsonl, vocabulary, monkeypatch):
    rows = [chat(number, words=number % 50) for number in range(300)]
    rows[7] = {"messages": []}
    rows[250] = {"oops": 1}
    path = write_jsonl(rows)
    found = []
    for processes in (1, 2):
        monkeypatch.setenv("XDG_CACHE_HOME", f"{path}-{processes}")
        monkeypatch.setattr(render_rows, "CHUNK_ROWS", 64)
        data = DataSection.model_validate(
            {"train": path, "on_error": "skip", "dataset_num_proc": processes}
        )
        rendered = render_source(data.train[0], data, vocabulary)
        loaded = load_dataset(data, split="train", vocabulary=vocabulary)
        found.append((loaded["input_ids"][:], rendered.report.to_json(), rendered.samples.sources))
    assert found[0] == found[1]
    assert found[0][1]["counts"]["rejected"] == 2
    assert [line.split(": ")[0] for line in found[0][1]["rejected"]] == [f"{path}:8", f"{path}:251"]


@pytest.mark.slow
def test_processes_that_start_together_render_once(write_jsonl, tmp_path):
    path = write_jsonl([chat(number) for number in range(20)])
    code = (
        "import sys\n"
        "from gptoss_tune.harmony.dataset import render_rows\n"
        "from gptoss_tune.harmony.dataset.load import load_dataset\n"
        "from gptoss_tune.harmony.vocabulary import load_vocabulary\n"
        "from gptoss_tune.recipe import DataSection\n"
        "columns = render_rows.RowRenderer.columns\n"
        "def counted(self, chunk):\n"
        "    print('rendered', flush=True)\n"
        "    return columns(self, chunk)\n"
        "render_rows.RowRenderer.columns = counted\n"
        "data = DataSection.model_validate({'train': sys.argv[1]})\n"
        "load_dataset(data, split='train', vocabulary=load_vocabulary())\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "shared")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, path], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(outputs) == ["", "rendered\n"]


def test_the_report_counts_what_happened(write_jsonl, vocabulary):
    two_turns = {
        "messages": [
            *chat(1)["messages"],
            {"role": "user", "content": "<|end|> and <|start|>"},
            {"role": "assistant", "content": "ok", "thinking": "x"},
        ]
    }
    shared = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]
    }
    path = write_jsonl([two_turns, shared, chat(9, words=500), chat(8, weight=0), {}])
    data = DataSection.model_validate({"train": path, "max_length": 512, "on_error": "skip"})
    report = render_source(data.train[0], data, vocabulary).report
    counts = report.counts
    assert counts["rows"] == 5 and counts["rejected"] == 1 and counts["samples"] == 3
    assert counts["too_long"] == 1 and report.too_long == [f"{path}:3"]
    assert counts["nothing_to_train"] == 1
    assert counts["shared_turns"] == 1
    assert counts["special_text"] == 2 and report.special_text == [f"{path}:1"]
    assert counts["repeated_tokens"] > 60
    assert sum(report.channels.values()) == counts["trained_tokens"]
    assert report.formats == {"chat": 4} and report.efforts["medium"] == 3
