"""OD: the formula against the library and by hand; the lean form is in test_losses.py."""

import math

import pytest
import torch
from conftest import states

from distill.od import od_loss
from minitransformer.files import UserError


def test_equals_the_library():
    student, teacher = states(5, 9), states(5, 9, seed=1)
    log_s, log_t = (z.div(2).log_softmax(-1) for z in (student, teacher))
    expected = 4 * torch.nn.functional.kl_div(log_s, log_t, reduction="sum", log_target=True)
    total, count = od_loss(student, teacher, 2.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert count.item() == 5


def test_by_hand():
    # The worked example of od.py, 0.130812, with student and teacher exchanged:
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln(2/3) = 0.143841.
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    assert od_loss(teacher, student)[0].item() == pytest.approx(0.143841, abs=1e-6)
    # tau = 2: teacher logits (0, ln sqrt 3), p = (0.366025, 0.633975); KL = 0.036343; times 4.
    assert od_loss(student, teacher, 2.0)[0].item() == pytest.approx(0.145373, abs=1e-5)


def test_mistakes_name_both_numbers():
    with pytest.raises(UserError, match=r"\(3, 7\) and \(3, 6\)"):
        od_loss(states(3, 7), states(3, 6))
    for temperature in (0.0, float("nan")):
        with pytest.raises(UserError, match="must be above 0"):
            od_loss(states(3, 7), states(3, 7), temperature)
