"""evaluate.py from end to end: real runs of a tiny teacher, on files, offline."""

import json
import math
import random
import shutil
from contextlib import nullcontext

import pytest
import torch
from conftest import WORDS, tiny_config, tiny_encoder, tiny_tokenizer, tokens
from helpers import make_inputs
from test_glue import write_glue, write_xnli
from test_tasks import own

import evaluate
import train
from distill import METHODS
from distill.evaluation import as_is, columns, figures
from distill.evaluation.glue import GLUE
from distill.method import Batch
from minitransformer import load_pretrained, save_pretrained
from minitransformer.files import UserError

NARROW = ["--student-hidden", "16", "--student-heads", "2"]
QUICK = ["--tasks", "mine", "--lrs", "1e-3", "3e-3", "--epochs", "1", "--seeds", "2"]


@pytest.fixture(scope="module")
def here(home):
    usual = [*make_inputs(home, max_position_embeddings=64), "--steps", "3"]
    more = {"direct-minilm": NARROW, "od": ["--relation-heads", "7"]}  # which od does not read
    for name in METHODS:
        flags = ["--method", name, "--out", str(home / name), *more.get(name, [])]
        assert train.main([*usual, *flags]) == 0
    chance, rows = random.Random(0), []
    for _ in range(60):
        words = chance.choices([*WORDS[:6], "model"], k=8)
        rows.append([" ".join(words), "yes" if "model" in words else "no"])
    own(home / "mine", ["text", "label"], rows[:40], rows[40:])
    return home


DRAW = figures.draw


@pytest.fixture
def run(here, monkeypatch):
    """run(flags): evaluate.py where the runs are; returns results.json, if it was asked for."""
    monkeypatch.setattr(figures, "draw", lambda *_: None)  # a second each

    def run(*flags):
        argv = [*map(str, flags), "--threads", "1", "--precision", "fp32", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["evaluate.py", *argv])
        assert evaluate.main(argv) == 0
        out = here / argv[argv.index("--out") + 1] if "--out" in argv else None
        return out and json.loads((out / "results.json").read_text())

    return run


def test_held_out_losses_are_those_of_the_logs(here, run):
    results = run(*METHODS, "--tasks", "none", "--out", "losses")
    teacher, rows = str(here / "teacher"), {m["model"]: m for m in results["models"]}
    assert next(iter(rows)) == teacher  # the teacher is the one that the runs name
    assert [name for name in rows if name in METHODS] == list(METHODS)
    for name in METHODS:
        record = json.loads((here / name / "log.jsonl").read_text().splitlines()[-1])
        assert rows[name]["loss"] == pytest.approx(record["loss_after"], rel=1e-5)
        assert rows[name]["start_loss"] == pytest.approx(record["loss_before"], rel=1e-5)
        assert rows[name]["teacher"] == teacher
    assert rows["mlm"]["perplexity"] == pytest.approx(math.exp(rows["mlm"]["loss"]), rel=1e-5)
    assert "perplexity" in rows[teacher]
    assert 0 <= rows["od"]["agreement"] <= 1
    assert not {"perplexity", "agreement"} & rows["mha"].keys()  # has no head


@pytest.mark.slow
def test_the_whole_of_it(here, run, capsys, monkeypatch):
    monkeypatch.setattr(figures, "draw", DRAW)
    results = run("mha", "./od", *QUICK, "--out", "results")
    printed = capsys.readouterr().out
    files = {path.name for path in (here / "results").iterdir()}
    pictures = {"relations-mha.png", "relations-od.png", "score-latency.png"}
    assert files == {"results.json", "results.md", *pictures}

    rows = {(r["model"], r["metric"]): r for r in results["rows"]}
    columns = [str(here / "teacher"), "mha (start)", "mha", "./od (start)", "./od"]
    assert list(dict.fromkeys(model for model, _ in rows)) == columns
    assert [model["model"] for model in results["models"]] == columns
    for row in rows.values():
        assert row.keys() >= {"model", "task", "metric", "mean", "sd", "seeds", "chance"}
        assert (row["task"], row["seeds"], len(row["values"])) == ("mine", 2, 2)
    assert results.keys() >= {"argv", "commit", "versions", "machine", "settings"}
    vectors = {m["model"]: m.get("sentence_cosine") for m in results["models"]}
    assert vectors.pop(columns[0]) is None
    assert all(-1 <= cosine <= 1 for cosine in vectors.values())

    text = (here / "results" / "results.md").read_text()
    mean = f"{rows['mha', 'accuracy']['mean']:.3f} ± {rows['mha', 'accuracy']['sd']:.3f}"
    for shown in (printed, text):
        assert mean in shown
        assert "mine: mha recovered " in shown or "mine: mha has no way to recover" in shown


