"""What a file holds decides how it is read; what cannot be read is named for what it is."""

import gzip
import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.sources import bounded_file, folders
from gptoss_tune.harmony.sources.files import read_file
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.harmony.sources.rows import parse_object
from gptoss_tune.recipe import DataSource

ROWS = [{"prompt": f"q{n}", "completion": "a\nb", "tools": [{"x": {"y": None}}]} for n in range(3)]
UTF_16 = "is UTF-16 or UTF-32 text; save it as UTF-8"
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS)


def read(path):
    found = list(read_file(path, path.name))
    return (
        [parse_object(raw, at) if isinstance(raw, bytes) else raw for at, raw in found],
        [at for at, _ in found],
    )


SHAPES = {
    "lines": LINES,
    "lines without an end": LINES.rstrip(),
    "lines after blank ones": "\n\n" + LINES,
    "an array": json.dumps(ROWS),
    "an array over lines": json.dumps(ROWS, indent=2),
    "rows over lines": PRETTY,
    "rows over lines with commas": PRETTY.replace("}\n{", "},\n{"),
    "wrapped": json.dumps({"data": ROWS}),
}


SUFFIXES = ["json", "jsonl", "ndjson", "json.gz", "jsonl.gz"]
# One line is one row of JSON Lines, whatever it wraps.
ALL = [(a, b) for a in SHAPES for b in SUFFIXES if a != "wrapped" or b in ("json", "json.gz")]


@pytest.mark.parametrize(("shape", "suffix"), ALL)
def test_json_is_read_by_its_content(shape, suffix, tmp_path):
    path = tmp_path / f"d.{suffix}"
    raw = b"\xef\xbb\xbf" + SHAPES[shape].encode()
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    rows, places = read(path)
    assert rows == ROWS
    assert places[0].startswith(f"{path.name}:") and len(set(places)) == 3


def test_a_single_row_is_a_row_under_either_name(tmp_path):
    for suffix in ("json", "jsonl"):
        path = tmp_path / f"d.{suffix}"
        path.write_text(json.dumps(ROWS[0], indent=2))
        assert read(path)[0] == ROWS[:1]


def test_lines_longer_than_what_is_looked_at(tmp_path):
    path = tmp_path / "d.json"
    rows = [{"prompt": "x" * (3 << 19)}, {"prompt": "y"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path) == (rows, ["d.json:1", "d.json:2"])
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(rows))
    assert read(path)[0] == rows


def test_a_broken_line_is_its_own_error_under_either_name(tmp_path):
    for suffix in ("json", "jsonl"):
        path = tmp_path / f"d.{suffix}"
        path.write_text('{"a": 1}\n{"a": 2,}\n{"a": 3}\n')
        found = list(read_file(path, path.name))
        assert [at for at, _ in found] == [f"d.{suffix}:{n}" for n in (1, 2, 3)]
    path.write_text('{"a": 1,}\n{"a": 2}\n')
    assert [raw for _, raw in read_file(path, "d.jsonl")][1] == b'{"a": 2}\n'


def test_rows_over_lines_name_their_line_and_a_mistake_in_one_ends_the_file(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{\n"a": 1\n}\n{\n"a": 2\n}\n3\n{"b": 1, "b": 2}')
    found = read_file(path, path.name)
    assert [next(found)[0] for _ in range(2)] == ["d.jsonl:1 (row 1)", "d.jsonl:4 (row 2)"]
    assert "the row is a number" in str(next(found)[1])
    with pytest.raises(DataError, match=r"d\.jsonl:8 \(row 4\): the key 'b' is there twice"):
        next(found)


def test_an_array_among_lines_is_a_bad_row(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('[1]\n{"a": 1}\n')
    assert [raw for _, raw in read_file(path, path.name)] == [b"[1]\n", b'{"a": 1}\n']


def tar():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    return sink.getvalue()


def parquet():
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), sink)
    return sink.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
