"""evaluate.py from end to end: real runs of a tiny teacher, on files, offline."""

import json
import math
import random
import shutil
from contextlib import nullcontext

import pytest
import torch
from conftest import WORDS, tiny_config, tiny_encoder, tiny_tokenizer, tokens
from helpers import environment, make_inputs
from test_glue import GLUE_FORMS, write_glue, write_xnli
from test_tasks import own

import evaluate
import train
from distill.evaluation.finetune import Tuner
from distill.method import Batch
from minitransformer import load_pretrained, save_pretrained

RUNS = {
    "mha": ["--method", "mha"],
    "hs": ["--method", "hs"],
    "od": ["--method", "od"],
    "mlm": ["--method", "mlm"],
    "direct": ["--method", "direct-minilm", "--student-hidden", "16", "--student-heads", "2"],
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A tiny teacher, one run of each method, and a task of one's own."""
    folder = tmp_path_factory.mktemp("evaluate")
    usual = make_inputs(folder, max_position_embeddings=64)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        for name, flags in RUNS.items():
            assert train.main([*usual, "--steps", "3", "--out", str(folder / name), *flags]) == 0
    chance, rows = random.Random(0), []
    for _ in range(60):
        words = chance.choices([*WORDS[:6], "model"], k=8)
        rows.append([" ".join(words), "yes" if "model" in words else "no"])
    own(folder / "mine", ["text", "label"], rows[:40], rows[40:])
    return folder


@pytest.fixture
def run(here, monkeypatch):
    """run(flags): evaluate.py where the runs are; returns results.json, if it was asked for."""
    for name, value in environment(here).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(here)
    monkeypatch.setattr(evaluate, "draw", lambda *_: [])  # a second each

    def run(*flags):
        argv = [*map(str, flags), "--threads", "1", "--precision", "fp32", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["evaluate.py", *argv])
        assert evaluate.main(argv) == 0
        if "--out" in argv:
            return json.loads((here / argv[argv.index("--out") + 1] / "results.json").read_text())
        return None

    return run


DRAW = evaluate.draw
QUICK = ["--tasks", "mine", "--lrs", "1e-3", "3e-3", "--epochs", "1", "--seeds", "2"]


def test_held_out_losses_are_those_of_the_logs(here, run):
    results = run(*RUNS, "--tasks", "none", "--out", "losses")
    teacher, models = str(here / "teacher"), {m["model"]: m for m in results["models"]}
    assert list(models) == [teacher, *RUNS]  # the teacher is the one that the runs name
    for name in RUNS:
        record = json.loads((here / name / "log.jsonl").read_text().splitlines()[-1])
        assert models[name]["loss"] == pytest.approx(record["loss_after"], rel=1e-5)
        assert models[name]["teacher"] == teacher
    assert models["mlm"]["perplexity"] == pytest.approx(math.exp(models["mlm"]["loss"]), rel=1e-5)
    assert "perplexity" in models[teacher]
    assert 0 <= models["od"]["agreement"] <= 1
    assert "agreement" not in models["mha"]  # has no head


def test_the_whole_of_it(here, run, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "draw", DRAW)
    results = run("mha", "od", *QUICK, "--out", "results")
    printed = capsys.readouterr().out
    files = {path.name for path in (here / "results").iterdir()}
    assert files == {
        "results.json",
        "results.md",
        "score-latency.png",
        "relations-mha.png",
        "similarity-mha.png",
        "relations-od.png",
        "similarity-od.png",
    }

    rows = {(r["model"], r["metric"]): r for r in results["rows"]}
    assert len(rows) == 3 * 3
    for row in rows.values():
        assert row.keys() >= {"model", "task", "metric", "mean", "sd", "seeds"}
        assert (row["task"], row["seeds"], len(row["values"])) == ("mine", 2, 2)
    assert len(results["cells"]) == 3 * 2
    assert sum(cell["best"] for cell in results["cells"]) == 3
    assert results.keys() >= {"argv", "commit", "versions", "machine", "settings"}
    assert results["settings"]["lrs"] == {"mine": [1e-3, 3e-3]}

    text = (here / "results" / "results.md").read_text()
    mean = f"{rows['mha', 'accuracy']['mean']:.3f} ± {rows['mha', 'accuracy']['sd']:.3f}"
    for shown in (printed, text):
        assert mean in shown
        assert "mha" in shown
        assert "%" in shown


def test_order_on_the_command_line_changes_no_score(run, tmp_path, monkeypatch):
    def scores(*flags):
        results = run(*flags, *QUICK, "--out", tmp_path / "out")
        return {(r["model"], r["metric"]): r["values"] for r in results["rows"]}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    first = scores("mha", "hs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))  # nothing cached
    assert scores("hs", "mha") == first


def test_a_second_call_trains_nothing(run, tmp_path, monkeypatch):
    first = run("mha", *QUICK, "--out", tmp_path / "a")
    monkeypatch.setattr(Tuner, "train", None)
    again = run("mha", *QUICK, "--out", tmp_path / "b")
    assert again["rows"] == first["rows"]
    assert again["models"][1]["loss"] == first["models"][1]["loss"]


def test_a_copy_of_the_teacher_keeps_everything(here, run, tmp_path):
    shutil.copytree(here / "teacher", tmp_path / "copy")
    flags = (tmp_path / "copy", "--teacher", "teacher", "--data", f"web={here}/text.txt")
    results = run(*flags, *QUICK, "--out", tmp_path / "out")
    teacher, copy = results["models"]
    assert copy["agreement"] == 1.0
    assert copy["perplexity"] == teacher["perplexity"]
    values = {r["model"]: r["values"] for r in results["rows"] if r["metric"] == "accuracy"}
    assert values["teacher"] == values[str(tmp_path / "copy")]
    assert "100 %" in (tmp_path / "out" / "results.md").read_text()


def test_agreement_is_on_masked_text_at_the_masked_places():
    """Against a loop over places; on clean text or at all places it would be another number."""
    sides = tiny_encoder(), tiny_encoder(seed=1)
    moved = {name: p + 0.04 * torch.sign(p) for name, p in sides[0].state_dict().items()}
    sides[1].load_state_dict(moved)
    ids, mask = tokens(sides[0].config, [20] * 16)
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    masked = ids.masked_fill(chosen, 4)
    with torch.inference_mode():
        guesses = [side.mlm_logits(side(masked, mask).hidden[-1]).argmax(-1) for side in sides]
        clean = [side.mlm_logits(side(ids, mask).hidden[-1]).argmax(-1) for side in sides]
    same = [guesses[0][i, j] == guesses[1][i, j] for i, j in chosen.nonzero().tolist()]
    found = evaluate.agreement(*sides, [Batch(ids, mask, masked, chosen.flatten().nonzero().flatten())], nullcontext)
    assert found == pytest.approx(sum(map(float, same)) / len(same))
    assert found != pytest.approx(float((clean[0] == clean[1])[chosen].float().mean()))
    assert found != pytest.approx(float((guesses[0] == guesses[1]).float().mean()))


def test_another_teacher_is_said(here, run, tmp_path, capsys):
    other = tmp_path / "other"
    save_pretrained(
        other,
        tiny_encoder(tiny_config(max_position_embeddings=64), seed=9),
        load_pretrained(here / "teacher")[1],
    )
    run("mha", "--teacher", other, "--tasks", "none")
    assert f"mha learned from a teacher with other weights than {other}" in capsys.readouterr().out


def test_tokenizers_that_differ_are_one_line(here, run, tmp_path):
    save_pretrained(tmp_path / "roberta", tiny_encoder("roberta"), tiny_tokenizer("roberta"))
    with pytest.raises(evaluate.UserError, match=r"mha and its teacher .* different tokenizers"):
        run("mha", "--teacher", tmp_path / "roberta", "--tasks", "none")


def test_a_model_beside_one_that_reads_otherwise(here, run, tmp_path, monkeypatch):
    """Scores can be compared even then; agreement and pictures of two cannot."""
    monkeypatch.setattr(evaluate, "draw", DRAW)
    save_pretrained(tmp_path / "roberta", tiny_encoder("roberta"), tiny_tokenizer("roberta"))
    flags = ("--teacher", "teacher", "--data", f"web={here}/text.txt", "--out", tmp_path / "out")
    results = run(tmp_path / "roberta", *QUICK, *flags)
    assert "agreement" not in results["models"][1]
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["score-latency.png"]


def test_maps_that_do_not_fit_are_one_line(here, run, tmp_path):
    shutil.copytree(here / "direct", tmp_path / "direct")
    (tmp_path / "direct" / "projections.safetensors").unlink()
    with pytest.raises(evaluate.UserError, match=r"direct: its maps do not fit this teacher \(.*"):
        run(tmp_path / "direct", "--tasks", "none")


@pytest.mark.parametrize("form", GLUE_FORMS)
def test_all_of_glue_from_files(form, here, run, tmp_path, capsys):
    write_glue(tmp_path / "glue", form)
    flags = ("--lrs", "1e-3", "--epochs", "1", "--seeds", "1")
    where = ("--data-dir", tmp_path / "glue", "--out", tmp_path / "out")
    results = run("mha", "--tasks", "glue", *where, *flags)
    tasks = {r["task"] for r in results["rows"]}
    assert tasks == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "glue"}
    rows = {(r["task"], r["metric"]): r["mean"] for r in results["rows"] if r["model"] == "mha"}
    assert rows["mnli", "accuracy"] == pytest.approx(
        (rows["mnli", "accuracy matched"] + rows["mnli", "accuracy mismatched"]) / 2
    )
    headlines = [
        ("cola", "matthews"),
        ("sst2", "accuracy"),
        ("mrpc", "f1"),
        ("stsb", "spearman"),
        ("qqp", "f1"),
        ("mnli", "accuracy"),
        ("qnli", "accuracy"),
        ("rte", "accuracy"),
    ]
    average = sum(rows[key] for key in headlines) / 8
    assert rows["glue", "average"] == pytest.approx(average)
    assert ("lack cells and are left out" in capsys.readouterr().out) == (form == "own")


def test_xnli_in_fifteen_languages(here, run, tmp_path):
    write_xnli(tmp_path)
    results = run(
        "mha",
        "--tasks",
        "xnli",
        "--data-dir",
        tmp_path,
        "--lrs",
        "1e-3",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--out",
        tmp_path / "out",
    )
    rows = {r["metric"]: r["mean"] for r in results["rows"] if r["model"] == "mha"}
    assert len(rows) == 16
    each = [mean for metric, mean in rows.items() if metric != "accuracy"]
    assert rows["accuracy"] == pytest.approx(sum(each) / 15)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lrs", "nan"], "--lrs nan must be above 0"),
        (["--epochs", "0"], "--epochs is 0, must be at least 1"),
        (["--max-tokens", "2"], "--max-tokens is 2, must be at least 8"),
        (["--task", "docs"], "unrecognized arguments: --task"),
        (["--seeds", "two"], "argument --seeds: invalid int value"),
        (["--tasks", "mine", "other/mine"], "another task called mine"),
        (["--out", "mine/train.jsonl"], "--out mine/train.jsonl: nothing can be written to"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
    ],
)
def test_what_is_wrong_is_one_line(flags, message, here, run, monkeypatch):
    shutil.copytree(here / "mine", here / "other" / "mine", dirs_exist_ok=True)
    monkeypatch.setattr(evaluate, "held_out_batches", None)  # cheap checks come before any work
    monkeypatch.chdir(here)
    with pytest.raises(evaluate.UserError, match=message):
        evaluate.main(["teacher", "--threads", "1", *flags])


def test_generated_text_leaves_the_global_generator_alone(run):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run("mha", "--tasks", "none")
    assert torch.equal(torch.rand(1), expected)
