"""What a path means: files here, or a dataset on the Hub."""

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.sources.folders import find_files


def test_a_slip_in_the_ending_of_a_file_is_no_dataset_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("{}\n")
    (tmp_path / "squad.csv").write_text("a\n")
    with pytest.raises(DataError, match=r"my\.jsnl: no such file; did you mean 'my\.jsonl'"):
        find_files("my.jsnl")
    for name in ("squad", "me/my.jsnl", "v1.5", "open-r1"):
        assert find_files(name) is None
