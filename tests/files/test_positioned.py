"""Reads and writes at an offset, with and without the system's own calls for them."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptoss_tune.files import positioned
from gptoss_tune.files.positioned import read_at, write_at


@pytest.fixture(params=["own calls", "none"])
def file(request, tmp_path, monkeypatch):
    if request.param == "none":
        for name in ("preadv", "pread", "pwrite", "pwritev"):
            monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(positioned, "_LARGEST", 100)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_what_is_written_at_an_offset_is_read_there(file):
    data = bytes(range(256)) * 2
    write_at(file, memoryview(data), 1000)
    assert os.fstat(file).st_size == 1512
    found = memoryview(bytearray(600))
    count = read_at(file, found, 1000)
    assert count == 100 and found[:100] == data[:100]
    assert read_at(file, found, 1500) == 12
    assert read_at(file, found, 1512) == 0


def test_threads_do_not_move_each_other_s_position(file):
    write_at(file, memoryview(b"".join(number.to_bytes(4, "big") for number in range(2000))), 0)

    def number_at(index):
        found = memoryview(bytearray(4))
        assert read_at(file, found, 4 * index) == 4
        return int.from_bytes(found, "big")

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(number_at, range(2000))) == list(range(2000))
