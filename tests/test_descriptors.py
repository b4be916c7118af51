from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regionhash.parts.descriptors import (
    aggregate,
    crow,
    gem,
    mac,
    rmac,
    rmac_regions,
    rmac_vectors,
    spoc,
)

ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "mac": mac,
    "spoc": spoc,
    "crow": crow,
    "gem": gem,
    "rmac": rmac,
}


def maps_of(seed: int, n: int = 2, channels: int = 5, height: int = 6, width: int = 8) -> Tensor:
    """As behind a ReLU: about half of the values are zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, height, width, generator=generator).relu()


def unit(values: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in values))
    return [v / length for v in values]


def cells(channel: Tensor) -> list[tuple[int, int, float]]:
    return [(y, x, float(v)) for y, row in enumerate(channel) for x, v in enumerate(row)]


def slow_spoc(one: Tensor) -> list[float]:
    height, width = one.shape[1:]
    sigma = min(height / 2, width / 2) / 3

    def weight(y: int, x: int) -> float:
        dy, dx = y + 0.5 - height / 2, x + 0.5 - width / 2
        return math.exp(-(dy * dy + dx * dx) / (2 * sigma * sigma))

    return unit([sum(weight(y, x) * v for y, x, v in cells(channel)) for channel in one])


def slow_crow(one: Tensor) -> list[float]:
    eps = 1e-6
    total: dict[tuple[int, int], float] = {}
    for channel in one:
        for y, x, v in cells(channel):
            total[y, x] = total.get((y, x), 0.0) + v
    norm = math.sqrt(sum(v * v for v in total.values()))
    alpha = {place: math.sqrt(v / norm) for place, v in total.items()}
    active = [sum(v > 0 for *_, v in cells(channel)) / len(total) for channel in one]
    beta = [math.log((len(one) * eps + sum(active)) / (eps + q)) for q in active]
    pooled = [sum(alpha[y, x] * v for y, x, v in cells(channel)) for channel in one]
    return unit([b * f for b, f in zip(beta, pooled, strict=True)])


def slow_gem(one: Tensor, p: float = 3.0) -> list[float]:
    means = [sum(v**p for *_, v in cells(c)) / len(cells(c)) for c in one]
    return unit([mean ** (1 / p) for mean in means])


def slow_rmac(one: Tensor) -> list[float]:
    """R-MAC with the loops of the authors' public code, without the whole map."""
    height, width = one.shape[1:]
    w = min(width, height)
    b = [(max(height, width) - w) / (m - 1) for m in (2, 3, 4, 5, 6, 7)]
    idx = min(range(6), key=lambda n: abs((w * w - w * b[n]) / (w * w) - 0.4)) + 1
    more_x, more_y = (idx if width > height else 0), (idx if height > width else 0)
    total = [0.0] * len(one)
    for level in (1, 2, 3):
        side = math.floor(2 * w / (level + 1))
        n_x, n_y = level + more_x, level + more_y
        step_x = (width - side) / (n_x - 1) if n_x > 1 else 0
        step_y = (height - side) / (n_y - 1) if n_y > 1 else 0
        for i in range(n_y):
            for j in range(n_x):
                y, x = math.floor(i * step_y + 1e-9), math.floor(j * step_x + 1e-9)
                part = one[:, y : y + side, x : x + side]
                best = unit([float(channel.max()) for channel in part])
                total = [a + b for a, b in zip(total, best, strict=True)]
    return unit(total)


SLOW = {"spoc": slow_spoc, "crow": slow_crow, "gem": slow_gem, "rmac": slow_rmac}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("size", [(6, 8), (8, 6), (7, 7), (12, 16), (6, 14)])
def test_a_descriptor_is_what_the_loops_of_its_paper_give(name: str, size: tuple[int, int]) -> None:
    maps = maps_of(0, height=size[0], width=size[1])
    expected = torch.tensor([SLOW[name](one) for one in maps])
    torch.testing.assert_close(ALL[name](maps), expected, rtol=1e-4, atol=1e-5)


def test_mac_is_the_maximum_of_each_channel() -> None:
    maps = torch.zeros(1, 2, 3, 3)
    maps[0, 0, 2, 1], maps[0, 1, 0, 0], maps[0, 1, 1, 1] = 3.0, 4.0, 1.0
    assert mac(maps).tolist() == [pytest.approx([0.6, 0.8])]


