"""The benchmark compares like with like: all contenders compute the same loss."""

import bench
import pytest
import torch


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("name", ["mha", "hs", "od"])
def test_contenders_compute_the_same(name, monkeypatch):
    monkeypatch.setattr(bench, "WIDTH", 96)
    case = (name, 2, 4, 3, 8, 90)
    ours, *others = (
        bench.build(case, who)[1]() for who in (bench.OURS, bench.PLAIN, bench.TEXTBOOK)
    )
    for other in others:
        assert torch.allclose(other, ours, rtol=5e-4, atol=1e-6)
