"""The comparison of samplers says which run it needs before it loads or writes anything."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[3] / "kernels/bench/rollouts/equality.py"


@pytest.fixture
def equality(monkeypatch):
    spec = importlib.util.spec_from_file_location("equality_refusals", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "equality_refusals", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("adapted", [True, False])
def test_a_run_that_was_not_merge_aware_is_refused(equality, monkeypatch, tmp_path, adapted):
    (tmp_path / "adapter").mkdir()
    record = {"recipe": {"lora": {"merge_aware": False}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    found = SimpleNamespace(
        checkpoint=SimpleNamespace(expert_format="mxfp4"),
        adapter=SimpleNamespace(path=tmp_path / "adapter") if adapted else None,
    )
    monkeypatch.setattr(equality, "open_evaluated_model", lambda *args, **more: found)
    with pytest.raises(SystemExit, match=r"trained with lora\.merge_aware .*; expected such a run"):
        equality.open_policies(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
