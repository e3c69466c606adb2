"""What is no model that llama.cpp can answer with is refused by its header, and in silence."""

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError
from gptoss_tune.evaluate.llama_cpp.engine import LlamaCpp


def written(path, architecture="gpt-oss", kind=None):
    writer = gguf.GGUFWriter(path, architecture)
    if kind:
        writer.add_type(kind)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def factors(tmp_path):
    return written(tmp_path / "factors.gguf", kind=gguf.GGUFType.ADAPTER)


def test_factors_alone_are_told_as_such_before_llama_cpp_is_asked(factors, monkeypatch):
    monkeypatch.setattr("gptoss_tune.evaluate.llama_cpp.engine._load", None)
    with pytest.raises(CheckpointError, match=r"a GGUF 'adapter' of 'gpt-oss'.*--lora .*factors"):
        LlamaCpp(factors)
    with pytest.raises(CheckpointError, match=r"a GGUF 'model' of 'llama'; expected a model of"):
        LlamaCpp(written(factors.with_name("other.gguf"), "llama"))
    done = CliRunner().invoke(app, ["chat", str(factors)])
    assert isinstance(done.exception, CheckpointError)
    assert "a GGUF 'adapter' of 'gpt-oss'" in str(done.exception)


def test_no_line_of_the_logger_is_late(tmp_path, capfd):
    """It is a thread of its own: what it had not written yet came after the refusal."""
    path = written(tmp_path / "empty.gguf")
    for _ in range(30):
        with pytest.raises(CheckpointError, match=r"empty\.gguf: llama\.cpp cannot load it: .*key"):
            LlamaCpp(path)
    assert capfd.readouterr().err == ""


def test_evaluate_says_that_it_is_a_gguf_before_it_asks_for_a_recipe(factors):
    for model in (factors, factors.parent):
        done = CliRunner().invoke(app, ["evaluate", str(model)])
        assert isinstance(done.exception, CheckpointError)
        assert "is a GGUF, the file of llama.cpp" in str(done.exception)
