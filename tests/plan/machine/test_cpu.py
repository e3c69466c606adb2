"""The time of a training on a CPU: worked out by hand, refused where it is days."""

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.plan.flops import Flops, Work
from gptoss_tune.plan.gpus import card
from gptoss_tune.plan.machine.cpu import cpu_time, measured_rate, refuse_days_on_a_cpu
from gptoss_tune.plan.plan import plan
from gptoss_tune.recipe import load_recipe
from gptoss_tune.shipped import shipped


def work(tokens, flops=30e9):
    return Work(Flops(flops, 0, 0), tokens, "", None, 1.0, 0.5)


def test_days_follow_from_operations_and_rate():
    # 28.8 million tokens of 30 GFLOP at half of 100 GFLOP/s: 200 days of 86,400 seconds.
    found = cpu_time(work(28_800_000), 100e9)
    assert found.hours == pytest.approx(200 * 24)
    assert str(found).startswith("No GPU here: this would take at least 200 days on this CPU (")
    with pytest.raises(MachineError, match=r"200 days .*28,800,000 tokens.*--on-cpu") as raised:
        refuse_days_on_a_cpu(work(28_800_000), 100e9)
    assert raised.value.exit_code == 3


def test_a_day_is_the_limit():
    day = 144_000  # tokens
    assert cpu_time(work(day), 100e9).hours == pytest.approx(24)
    refuse_days_on_a_cpu(work(day - 1), 100e9)
    with pytest.raises(MachineError, match=r"at least 24\.2 hours"):
        refuse_days_on_a_cpu(work(day + 1000), 100e9)


def test_data_of_unknown_size_is_judged_by_its_first_hundred_thousand_tokens():
    refuse_days_on_a_cpu(work(None), 100e9)
    with pytest.raises(MachineError, match=r"every 100,000 tokens would take at least 3 days"):
        refuse_days_on_a_cpu(work(None), 20e9)


def test_a_shipped_recipe_of_a_released_base_is_refused(monkeypatch):
    """The processor of a desktop multiplies at some 100 to 500 GFLOP/s."""
    monkeypatch.chdir(shipped("data").parent)
    made = plan(load_recipe(shipped("recipes") / "gpt-oss-20b" / "qlora.yaml"), card("h100"))
    with pytest.raises(MachineError, match="No GPU here"):
        refuse_days_on_a_cpu(made.work, 100e9)


def test_this_machine_multiplies_at_some_rate():
    assert 1e8 < measured_rate() < 1e15
