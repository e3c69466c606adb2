"""Recipes and datasets made to deceive: nothing runs, nothing grows without end, all is named."""

import gzip
import json
import os

import pyarrow as pa
import pytest
from pyarrow import parquet

RECIPES = {
    "a Python object": ("!!python/object/apply:os.mkdir ['canary']", r":1:1: got the tag"),
    "a Python name": ("model: !!python/name:os.system", "got the tag"),
    "a tag on a key": ("!!python/tuple model: x", "a key with an anchor or a tag|got the tag"),
    "an alias bomb": (
        "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]",
        r"got the anchor '&a'.*[\s\S]*got the alias '\*a'",
    ),
    "a merge key": ("model: {<<: {name_or_path: x}}", "merge keys are not read"),
    "the same key twice": ("model: {}\nmodel: {}", "the key a second time"),
    "nested": ("[" * 5000, "more than 12 levels"),
    "a number of 400 digits": (
        "train: {max_steps: 1" + "0" * 400 + "}",
        "train.max_steps: got '1000",
    ),
    "two documents": ("model: {}\n---\nmodel: {}", "a second document"),
    "a megabyte": ("#" * 1_000_000, "over 65536 bytes"),
    "a NUL": ("model: {name_or_path: a\0b}", r"U\+0000"),
    "an escape": ("model: {name_or_path: a\x1b[2Jb}", r"U\+001B"),
    "latin-1": ("model: {name_or_path: é}".encode("latin-1"), "got the byte 0xe9"),
    "code to trust": ("model: {trust_remote_code: true}", "cannot enable or name code"),
    "code to import": ("data: {import_path: evil}", "cannot enable or name code"),
    "a token": ("train: {hub_token: hf_abcdefghijklmnopqrstuv}", "holds no credentials"),
    "variables": ("train: {output_dir: '${HF_TOKEN}'}", "variables are not expanded"),
    "a home": ("train: {output_dir: ~root/.ssh}", "'~' is not expanded"),
    "an address": ("model: {name_or_path: 'https://u:pw@x.test/m'}", "addresses are not read"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_deceives(place, refused, case):
    text, reason = RECIPES[case]
    path = place / "evil.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(["check", path], reason, file=path)
    assert "hf_abc" not in message and ":pw@" not in message
    refused(["train", path], reason, file=path)


TEMPLATES = {
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "functions cannot be called"),
    "classes, quietly": ("{{ ''.__class__ }}", "is unsafe"),
    "a column's insides": ("{{ question.__init__.__globals__ }}", "is unsafe"),
    "by name": ("{{ question|attr('__class__') }}", "no filter 'attr'"),
    "through map": ("{{ [question]|map('attr', '__class__')|list }}", "no filter '(map|list)'"),
    "format": ("{{ '{0.__class__}'.format(question) }}", "functions cannot be called"),
    "an import": ("{% import 'os' as os %}", "Import is not part"),
    "an include": ("{% include '/etc/passwd' %}", "Include is not part"),
    "a macro": ("{% macro f() %}{{ f() }}{% endmacro %}", "Macro is not part|cannot be called"),
    "a long range": ("{% for x in range(10**12) %}x{% endfor %}", "not part|cannot be called"),
    "loops in loops": (
        "{% for a in question %}" * 9 + "{% endfor %}" * 9,
        "For is not part",
    ),
    "a power": ("{{ 9**9**9 }}", "Pow is not part"),
    "a long text": ("{{ 'a' * 10000000000 }}", "takes two numbers"),
    "a wide text": ("{{ '%9999999999d' % 1 }}", "takes two numbers"),
    "a padded text": ("{{ question|center(10000000000) }}", "no filter 'center'"),
    "a text that grows": (
        "{{ question" + "|tojson" * 40 + " }}",
        "more than 67,108,864 characters",
    ),
    "many columns": ("{{ question }}" * 1000, "more than 500 parts"),
    "a method": ("{{ question.upper() }}", "cannot be called"),
    "replaced by itself": ("{{ question|replace('a', question) }}", "no filter 'replace'"),
    "nested": ("{{ " + "(" * 4000 + "question" + ")" * 4000 + " }}", "nested too deeply"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_that_deceives(place, recipe, refused, case):
    template, reason = TEMPLATES[case]
    rows = place / "columns.jsonl"
    rows.write_text(json.dumps({"question": "a" * 2000}) + "\n")
    source = json.dumps({"path": str(rows), "columns": {"prompt": template, "completion": "x"}})
    refused(["train", recipe, f"data.train=[{source}]"], reason, may_write=["run"])


def gz(name, chunk, times):
    def make(place):
        with gzip.open(place / name, "wb", compresslevel=1) as file:
            for _ in range(times):
                file.write(chunk)
        return place / name

    return make


def zst(name, chunk, times):
    def make(place):
        with pa.CompressedOutputStream(pa.OSFile(str(place / name), "wb"), "zstd") as file:
            for _ in range(times):
                file.write(chunk)
        return place / name

    return make


def plain(name, content):
    def make(place):
        (place / name).write_bytes(content)
        return place / name

    return make


def pipe(place):
    os.mkfifo(place / "rows.jsonl.pipe")
    (place / "folder").mkdir()
    (place / "folder" / "a.jsonl").symlink_to(place / "rows.jsonl.pipe")
    return place / "folder" / "a.jsonl"


MIB = b"0" * (1 << 20)
DEEP = b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
FILES = {
    "one line without end, gz": (gz("a.jsonl.gz", MIB, 3), "the line has 1 MiB or more"),
    "one line without end, zst": (zst("a.jsonl.zst", MIB, 3), "the line has 1 MiB or more"),
    "blank lines without end": (
        zst("a.jsonl.zst", b"\n" * (1 << 20), 300),
        "unpack to more than",
    ),
    "a gz that is none": (
        plain("a.jsonl.gz", b"\x1f\x8b\x08evil"),
        "cut off or damaged|cannot be read",
    ),
    "a zst that is none": (plain("a.jsonl.zst", b"evil" * 99), "cannot be read"),
    "a zip": (plain("a.zip", b"PK\x03\x04"), "is an archive; unpack it"),
    "a script": (plain("rows.py", b"import os; os.mkdir('canary')"), "format of .py is not known"),
    "a pickle": (plain("rows.pkl", b"cos\nmkdir\n"), "format of .pkl is not known"),
    "parquet by name alone": (plain("a.parquet", b"PAR1" + b"x" * 99), "not a whole Parquet file"),
    "JSON called parquet": (plain("a.parquet", b'{"messages": []}'), "holds JSON, not .parquet"),
    "parquet called JSON": (plain("a.jsonl", b"PAR1\x15\x04\xff\xfe"), "holds a Parquet file"),
    "a nested row": (plain("a.jsonl", DEEP), "nested too deeply"),
    "a nested document": (plain("a.json", DEEP), "nested too deeply"),
    "a number of 10,000 digits": (plain("a.jsonl", b'{"weight": 1' + b"0" * 9999 + b"}"), "digits"),
    "a key twice": (plain("a.jsonl", b'{"prompt":"a","prompt":"b"}'), "is there twice"),
    "a pipe": (pipe, "is a pipe or a device"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_data_file_that_deceives(place, recipe, refused, case, monkeypatch):
    monkeypatch.setattr("gptoss_tune.harmony.sources.bounded_file.LONGEST_LINE", 1 << 20)
    monkeypatch.setattr("gptoss_tune.harmony.sources.bounded_file.SMALL", 4 << 20)
    make, reason = FILES[case]
    file = make(place)
    command = ["train", recipe, f"data.train={file}", "data.dataset_num_proc=1"]
    refused(command, reason, file=file, may_write=["run"])


def test_a_type_in_parquet_that_is_a_pickle_is_not_built(place, recipe, poison, canary, refused):
    """pyarrow before 14.0.1 unpickled it (CVE-2023-47248)."""
    name = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": poison}
    field = pa.field("messages", pa.string(), metadata=name)
    table = pa.table({"messages": ["x"]}, schema=pa.schema([field]))
    parquet.write_table(table, place / "a.parquet")
    command = ["train", recipe, f"data.train={place / 'a.parquet'}"]
    refused(command, r"a\.parquet:1: messages", may_write=["run"])


@pytest.mark.parametrize("loader", ["pandas", "json", "text", "webdataset", "hdf5"])
def test_a_loader_of_the_library_is_no_dataset(place, recipe, poison, refused, loader):
    """``load_dataset("pandas")`` would look for files to read in the current directory."""
    (place / "here" / "train.pkl").write_bytes(poison)
    (place / "here" / "data").mkdir()
    (place / "here" / "data" / "train.json").write_text("{}")
    reason = "is a loader of the library datasets"
    refused(["train", recipe, f"data.train={loader}"], reason, may_write=["run"])


def test_names_and_rows_cannot_write_to_the_terminal(place, recipe, refused):
    folder = place / "theirs"
    folder.mkdir()
    clear = "\x1b]0;owned\x07\x1b[2J\u202e"
    (folder / f"a{clear}.jsonl").write_text(
        json.dumps({"messages": [{"role": clear, "content": clear}]})
        + "\n"
        + json.dumps({clear: clear})
        + "\n"
    )
    name = r"a\\x1b\]0;owned\\x07\\x1b\[2J\\u202e\.jsonl:1"
    message = refused(["train", recipe, f"data.train={folder}"], name, may_write=["run"])
    assert not set("\x07\u202e") & set(message)


def test_a_preview_shows_hostile_rows_and_names_harmlessly(place, recipe, capfd, monkeypatch):
    clear = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
    folder = place / "theirs"
    folder.mkdir()
    messages = [{"role": "user", "content": clear}, {"role": "assistant", "content": clear}]
    row = json.dumps({"messages": messages})
    (folder / f"b{clear}.jsonl").write_text(f"{row}\n{row}\n{{}}\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.parent / "preview-cache"))
    for command in ("preview", "check-data"):
        monkeypatch.setattr(
            "sys.argv", ["gptoss-tune", command, str(recipe), f"data.train={folder}"]
        )
        from gptoss_tune.cli import main

        with pytest.raises(SystemExit):
            main()
        shown = capfd.readouterr()
        text = shown.out + shown.err
        assert "owned" in text and not set("\x1b\x07\u202e\x9b") & set(text)


def test_what_a_model_says_cannot_write_to_the_terminal(capfd):
    from rich.console import Console

    from gptoss_tune.cli.chat.screen import Display
    from gptoss_tune.evaluate.channels import Delta

    show = Display(Console(highlight=False, soft_wrap=True))
    for channel, recipient in (("analysis", None), ("final", "\x1b[2J\n[fake]"), ("final", None)):
        show(Delta(channel, recipient, "\x1b]0;owned\x07 [bold]text[/] :smile: \u202e", 0))
    shown = capfd.readouterr().out
    assert "[bold]text[/] :smile:" in shown
    assert not set("\x1b\x07\u202e") & set(shown) and "\n[fake]" not in shown
