"""What the pictures show is right, and they are drawn."""

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_encoder, tiny_tokenizer, tokens

from distill.evaluation import figures
from distill.evaluation.figures import cka, frontier, relation_map
from distill.evaluation.models import Model
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
    assert cka(x, torch.ones(50, 3)) == 0.0  # no variance: nothing to compare, no NaN


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


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path):
    small, device = tiny_config(num_hidden_layers=2, hidden_size=16), torch.device("cpu")
    tokenizer = tiny_tokenizer()
    teacher = Model("a teacher", tiny_encoder(), tokenizer)
    start = Model("runs/x (start)", tiny_encoder(small, seed=2), tokenizer, {}, teacher=teacher)
    run = Model("runs/x", tiny_encoder(small, seed=1), tokenizer, {}, True, teacher, start)
    ids, mask = tokens(small, [9, 6])
    models = {model.name: model for model in (teacher, start, run)}
    batches = {name: [Batch(ids, mask).to(device)] for name in models}
    files = figures.draw_pairs(tmp_path, models, batches, "the text is a model of the layer")
    assert [file.name for file in files] == ["relations-runs-x.png", "similarity-runs-x.png"]
    rows, facts = [], []
    for number, model in enumerate(models.values(), 1):
        times = {"1 x 9": {"median": number}}
        name, own_start = model.name, model.start and model.start.name
        facts.append({"model": name, "start": own_start, "latency_ms": times})
        for task in ("t", "u"):
            scores = {"metric": "accuracy", "values": [0.5, 0.6]}
            rows.append({"model": name, "task": task, **scores})
    headlines = {"t": "accuracy", "u": "accuracy", "glue": "average"}
    figures.draw_frontier(tmp_path / "f.png", facts, rows, headlines)
    rows[0]["values"] = [0.5, None]  # an undefined score is left out
    figures.draw_frontier(tmp_path / "g.png", facts, rows, headlines)
    for file in [*files, tmp_path / "f.png", tmp_path / "g.png"]:
        assert file.read_bytes()[:4] == b"\x89PNG"