def test_a_copy_of_the_teacher_keeps_everything(here, run, tmp_path):
    shutil.copytree(here / "teacher", tmp_path / "copy")
    flags = (tmp_path / "copy", "--teacher", "teacher", "--data", f"web={here}/text.txt")
    results = run(*flags, *QUICK, "--out", tmp_path / "out")
    teacher, copy = results["models"]
    assert copy["agreement"] == copy["neighbour_kept"] == 1.0
    assert copy["sentence_cosine"] == pytest.approx(1.0)
    assert copy["perplexity"] == teacher["perplexity"]
    values = {r["model"]: r["values"] for r in results["rows"] if r["metric"] == "accuracy"}
    assert values["teacher"] == values[str(tmp_path / "copy")]


def test_agreement_is_on_masked_text_at_the_masked_places():
    """Against a loop over places; on clean text or at all places it would be another number."""
    sides = tiny_encoder(), tiny_encoder(seed=1)
    moved = {name: p + 0.04 * torch.sign(p) for name, p in sides[0].state_dict().items()}
    sides[1].load_state_dict(moved)
    ids, mask = tokens(sides[0].config, [20] * 16)
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    masked, positions = ids.masked_fill(chosen, 4), chosen.flatten().nonzero().flatten()
    with torch.inference_mode():
        guesses = [side.mlm_logits(side(masked, mask).hidden[-1]).argmax(-1) for side in sides]
        clean = [side.mlm_logits(side(ids, mask).hidden[-1]).argmax(-1) for side in sides]
    same = [guesses[0][i, j] == guesses[1][i, j] for i, j in chosen.nonzero().tolist()]
    found = as_is.agreement(*sides, [Batch(ids, mask, masked, positions)], nullcontext())
    assert found == pytest.approx(sum(map(float, same)) / len(same))
    assert found != pytest.approx(float((clean[0] == clean[1])[chosen].float().mean()))
    assert found != pytest.approx(float((guesses[0] == guesses[1]).float().mean()))


def test_sentence_vectors_are_means_and_neighbours_are_others():
    model = columns.Model("m", tiny_encoder(), tiny_tokenizer())
    sentences = ["the text is a model", "of", "a token in the layer and the text"]
    vectors = as_is.sentence_vectors(model, sentences, torch.device("cpu"))
    for sentence, vector in zip(sentences, vectors, strict=True):
        ids, _ = model.tokenizer.encode_pairs([sentence], max_tokens=40)[0]
        with torch.inference_mode():
            mean = model.encoder(torch.tensor([ids])).hidden[-1][0].mean(dim=0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)
    # by the teacher 0 and 1 are nearest to each other, and 2 to 1; the student turns 2 to 0
    degrees = torch.tensor([[0.0, 30.0, 80.0], [0.0, 30.0, -40.0]]).deg2rad()
    teacher, student = torch.stack([degrees.cos(), degrees.sin()], dim=-1)
    facts = as_is.compare_vectors(student, teacher)
    assert facts["neighbour_kept"] == pytest.approx(2 / 3)
    assert facts["sentence_cosine"] == pytest.approx((1 + 1 + math.cos(math.radians(120))) / 3)
    wider = torch.cat([teacher, torch.zeros(3, 1)], dim=1)
    assert as_is.compare_vectors(student, wider) == {"neighbour_kept": pytest.approx(2 / 3)}


def test_another_teacher_is_noted_and_one_that_does_not_fit_refused(here, run, tmp_path, capsys):
    other = tiny_encoder(tiny_config(max_position_embeddings=64), seed=9)
    save_pretrained(tmp_path / "other", other, load_pretrained(here / "teacher")[1])
    run("mha", "--teacher", tmp_path / "other", "--tasks", "none")
    printed = capsys.readouterr().out
    assert f"mha learned from a teacher with other weights than {tmp_path / 'other'}" in printed
    assert "no column for the start of mha: rebuilt" in printed
    save_pretrained(tmp_path / "roberta", tiny_encoder("roberta"), tiny_tokenizer("roberta"))
    with pytest.raises(UserError, match=r"mha and its teacher .* different tokenizers"):
        run("mha", "--teacher", tmp_path / "roberta", "--tasks", "none")
    direct = shutil.copytree(here / "direct-minilm", tmp_path / "direct")
    shutil.copy(direct / "model.safetensors", direct / "projections.safetensors")
    with pytest.raises(UserError, match="direct: its maps do not fit this teacher: "):
        run(direct, "--tasks", "none")


