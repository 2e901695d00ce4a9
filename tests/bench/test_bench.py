"""The benchmark compares like with like: every contender's loss is ours."""

import importlib.util
from argparse import Namespace

import bench
import contenders
import pytest
import torch
from contenders import BLOCKED, DRY, FUSED, OTHER, OURS, PEER, PLAIN, TEXTBOOK

from minitransformer import attention

pytestmark = pytest.mark.slow  # imports transformers

TINY = {
    "mha": ("mha", 2, 3, 4, 8, 90, (OURS, PLAIN, PEER + DRY, TEXTBOOK + DRY)),
    "hs": ("hs", 2, 4, 4, 8, 90, (OURS, TEXTBOOK + DRY)),
    "direct": ("direct-minilm", 2, 3, 4, 8, 90, (OURS, TEXTBOOK + DRY)),
    "od": ("od", 1, 1, 4, 8, 95, (OURS, PLAIN, TEXTBOOK + DRY)),
    "infer": ("infer", 2, 2, 4, 8, 90, (OURS, TEXTBOOK)),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, value in {"CASES": TINY, "WIDTH": 24, "HEADS": 4, "R": 6, "XLMR": 95}.items():
        monkeypatch.setattr(contenders, name, value)
    monkeypatch.setattr(bench, "CASES", TINY)


def results(case, names):
    found, batch = [], contenders.make_batch(case, "cpu")
    for name in names:
        if name.startswith(PEER) and importlib.util.find_spec("bertdistiller") is None:
            continue
        torch.manual_seed(0)
        result = contenders.build(case, name, batch, "cpu")[1]()
        if case != "infer":
            loss, count = result
            result = loss if count is None else loss / count
        found.append(result)
    return found


@pytest.mark.parametrize("case", TINY)
def test_contenders_compute_the_same(case):
    first, *others = results(case, TINY[case][-1])
    for other in others:
        assert torch.allclose(other, first, rtol=5e-4, atol=1e-6)


def test_dropout_is_on_unless_the_name_says_otherwise():
    without, once_more, dropped = results("mha", (TEXTBOOK + DRY, TEXTBOOK + DRY, TEXTBOOK))
    assert without == once_more != dropped


@pytest.mark.parametrize(("contender", "form"), [(FUSED, "fused"), (BLOCKED, "blocked")])
def test_a_named_form_of_attention_is_used_by_both_models(contender, form, monkeypatch):
    original, calls = getattr(attention, f"{form}_attention"), []
    monkeypatch.setattr(
        attention, f"{form}_attention", lambda *given: calls.append(form) or original(*given)
    )
    results("mha", [contender])
    assert len(calls) == 1 + 1  # layer 1 of either: layer 2, the last needed, stops at Q, K, V


def test_floor_by_hand():
    # 1 layer of each, B N = 32 tokens, D = 24. Vocabulary: 4 products of 2 * 10 * 95 * 24.
    # A layer: 32 * (24 * 576 + 4 * 8 * 24) = 466,944; student three times, teacher once.
    assert contenders.arithmetic("od", 10) == 4 * 466_944 + 4 * 2 * 10 * 95 * 24
    # mha, 2 of 3 layers: one layer and Q, K, V (32 * 6 * 576 = 110,592) on both sides;
    # relations 3 * 3 * 2 * 32 * 8 * 24 = 110,592.
    assert contenders.arithmetic("mha", 0) == 4 * (466_944 + 110_592) + 110_592


def test_turns_of_processes_and_of_another_checkout(tmp_path, monkeypatch):
    """Two rounds, each contender once a round; the other checkout's code is what runs there."""
    monkeypatch.undo()  # the processes import contenders.py as it is: the smallest real case
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "__init__.py").write_text("raise SystemExit('the other checkout')")
    options = Namespace(steps=1, seconds=0, runs=2, threads=1, device="cpu", other=str(tmp_path))
    case = "growth-4x128"
    records = bench.take_turns(case, "fp32", [OURS], options)
    assert [len(turn["walls"]) for turn in records[OURS]] == [1, 1]
    (line,) = bench.table(case, "fp32", records)
    assert line.count("|") == 11
    assert "| 1.00x |" in line
    with pytest.raises(BaseException, match="the other checkout"):
        bench.take_turns(case, "fp32", [OTHER], options)
