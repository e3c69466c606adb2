"""Figures against the numbers they are drawn from, read back from the SVG and the PNG."""

import base64
import math
import re
import struct
import zlib

import numpy as np
import pytest

from gptoss_tune.report import layered
from gptoss_tune.report.parts import axes, heat, plot
from gptoss_tune.report.parts.text import duration, figure, size


def drawn_values(svg, frame_values, logarithmic=False):
    """Return the points of the paths in an SVG, in the units of two known ticks."""
    paths = re.findall(r'<path [^>]*d="M([^"]*)"', svg)
    return [[tuple(map(float, p.split())) for p in path.split("L")] for path in paths]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_line_lies_where_its_numbers_are(logarithmic):
    series = [(step, 10 ** (3 - step / 4)) for step in range(1, 21)]
    svg = plot.chart("t", [plot.Line("a", series, "red")], unit="u", logarithmic=logarithmic)
    ticks = {
        float(word.replace(",", "")): float(y) - 4
        for y, word in re.findall(r'<text x="51" y="([\d.]+)" text-anchor="end">([^<]*)<', svg)
    }
    assert len(ticks) >= 3
    (low, y_low), (high, y_high) = min(ticks.items()), max(ticks.items())
    scale = math.log10 if logarithmic else float
    (points,) = drawn_values(svg, ticks)
    assert len(points) == 20
    for (step, value), (x, y) in zip(series, points, strict=True):
        share = (y - y_low) / (y_high - y_low)
        assert scale(low) + share * (scale(high) - scale(low)) == pytest.approx(
            scale(value), abs=0.006 * abs(scale(high) - scale(low))
        )
        expected = axes.LEFT + (step - 1) / 19 * (axes.WIDTH - axes.LEFT - axes.RIGHT)
        assert x == pytest.approx(expected, abs=0.06)


def test_a_thin_curve_keeps_every_extreme_and_the_mean_is_the_mean():
    values = np.random.default_rng(0).normal(size=50_000).cumsum()
    points = [(step, float(value)) for step, value in enumerate(values)]
    kept = axes.extremes(points)
    assert len(kept) <= 2 * axes.MOST_PIECES + 2
    assert min(kept, key=lambda p: p[1])[1] == values.min()
    assert max(kept, key=lambda p: p[1])[1] == values.max()
    assert kept[0] == points[0] and kept[-1] == points[-1] and kept == sorted(kept)
    for number in range(axes.MOST_PIECES):
        piece = slice(
            number * 50_000 // axes.MOST_PIECES, (number + 1) * 50_000 // axes.MOST_PIECES
        )
        inside = [v for step, v in kept if piece.start <= step < piece.stop]
        assert {values[piece].min(), values[piece].max()} <= set(inside)
    for step, mean in axes.running_mean(points, 1000)[::37]:
        assert mean == pytest.approx(values[max(0, step - 999) : step + 1].mean())


@pytest.mark.parametrize(
    "low, high",
    [(0.331, 9.86), (0, 1e-2), (1.22, 1.22), (0.97, 0.991), (0, 2.2e6), (-3, 7), (1e-9, 5e-9)],
)
def test_ticks_are_the_numbers_that_they_name(low, high):
    ticks = axes._round_ticks(low, high)
    assert 3 <= len(ticks) <= 7 and ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12
    named = [float(text.replace(",", "")) for text in axes.tick_texts(ticks)]
    assert named == pytest.approx(ticks, abs=1e-6 * (ticks[-1] - ticks[0]))


@pytest.mark.parametrize("low, high", [(0.15, 2.2), (1, 1), (3e-5, 1e-4), (900, 12_000), (7, 30)])
def test_ticks_of_a_short_logarithmic_axis_are_named_and_spread(low, high):
    frame = axes.Frame.around([1, 9], [low, high], True, False)
    assert 3 <= len(frame.ticks) <= 7
    assert [float(text.replace(",", "")) for _, text in frame.ticks] == pytest.approx(
        [10**place for place, _ in frame.ticks]
    )
    if high / low > 10:
        gaps = [b - a for (a, _), (b, _) in zip(frame.ticks, frame.ticks[1:], strict=False)]
        assert max(gaps) < 0.41, "no half of the axis is without a tick"


def test_an_axis_from_zero_holds_values_below_it():
    frame = axes.Frame.around([1, 9], [-3e30, -1.0], False, True)
    assert frame.low <= -3e30 and frame.high >= 0


def test_a_curve_without_noise_has_no_mean_and_keeps_its_extremes():
    points = [(step, 1.0 if step == 777 else step / 1e6) for step in range(5_000)]
    assert axes.curve(points).mean and not axes.curve(points, noisy=False).mean
    drawn = axes.curve(points, noisy=False).points
    assert (777, 1.0) in drawn and len(drawn) <= 2 * axes.MOST_PIECES + 2


def pixels(url):
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", data[16:24])
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    raw = zlib.decompress(data[start + 4 : start + 4 + length])
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + 4 * width)[:, 1:]
    return rows.reshape(height, width, 4)


def test_a_map_has_a_pixel_per_cell_the_first_layer_at_the_bottom():
    scale = heat.Scale(lambda value: value, ("a", "b"), "0", signed=True)
    found = pixels(heat.picture([[0.0, 1.0, -0.5], [None, 0.25, -7.0]], scale))
    assert found.shape == (2, 3, 4)
    assert found[1, 0, 3] == 0 and found[1, 1].tolist() == [*heat.ORANGE, 255]
    assert found[1, 2].tolist() == [*heat.BLUE, 128]
    assert found[0].tolist() == [list(heat.NOTHING), [*heat.ORANGE, 64], [*heat.BLUE, 255]]


def load(step, counts):
    rows = [[float(n) / sum(row) for n in row] for row in counts]
    return layered.Load(step, rows, sum(map(sum, counts)) / len(counts))


def test_drift_is_the_share_that_went_elsewhere():
    before, after = load(1, [[10, 10, 0], [5, 5, 10]]), load(9, [[10, 0, 10], [10, 10, 20]])
    assert layered.drift(before, after) == pytest.approx([0.5, 0.0])


def test_drift_by_chance_is_what_unchanged_routers_show():
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(32, 2.0), size=6)
    first, second = 3_000, 12_000

    def draw(step, count):
        return load(step, generator.multinomial(count, shares).tolist())

    seen = [layered.drift(draw(1, first), draw(2, second)) for _ in range(40)]
    expected = layered.drift_by_chance(draw(1, first), draw(2, second))
    assert np.mean(seen) == pytest.approx(expected, rel=0.03)


def test_numbers_are_plain_and_have_units():
    assert [figure(v) for v in (0, 0.33312, 1234.56, 2e-4, 1.5e7, float("nan"))] == [
        "0", "0.3331", "1,235", "2e-4", "1.5e7", "–",
    ]  # fmt: skip
    assert [size(n) for n in (10, 2048, 3 * 2**30)] == ["10 bytes", "2.00 KiB", "3.00 GiB"]
    assert [duration(s) for s in (4.2, 75, 7300)] == ["4.2 s", "1 min 15 s", "2 h 1 min"]
