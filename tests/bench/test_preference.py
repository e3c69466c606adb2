"""The bench of preference steps: both sides of one small round compute the same."""

import preference
import pytest
from rivals import preference_sides
from rivals.preference_sides import Case, Seen

# Importing both trainers takes most of its time.
pytestmark = pytest.mark.slow


def seen(variant, margin=0.5, seconds=(2.0, 1.0)):
    return Seen(
        variant,
        seconds=list(seconds),
        cpu_seconds=list(seconds),
        losses=[0.7, 0.6],
        margins=[0.0, margin],
        chosen=[-30.0, -29.0],
        grad_norms=[5.0, 4.0],
        tensors=2**20,
        resident=2**20,
        positions=10,
        tokens=9,
    )


def test_a_margin_that_differs_is_told():
    fine = preference.disagreements([seen("trl"), seen("ours", margin=0.5001)])
    assert [right for _, right in fine] == [True]
    ((line, right),) = preference.disagreements([seen("trl"), seen("ours", margin=0.6)])
    assert not right and line.endswith("TOO FAR")


def test_ratios_are_ours_over_theirs():
    both = [seen("trl", seconds=(4.0,)), seen("ours-packed", seconds=(1.0,))]
    (row,) = [line for line in preference.ratios(both) if line.startswith("| ours, packed")]
    assert "| 0.25 | 0.25 |    1.00 |" in row
    assert sum("10.0%" in line for line in preference.table(both)) == 2


def test_runs_of_a_variant_are_joined_and_have_to_agree():
    one = preference.joined([seen("trl", seconds=(1.0,)), seen("trl", seconds=(3.0,))])
    assert one.seconds == [1.0, 3.0]
    other = seen("trl")
    other.losses[1] += 1e-6
    with pytest.raises(ValueError, match="two runs have other losses"):
        preference.joined([seen("trl"), other])


def test_both_sides_compute_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = preference.REPOSITORY / "data" / "tiny" / "pairs.jsonl"
    sizes = {"layers": 2, "hidden": 32, "intermediate": 64, "experts": 4, "pairs": 2, "rank": 2}
    case = Case(**sizes, steps=4, beta=0.2, learning_rate=2e-4, max_length=512, data=str(data))
    preference_sides.prepare(tmp_path, case)
    variants = ("trl-precomputed", "ours-packed", "trl-started", "ours-packed-started")
    found = [preference_sides.run(tmp_path, variant) for variant in variants]
    far = list(preference.disagreements(found))
    assert len(far) == 2 and all(right for _, right in far), far
    assert all(len(one.losses) == 4 and one.margins[-1] > one.margins[0] for one in found)
    assert all(len(one.seconds) == 1 and one.tensors > 0 and one.resident > 0 for one in found)
    theirs, mine, started, ours_started = found
    assert theirs.adapter_values == mine.adapter_values == ours_started.adapter_values
    assert started.adapter_values == 2 * mine.adapter_values
    assert mine.positions < theirs.positions + 8 and mine.held < theirs.held
