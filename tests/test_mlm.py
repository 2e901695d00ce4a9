"""MLM: the formula against the library and by hand; the lean form is in test_losses.py."""

import math

import pytest
import torch
from conftest import states

from distill.mlm import mlm_loss
from minitransformer.files import UserError


def test_by_hand():
    # Equal logits over 8 words: log 8 each.
    total, count = mlm_loss(torch.zeros(3, 8), torch.tensor([0, 5, 7]))
    assert total.item() == pytest.approx(3 * math.log(8), rel=1e-6)
    assert count.item() == 3


def test_equals_the_library():
    logits, targets = states(4, 6), torch.tensor([5, 0, 2, 2])
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert mlm_loss(logits, targets)[0].item() == pytest.approx(expected.item(), rel=1e-12)


def test_mistakes_name_both_numbers():
    with pytest.raises(UserError, match=r"\(19,\) targets for 20 positions"):
        mlm_loss(states(20, 7), torch.zeros(19, dtype=torch.long))