def test_spoc_counts_the_centre_more_than_a_corner() -> None:
    maps = torch.zeros(1, 2, 5, 5)
    maps[0, 0, 2, 2], maps[0, 1, 0, 0] = 1.0, 1.0
    centre, corner = spoc(maps)[0].tolist()
    # 2^2 + 2^2 from the centre, sigma 5/6
    assert corner / centre == pytest.approx(math.exp(-8 / (2 * (5 / 6) ** 2)), rel=1e-4)


def test_crow_weighs_a_rare_channel_more_than_a_common_one() -> None:
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0] = 1.0
    maps[0, 1, 0, 0] = 1.0
    # strength 2 1 1 1, of length sqrt(7); active 1 and 1/4
    alpha = [math.sqrt(s / math.sqrt(7)) for s in (2, 1, 1, 1)]
    expected = unit([sum(alpha) * math.log(1.25), alpha[0] * math.log(5)])
    assert crow(maps)[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_gem_goes_from_the_average_to_the_maximum() -> None:
    maps = maps_of(1)
    average = torch.nn.functional.normalize(maps.mean((2, 3)), dim=1)
    torch.testing.assert_close(gem(maps, p=1), average)
    torch.testing.assert_close(gem(maps, p=2000), mac(maps), rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="p must be positive, got 0"):
        gem(maps, p=0)


def test_gem_of_large_values_stays_finite() -> None:
    assert torch.isfinite(gem(1e30 * maps_of(2), p=10)).all()


def test_the_regions_of_rmac_on_a_square_are_1_4_and_9() -> None:
    regions = rmac_regions(12, 12)
    assert len(regions) == 1 + 4 + 9
    assert regions[0].tolist() == [0, 0, 12, 12]
    assert regions[1:5].tolist() == [[0, 0, 8, 8], [4, 0, 12, 8], [0, 4, 8, 12], [4, 4, 12, 12]]
    assert (regions[5:, 2:] - regions[5:, :2] == 6).all()


def test_the_regions_of_rmac_on_4_to_3_are_those_of_the_paper() -> None:
    # m = 2: the two squares of level 1 overlap by two thirds, three would by five sixths
    regions = rmac_regions(12, 16)
    assert len(regions) == 2 + 6 + 12
    assert regions[:2].tolist() == [[0, 0, 12, 12], [4, 0, 16, 12]]
    turned = rmac_regions(16, 12)
    assert {tuple(r) for r in turned[:, [1, 0, 3, 2]].tolist()} == {
        tuple(r) for r in regions.tolist()
    }


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
def test_the_regions_of_rmac_lie_within_the_map_and_reach_its_edges(
    height: int, width: int, levels: int
) -> None:
    regions = rmac_regions(height, width, levels)
    assert (regions[:, :2] >= 0).all() and (regions[:, 2:] > regions[:, :2]).all()
    assert regions[:, 2:].max(0).tolist() == [width, height]
    assert (regions[:, 2:] <= np.array([width, height])).all()


def test_whitened_regions_are_aggregated_as_plain_ones() -> None:
    maps = maps_of(3)
    torch.testing.assert_close(rmac(maps), aggregate(rmac_vectors(maps)))
    turned = rmac_vectors(maps).flip(2)  # a rotation, as whitening has one
    torch.testing.assert_close(aggregate(turned), rmac(maps).flip(1))


@pytest.mark.parametrize("name", ALL)
def test_vectors_have_length_1_and_no_map_gives_nan(name: str) -> None:
    torch.testing.assert_close(ALL[name](maps_of(4)).norm(dim=1), torch.ones(2))
    assert ALL[name](torch.zeros(1, 3, 4, 5)).tolist() == [[0, 0, 0]]
    constant = ALL[name](torch.ones(1, 4, 4, 5))
    assert constant[0].tolist() == pytest.approx([0.5] * 4)
    one_cell = ALL[name](torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
    assert torch.isfinite(one_cell).all()


@pytest.mark.parametrize("name", ALL)
def test_a_batch_gives_what_its_pictures_give_alone(name: str) -> None:
    maps = maps_of(5, n=3)
    alone = torch.cat([ALL[name](one[None]) for one in maps])
    torch.testing.assert_close(ALL[name](maps), alone)


def test_sizes_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 4, 4 and 0"):
        rmac_regions(4, 4, 0)