def test_a_run_may_be_its_own_teacher_and_a_method_may_be_unknown(here, run, tmp_path, capsys):
    results = run("mha", "--teacher", "mha", "--tasks", "none", "--out", tmp_path / "out")
    assert [model["model"] for model in results["models"]] == ["mha"]
    assert "no column for the start of mha: its teacher is not here" in capsys.readouterr().out
    foreign = shutil.copytree(here / "mha", tmp_path / "foreign")
    log = foreign / "log.jsonl"
    log.write_text(log.read_text().replace('"method": "mha"', '"method": "mine"'))
    with pytest.raises(UserError, match="unknown method 'mine': choose from mha"):
        run(foreign, "--tasks", "none")


def test_a_diverged_model_has_no_perplexity(here, run, monkeypatch, tmp_path):
    monkeypatch.setattr(as_is, "held_out_loss", lambda *_: 1e4)
    results = run("mlm", "--tasks", "none", "--out", tmp_path / "out")
    assert "perplexity" not in results["models"][-1]


@pytest.mark.slow
def test_all_of_glue_and_xnli_from_files(here, run, tmp_path):
    write_glue(tmp_path / "data", "parquet")
    write_xnli(tmp_path / "data", ("en", "de", "sw"))
    flags = ("--lrs", "1e-3", "--epochs", "1", "--seeds", "1", "--out", tmp_path / "out")
    results = run("mha", "--tasks", "glue", "xnli", "--data-dir", tmp_path / "data", *flags)
    metrics = {}
    for row in results["rows"]:
        if row["model"] == "mha":
            metrics.setdefault(row["task"], []).append(row["metric"])
    assert list(metrics) == [*GLUE, "xnli", "glue"]
    assert metrics["mnli"] == ["accuracy", "accuracy matched", "accuracy mismatched"]
    assert metrics["xnli"] == ["accuracy", *(f"accuracy {name}" for name in ("de", "en", "sw"))]


@pytest.mark.slow
def test_what_people_bring(here, run, tmp_path, capsys, monkeypatch):
    """One token type and pairs, lone surrogates, long inputs, hidden labels; another tokenizer."""
    monkeypatch.setattr(figures, "draw", DRAW)
    save_pretrained(tmp_path / "roberta", tiny_encoder("roberta"), tiny_tokenizer("xlm-roberta"))
    rows = [["ok HALF bad", "the model", 0], ["the text " * 60, "of a token", 1]] * 4
    hidden = [["the", "a", -1]]
    own(tmp_path / "odd", ["text", "text_pair", "label"], [*rows, *hidden], rows)
    for file in (tmp_path / "odd").iterdir():
        file.write_text(file.read_text().replace("HALF", "\\ud83d"))
    flags = ("--tasks", tmp_path / "odd", "--epochs", "1", "--data", f"web={here}/text.txt")
    flags = (*flags, "--teacher", "teacher", "--out", tmp_path / "out")
    results = run(tmp_path / "roberta", *flags)
    printed = capsys.readouterr().out
    assert "agreement" not in results["models"][1]
    assert "neighbour_kept" in results["models"][1]
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["score-latency.png"]
    assert "note: odd train: 1 of 9 rows are left out, their label is" in printed
    assert f"odd: 8 inputs are too long for {tmp_path / 'roberta'}, cut" in printed
    assert results["rows"][0]["chance"] == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["--tasks", "mine", "other/mine"], "another task called mine"),
        (["--tasks", "other/glue"], "another task called glue"),
        (
            ["--out", "mine/train.jsonl"],
            "--out mine/train.jsonl: .* is no folder that can be written to",
        ),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(flags, message, here, monkeypatch):
    for name in ("mine", "glue"):
        shutil.copytree(here / "mine", here / "other" / name, dirs_exist_ok=True)
    monkeypatch.setattr(evaluate, "load_models", None)
    with pytest.raises(UserError, match=message):
        evaluate.main(["teacher", "--threads", "1", *flags])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="works in one process"):
        evaluate.main(["teacher"])
