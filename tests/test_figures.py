"""What the pictures show is right, and they are drawn."""

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_encoder, tokens

from distill.evaluation import figures
from distill.evaluation.figures import cka, frontier, relation_map
from distill.method import Batch


def random_states(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cka_is_that_of_its_definition():
    """Kornblith et al.'s HSIC form, over pairs of tokens: tr(K H L H), K = X X^T, H centres."""
    x, y = random_states(50, 6).double(), random_states(50, 9, seed=1).double()
    y[:, :6] += x
    h = torch.eye(50).double() - 1 / 50
    k, l = x @ x.T, y @ y.T  # noqa: E741
    hsic = [torch.trace(a @ h @ b @ h) for a, b in ((k, l), (k, k), (l, l))]
    assert cka(x, y) == pytest.approx(float(hsic[0] / (hsic[1] * hsic[2]).sqrt()), rel=1e-12)


def test_cka_is_free_of_rotation_scale_and_shift():
    x, y = random_states(100, 8), random_states(100, 8, seed=1)
    rotation = torch.linalg.qr(random_states(8, 8, seed=2))[0]
    assert cka(x, x @ rotation * 7 + 3) == pytest.approx(1)
    assert cka(x, y @ rotation) == pytest.approx(cka(x, y))
    assert cka(x, y) == pytest.approx(cka(y, x))
    assert cka(x, y) < 0.5
    assert cka(x, torch.ones(100, 3)) == 0.0  # no variance: nothing to compare, no NaN


def test_relation_map_by_hand():
    """Two tokens, two heads of one number: softmax of the products, and the heads' mean."""
    states = torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])  # head 1: 1, 2; head 2: 0, 1
    first, second = np.exp([[1, 2], [2, 4]]), np.exp([[0, 0], [0, 1]])
    expected = sum(e / e.sum(1, keepdims=True) for e in (first, second)) / 2
    assert torch.allclose(relation_map(states, 2), torch.tensor(expected).float())
    assert torch.allclose(relation_map(random_states(1, 9, 12), 4).sum(-1), torch.ones(9))


def test_frontier():
    points = [(3, 0.8), (1, 0.5), (2, 0.4), (2, 0.7), (3, 0.9), (4, 0.9)]
    assert frontier(points) == [1, 3, 4]
    assert frontier([(1, 0.5)]) == [0]


def test_pictures_are_drawn(tmp_path):
    small = tiny_config(num_hidden_layers=2, hidden_size=16)
    encoders = tiny_encoder(), tiny_encoder(small, seed=1)
    ids, mask = tokens(encoders[0].config, [9, 6])
    names, words = ("a teacher", "runs/x"), [f"w{i}" for i in range(9)]
    figures.draw_relations(tmp_path / "r.png", names, encoders, ids[:1], words, {})
    settings = {"teacher_layer": 1, "relation_heads": 2}
    figures.draw_relations(tmp_path / "s.png", names, encoders, ids[:1], words, settings)
    figures.draw_similarity(tmp_path / "c.png", names, encoders, Batch(ids, mask))
    models = [{"model": n, "latency_ms": {"1 x 9": {"median": t}}} for n, t in (("a", 1), ("b", 2))]
    rows = [
        {"model": m, "task": t, "metric": "accuracy", "values": [0.5, 0.6]}
        for m in "ab"
        for t in ("t", "u")
    ]
    headlines = {"t": "accuracy", "u": "accuracy", "glue": "average"}
    figures.draw_frontier(tmp_path / "f.png", models, rows, headlines)
    for name in "rscf":
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "r.png").read_bytes() != (tmp_path / "s.png").read_bytes()