OTHERS = {
    "d.jsonl": {
        "UTF-16 with a mark": (
            LINES.encode("utf-16"),
            "is UTF-16 or UTF-32 text; save it as UTF-8",
        ),
        "UTF-16": (LINES.encode("utf-16-le"), UTF_16),
        "UTF-16, big": (LINES.encode("utf-16-be"), UTF_16),
        "UTF-32": (LINES.encode("utf-32"), UTF_16),
        "CSV": (
            b"prompt,completion\na,b\n",
            "holds CSV (its first line is 'prompt,completion'), not .jsonl; name it .csv",
        ),
        "TSV": (b"prompt\tcompletion\na\tb\n", "holds CSV"),
        "Parquet": (parquet(), "holds a Parquet file, not .jsonl; name it .parquet"),
        "gzip": (gzip.compress(b"{}"), "holds compressed by gzip"),
        "a zip": (b"PK\x03\x04" + b"\1" * 99, "holds a zip archive"),
        "a page": (b"<!DOCTYPE HTML><html>", "holds a page of HTML"),
        "a pointer": (LFS, "holds a pointer of Git LFS and not the data, not .jsonl; run 'git lfs"),
        "a tar": (tar(), "holds a tar archive; unpack it and name the files in it"),
        "zeros": (bytes(9000), "begins with 4,096 zero bytes"),
        "an end of zeros": (LINES.encode() + bytes(9000), "ends in 4,096 zero bytes"),
    },
    "d.json": {"CSV": (b"a,b\n1,2\n", "holds CSV"), "UTF-16": (b"\xff\xfe[\0]\0", "is UTF-16")},
    "d.csv": {
        "lines": (LINES.encode(), "holds JSON, not .csv; name it .jsonl"),
        "UTF-16": ("prompt,completion".encode("utf-16"), "is UTF-16"),
    },
    "d.parquet": {
        "lines": (LINES.encode(), "holds JSON, not .parquet; name it .jsonl"),
        "a pointer": (LFS, "run 'git lfs pull' in its clone"),
        "gzip": (gzip.compress(b"x"), "add .gz to its name"),
    },
    "d.arrow": {"Parquet": (parquet(), "holds a Parquet file, not .arrow; name it .parquet")},
    "d.jsonl.gz": {
        "a zip": (b"PK\x03\x04" + b"\1" * 99, "holds a zip archive, not .gz"),
        "a tar": (gzip.compress(tar()), "d.jsonl.gz: holds a tar archive"),
        "a page": (b"<html>", "holds a page of HTML"),
        "Parquet": (gzip.compress(parquet()), "holds a Parquet file, not .jsonl"),
    },
    "d.tar.gz": {"a tar": (gzip.compress(tar()), "d.tar.gz: is an archive; unpack it")},
    "d.tgz": {"a tar": (gzip.compress(tar()), "d.tgz: is an archive; unpack it")},
    "d.zip": {"a zip": (b"PK\x03\x04", "d.zip: is an archive; unpack it")},
    "d.md.gz": {"text": (gzip.compress(b"x"), "the format of .md is not known; expected .jsonl")},
}


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, kinds in OTHERS.items() for k in kinds])
def test_other_content_is_named_for_what_it_is(name, kind, tmp_path):
    raw, message = OTHERS[name][kind]
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        open_source(DataSource.model_validate({"path": str(path)}))
        list(read_file(path, name))
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_rows_that_look_a_little_like_csv_stay_rows(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('x, y\n{"a": 1}\n')
    assert len(list(read_file(path, path.name))) == 2
    path.write_text('"a, b"\n')
    assert len(list(read_file(path, path.name))) == 1


# ---- files without an end, and files that grow


def test_pipes_devices_and_links_to_them_are_refused(tmp_path):
    os.mkfifo(tmp_path / "p.jsonl")
    (tmp_path / "link.jsonl").symlink_to("/dev/zero")
    for path in ("/dev/zero", str(tmp_path / "p.jsonl"), str(tmp_path / "link.jsonl")):
        with pytest.raises(DataError, match="is a pipe or a device; expected a data file"):
            find_files(path)
    with pytest.raises(DataError, match="is a pipe or a device"):
        find_files(str(tmp_path))
    with pytest.raises(DataError, match="is no regular file"):
        list(read_file(tmp_path / "p.jsonl", "p.jsonl"))


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.json", "d.parquet", "d.jsonl.gz"])
def test_a_sparse_terabyte_is_refused_at_once(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"{}") if name.endswith("gz") else LINES.encode())
    os.truncate(path, 1 << 40)
    with pytest.raises(DataError, match=r"the rest are holes|holds JSON"):
        open_source(DataSource.model_validate({"path": str(path)}))


def test_a_document_that_does_not_fit_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gptoss_tune.harmony.sources.documents.LARGEST_DOCUMENT", 100)
    path = tmp_path / "d.json"
    path.write_text(json.dumps(ROWS))
    with pytest.raises(DataError, match=r"d\.json: is one JSON document of over 100 bytes"):
        read(path)
    path.write_text(LINES)
    assert read(path)[0] == ROWS


def test_a_small_file_of_many_good_rows_is_measured_before_the_first_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_file, "SMALL", 1 << 20)
    line = (json.dumps({"prompt": "q " * 200, "completion": "a"}) + "\n").encode()
    for suffix in ("gz", "zst"):
        path = tmp_path / f"d.jsonl.{suffix}"
        if suffix == "gz":
            path.write_bytes(gzip.compress(line * 6000))
        else:
            with pa.CompressedOutputStream(str(path), "zstd") as file:
                file.write(line * 6000)
        with pytest.raises(DataError, match=r"unpack to more than .* uncompressed JSON Lines"):
            next(read_file(path, path.name))
    # The way that the message names.
    plain = tmp_path / "d.jsonl"
    plain.write_bytes(line * 6000)
    assert next(read_file(plain, plain.name))[0] == "d.jsonl:1"


@pytest.mark.parametrize("path", ["/**", "/**/*.jsonl", "/", "/proc", "//", "/usr/../**"])
def test_all_of_a_machine_is_no_source(path):
    with pytest.raises(DataError, match="all of this machine; name the folder"):
        find_files(path)


def test_a_pattern_or_folder_of_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MOST_FILES", 5)
    for number in range(8):
        (tmp_path / f"{number}.jsonl").write_text("{}")
    for path in (str(tmp_path), str(tmp_path / "**")):
        with pytest.raises(DataError, match="means more than 5 files"):
            find_files(path)
    monkeypatch.setattr(folders, "MOST_FILES", 100)
    monkeypatch.setattr(folders, "MOST_ENTRIES", 5)
    with pytest.raises(DataError, match="5 entries to look through"):
        find_files(str(tmp_path))
