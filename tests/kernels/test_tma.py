"""The grouped product with matrix and rows copied by TMA descriptors, as tuned tiles may ask."""

from dataclasses import replace

import pytest
import torch
from gptoss_kernels import LowRankTerm, grouped_matmul_reference
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.testing import assert_close
from gptoss_kernels.tiles import Tiles

FP32 = 1e-6
TILES = Tiles(16, 64, 32, 4, 1, group=2)
OFFSETS = torch.tensor([0, 5, 5, 42, 51], dtype=torch.int32)  # an empty expert, rows past the last
ROWS, TOKENS = 60, 20


@pytest.mark.parametrize("gather", [False, True], ids=["rows", "gathered"])
@pytest.mark.parametrize("turned", [False, True], ids=["K-contiguous", "N-contiguous"])
@pytest.mark.parametrize(
    ("n", "k"),
    [
        pytest.param(96, 64, id="last-columns-of-the-next-expert"),
        pytest.param(100, 64, id="odd-N"),
        pytest.param(96, 80, id="last-K-of-the-next-expert"),
    ],
)
def test_equals_the_copies_by_pointer_and_float64(n, k, turned, gather, device, exact_dots):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device)

    matrices = draw(4, n, k)
    matrices = matrices.mT.contiguous().mT if turned else matrices
    rows = draw(TOKENS if gather else ROWS, k)
    indices = torch.randint(0, TOKENS, (ROWS,), generator=generator).to(device, torch.int32)
    indices = indices if gather else None
    bias, offsets = draw(4, n), OFFSETS.to(device)
    term = LowRankTerm(draw(ROWS, 16), draw(4, n, 16), 0.5)

    def product(tiles):
        out = torch.full((ROWS, n), float("nan"), device=device)
        tile_map = TileMaps(offsets, ROWS).get(tiles.block_m, 0, 4)
        options = {"indices": indices, "bias": bias, "low_rank": term}
        launch_product(rows, matrices, tile_map, tiles, out, **options)
        return out

    used = int(OFFSETS[-1])
    copied = product(replace(TILES, tma=True))
    expected = grouped_matmul_reference(
        rows.double(),
        matrices.double(),
        offsets,
        token_indices=indices,
        bias=bias.double(),
        low_rank=LowRankTerm(term.rows.double(), term.factor.double(), 0.5),
    )
    assert_close("product", copied[:used], expected[:used], FP32)
    assert torch.equal(copied[:used], product(TILES)[:used])
    assert copied[used:].isnan().all()  # of absent experts: never written
