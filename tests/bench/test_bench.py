"""The benchmark compares like with like: all contenders compute the same loss."""

import bench
import pytest


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("name", ["mha", "hs", "od"])
def test_contenders_compute_the_same(name, monkeypatch):
    monkeypatch.setattr(bench, "WIDTH", 96)
    contenders = (bench.OURS, bench.PLAIN, bench.TEXTBOOK)
    losses = [bench.build((name, 2, 6, 3, 8, 90), who)[1]().item() for who in contenders]
    assert losses == pytest.approx(losses[:1] * 3, rel=5e-4)
