"""What the pictures show is right; test_evaluate.py draws them."""

import numpy as np
import torch

from distill.evaluation.figures import relation_map


def test_relation_map_by_hand():
    """Two tokens, two heads of one number: softmax of the products, and the heads' mean."""
    states = torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])  # head 1: 1, 2; head 2: 0, 1
    first, second = np.exp([[1, 2], [2, 4]]), np.exp([[0, 0], [0, 1]])
    expected = sum(e / e.sum(1, keepdims=True) for e in (first, second)) / 2
    np.fill_diagonal(expected, np.nan)  # a token beside itself
    assert np.allclose(relation_map(states, 2), expected, equal_nan=True)
