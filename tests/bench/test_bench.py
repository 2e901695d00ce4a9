"""The benchmark compares like with like: given the same weights, every contender's loss is ours."""

import importlib.util
import json
import sys

import bench
import contenders as contenders
import pytest
import torch
from contenders import ALL, BLOCKED, FUSED, MASKED, OURS, PEER, TEXTBOOK

from minitransformer import attention
from minitransformer.config import EncoderConfig
from minitransformer.convert import to_hugging_face
from minitransformer.model import Encoder

TINY = {
    "mha": ("mha", 2, 3, 4, 8, 90, (OURS, PEER, TEXTBOOK)),
    "hs": ("hs", 2, 4, 4, 8, 90, (OURS, TEXTBOOK)),
    "direct": ("direct-minilm", 2, 3, 4, 8, 90, (OURS, TEXTBOOK)),
    "od": ("od", 1, 1, 4, 8, 95, (OURS, MASKED)),
    "infer": ("infer", 2, 2, 4, 8, 90, (OURS, TEXTBOOK)),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, value in {"CASES": TINY, "WIDTH": 24, "HEADS": 4, "R": 6, "XLMR": 95}.items():
        monkeypatch.setattr(contenders, name, value)
    monkeypatch.setattr(bench, "CASES", TINY)


def give_same_weights(monkeypatch, case):
    """transformers' models with the weights that this project's get, and no dropout."""
    original = contenders.transformers_models

    def patched(case, device):
        student, teacher = original(case, device)
        torch.manual_seed(0)
        method, L_s, L_t, *_, V, _ = TINY[case]
        model_type = {"model_type": "xlm-roberta" if V == 95 else "bert"}
        for model, layers in ((student, L_s), (teacher, L_t)):
            config = EncoderConfig.from_dict(contenders.settings(case, layers) | model_type)
            weights = to_hugging_face(Encoder(config, mlm_head=method == "od"))
            own = set(model.state_dict())
            prefix = "" if own & set(weights) else next(iter(weights)).split(".")[0] + "."
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
            missing = model.load_state_dict(weights, strict=False).missing_keys
            assert all("decoder" in key or "position_ids" in key for key in missing)
        return student.eval(), teacher

    monkeypatch.setattr(contenders, "transformers_models", patched)


@pytest.mark.parametrize("case", TINY)
def test_contenders_compute_the_same(case, monkeypatch):
    give_same_weights(monkeypatch, case)
    batch, results = contenders.make_batch(case, "cpu"), []
    for contender in TINY[case][-1]:
        if contender == PEER and importlib.util.find_spec("bertdistiller") is None:
            continue
        torch.manual_seed(0)
        _, step = contenders.build(case, contender, batch, "cpu")
        result = step()
        if case != "infer":
            loss, count = result
            result = loss if count is None else loss / count
        results.append(result)
    for other in results[1:]:
        assert torch.allclose(other, results[0], rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize(("contender", "form"), [(FUSED, "fused"), (BLOCKED, "blocked")])
def test_a_named_form_of_attention_is_used_by_both_models(contender, form, monkeypatch):
    original, calls = getattr(attention, f"{form}_attention"), []
    monkeypatch.setattr(
        attention, f"{form}_attention", lambda *given: calls.append(form) or original(*given)
    )
    contenders.build("mha", contender, contenders.make_batch("mha", "cpu"), "cpu")[1]()
    assert len(calls) == 1 + 1  # layer 1 of either: layer 2, the last needed, stops at Q, K, V


def test_all_positions_count_more_than_the_masked(monkeypatch):
    give_same_weights(monkeypatch, "od")
    batch = contenders.make_batch("od", "cpu")
    one, other = (contenders.build("od", who, batch, "cpu")[1]()[0] for who in (MASKED, ALL))
    assert one.isfinite()
    assert other.isfinite()
    assert one != other


@pytest.mark.parametrize("case", ["hs", "infer"])
def test_record_and_table(case):
    records = {
        who: [bench.prepare(case, who, "fp32", 1, 2, 0, "cpu")()] for who in (OURS, TEXTBOOK)
    }
    assert len(records[OURS][0]["walls"]) == 2
    assert json.loads(json.dumps(records[OURS][0]))["floor"] > 0
    lines = list(bench.table(case, "fp32", records))
    assert [line.count("|") for line in lines] == [11, 11]
    assert "| 1.00x |" in lines[0]


def test_profile_names_the_operations_and_their_shares():
    rows = [line.split("|")[1:-1] for line in bench.profile("hs", "bf16", "cpu")]
    assert " aten::addmm " in [row[2] for row in rows]
    assert 50 < sum(int(row[4].strip(" %")) for row in rows) <= 105  # rounded; without the small


def test_floor_by_hand(monkeypatch):
    # 1 layer of each, B N = 32 tokens, D = 24. Vocabulary: 4 products of 2 * 10 * 95 * 24.
    # A layer: 32 * (24 * 576 + 4 * 8 * 24) = 466,944; student three times, teacher once.
    assert contenders.arithmetic("od", 10) == 4 * 466_944 + 4 * 2 * 10 * 95 * 24
    # mha, 2 of 3 layers: one layer and Q, K, V (32 * 6 * 576 = 110,592) on both sides;
    # relations 3 * 3 * 2 * 32 * 8 * 24 = 110,592.
    assert contenders.arithmetic("mha", 0) == 4 * (466_944 + 110_592) + 110_592


def test_a_worker_answers_each_line_with_a_turn(monkeypatch, capsys):
    flags = ["--worker", "infer", OURS, "--precision=fp32", "--steps=1", "--seconds=0"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *flags])
    monkeypatch.setattr(sys, "stdin", ["\n", "\n"])
    bench.main()
    ready, *turns = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ready == {}
    assert [set(turn) for turn in turns] == 2 * [{"walls", "cpus", "peak", "rate", "floor"}]


def test_workers_take_turns_and_a_failure_ends_the_benchmark(monkeypatch, tmp_path):
    """A stand-in for bench.py that answers like it and notes who was asked."""
    notes, script = tmp_path / "notes", tmp_path / "worker.py"
    script.write_text(
        "import sys\n"
        f"open({str(notes)!r}, 'a').write(sys.argv[-1].lower())\n"
        "print('{}', flush=True)\n"
        "for _ in sys.stdin:\n"
        f"    open({str(notes)!r}, 'a').write(sys.argv[-1])\n"
        "    if sys.argv[-1] == 'X': sys.exit(3)\n"
        '    print(\'noise\\n{"who": "%s"}\' % sys.argv[-1], flush=True)\n'
    )
    monkeypatch.setattr(bench, "__file__", str(script))
    assert bench.take_turns("case", ["A", "B"], 2, []) == {
        who: 2 * [{"who": who}] for who in ("A", "B")
    }
    assert notes.read_text() == "abABAB"  # all are ready before the first is asked
    assert bench.take_turns("case", [], 2, []) == {}
    with pytest.raises(SystemExit, match="case, X: exit 3"):
        bench.take_turns("case", ["X"], 1, [])


def test_the_pipelines_batches_differ(embedded, monkeypatch):
    monkeypatch.setitem(contenders.CASES, "pipeline", ("mha", 2, 3, 4, 8, 90, ()))
    batches = contenders.real_batches("pipeline", "cpu")
    one, other = next(batches), next(batches)
    assert one.ids.shape == other.ids.shape == (4, 8)
    assert not one.ids.equal(other.ids)
