"""What the pictures show is right, and they are drawn."""

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_encoder, tiny_tokenizer

from distill.evaluation import figures
from distill.evaluation.figures import relation_map
from distill.evaluation.models import Model


def test_relation_map_by_hand():
    """Two tokens, two heads of one number: softmax of the products, and the heads' mean."""
    states = torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])  # head 1: 1, 2; head 2: 0, 1
    first, second = np.exp([[1, 2], [2, 4]]), np.exp([[0, 0], [0, 1]])
    expected = sum(e / e.sum(1, keepdims=True) for e in (first, second)) / 2
    assert torch.allclose(relation_map(states, 2), torch.tensor(expected).float())


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path):
    small, tokenizer = tiny_config(num_hidden_layers=2, hidden_size=16), tiny_tokenizer()
    teacher = Model("a teacher", tiny_encoder(), tokenizer)
    start = Model("runs/x (start)", tiny_encoder(small, seed=2), tokenizer, {}, teacher=teacher)
    run = Model("runs/x", tiny_encoder(small, seed=1), tokenizer, {}, True, teacher, start)
    models = {model.name: model for model in (teacher, start, run)}
    (file,) = figures.draw(tmp_path, models, "the text is a model")
    assert file.name == "relations-runs-x.png"
    assert file.read_bytes()[:4] == b"\x89PNG"
