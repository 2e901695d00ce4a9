"""evaluate.py from end to end: real runs of a tiny teacher, on files, offline."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import WORDS, tiny_config, tiny_encoder, tiny_tokenizer
from helpers import make_inputs
from sklearn.linear_model import Ridge
from test_tasks import own

import evaluate
import train
from distill.evaluation import as_is, columns
from distill.evaluation.cost import latency, measure_costs
from minitransformer import Encoder, load_pretrained, save_pretrained
from minitransformer.files import UserError

NARROW = ["--student-hidden", "16", "--student-heads", "2"]
QUICK = ["--tasks", "mine", "--lr", "3e-3", "--epochs", "1", "--seeds", "2"]


@pytest.fixture(scope="module")
def here(home):
    usual = [*make_inputs(home, max_position_embeddings=64), "--steps", "3"]
    for name, more in {"mha": [], "od": [], "direct-minilm": NARROW}.items():
        assert train.main([*usual, "--method", name, "--out", str(home / name), *more]) == 0
    chance, rows = random.Random(0), []
    for _ in range(60):
        words = chance.choices([*WORDS[:6], "model"], k=8)
        rows.append([" ".join(words), "yes" if "model" in words else "no"])
    own(home / "mine", ["text", "label"], rows[:40], rows[40:])
    return home


@pytest.fixture
def run(here):
    """run(flags): evaluate.py where the runs are; returns results.json, if it was asked for."""

    def run(*flags):
        argv = [*map(str, flags), "--threads", "1", "--precision", "fp32", "--device", "cpu"]
        assert evaluate.main(argv) == 0
        out = here / argv[argv.index("--out") + 1] if "--out" in argv else None
        return out and json.loads((out / "results.json").read_text())

    return run


@pytest.mark.slow
def test_the_whole_of_it(here, run, capsys):
    """The baselines: the teacher's first layers, and the start where it is another model."""
    results = run("mha", "./od", "direct-minilm", *QUICK, "--out", "results")
    out, teacher = here / "results", str(here / "teacher")
    assert {path.name for path in out.iterdir()} == {"results.json", "results.md"}
    layers = load_pretrained("mha")[0].config.num_hidden_layers
    cut = f"{teacher} (first {layers} layers)"
    shown = [teacher, cut, "mha (start)", "mha", "./od (start)", "./od"]
    shown += ["direct-minilm (start)", "direct-minilm"]
    models = {model["model"]: model for model in results["models"]}
    assert 0 < latency(load_pretrained("mha")[0], 1, 8) < 1000  # milliseconds
    assert list(models) == shown
    titles = [title for title in models["mha"] if title.startswith(("parameters", "latency"))]
    assert [models[cut][title] for title in titles] == [models["mha"][title] for title in titles]
    log = json.loads((here / "mha" / "log.jsonl").read_text().splitlines()[-1])
    assert models["mha"]["held-out loss"] == log["loss_after"]
    rows = {(r["model"], r["task"], r["metric"]): r for r in results["rows"]}
    for name in shown:
        tuned, probed = (rows[name, "mine", m] for m in ("accuracy", "probe accuracy"))
        assert (tuned["seeds"], len(tuned["values"]), probed["seeds"]) == (2, 2, 1)
    assert 0 <= rows["mha", "vectors", "neighbours kept"]["mean"] <= 1
    printed, text = capsys.readouterr().out, (out / "results.md").read_text()
    mean = "{mean:.3f} ± {sd:.3f}".format(**rows["mha", "mine", "accuracy"])
    for shown in (printed, text):
        assert mean in shown
        assert f"| teacher | teacher (first {layers} layers) |" in " ".join(shown.split())
        assert "mine accuracy: mha " in shown
    assert "mine: 40 train, 20 dev; 2 classes: no, yes" in printed


def test_the_cut_teacher_is_its_first_layers_bit_for_bit(here):
    models = columns.load_columns(["mha"])
    teacher, _ = load_pretrained(here / "teacher")
    _, cut, start, student = models.values()
    config = student.encoder.config
    by_hand = Encoder(config, mlm_head=False).eval()
    by_hand.embeddings = teacher.embeddings
    for number in range(config.num_hidden_layers):
        by_hand.blocks[number] = teacher.blocks[number]
    ids = torch.arange(10, 30).reshape(2, 10)
    with torch.inference_mode():
        assert torch.equal(cut.encoder(ids).hidden[-1], by_hand(ids).hidden[-1])
    assert student.baselines == [cut, start]


def test_the_start_first_is_the_cut_teacher_and_a_run_may_teach_another(here, run):
    usual = f"--data web={here}/text.txt --steps 0 --seq-len 16 --init first --teacher".split()
    assert train.main([*usual, f"{here}/teacher", "--method", "od", "--out", "first"]) == 0
    assert "first (start)" not in columns.load_columns(["first"])  # though it has an MLM head
    assert train.main([*usual, "mha", "--out", "small"]) == 0
    rows = run("small", "mha", *QUICK, "--out", "chain")["rows"]
    assert {"small", "mha"} <= {r["model"] for r in rows if r["metric"] == "neighbours kept"}


def test_the_teacher_is_of_the_revision_that_the_run_learned_from(here, tmp_path, monkeypatch):
    run = shutil.copytree("mha", tmp_path / "pinned")
    start, *rest = (run / "log.jsonl").read_text().splitlines(keepends=True)
    start = json.loads(start)
    start["settings"]["revision"] = "v2"
    (run / "log.jsonl").write_text(json.dumps(start) + "\n" + "".join(rest))
    asked = []

    def load(name, revision=None):
        asked.append((str(name), revision))
        return load_pretrained(name)

    monkeypatch.setattr(columns, "load_pretrained", load)
    teacher = str(here / "teacher")
    assert columns.load_columns([str(run)])[f"{teacher}@v2"].name == f"{teacher}@v2"
    columns.load_columns([str(run)], teacher)
    assert asked == [(teacher, "v2"), (str(run), None), (teacher, None), (str(run), None)]


def test_scores_and_costs_are_each_models_own(here):
    encoder, tokenizer = load_pretrained("mha")
    found = [columns.Model("m", encoder, tokenizer).key]
    for name, value in (("pooling", "cls"), ("pair_types", not tokenizer.pair_types)):
        setattr(tokenizer, name, value)
        found.append(columns.Model("m", encoder, tokenizer).key)
    assert len({json.dumps(key) for key in found}) == 3
    wider = columns.Model("cut", tiny_encoder(tiny_config(vocab_size=310)), tokenizer)
    student = columns.Model("run", tiny_encoder(), tokenizer, baselines=[wider])
    costs = measure_costs({"cut": wider, "run": student})
    c = tiny_config()  # query, key, value, output; the FFN; Q K^T and A V
    a_layer = 8 * c.hidden_size**2 + 4 * c.hidden_size * c.intermediate_size + 160 * c.hidden_size
    assert costs["run"]["FLOPs per token"] == c.num_hidden_layers * a_layer
    head = sum(p.numel() for p in student.encoder.mlm_head.parameters())
    assert costs["run"]["parameters"] == sum(p.numel() for p in student.encoder.parameters()) - head
    assert costs["cut"]["parameters"] == costs["run"]["parameters"] + 10 * 32
    assert costs["cut"]["latency 1 x 40, ms"] == costs["run"]["latency 1 x 40, ms"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_vectors_are_pooled_as_the_model_says(pooling, monkeypatch):
    model = columns.Model("m", tiny_encoder(), tiny_tokenizer())
    monkeypatch.setattr(model.tokenizer, "pooling", pooling)
    sentences = ["the text is a model", "of", "a token in the layer and the text"]
    vectors = as_is.sentence_vectors(model, sentences, torch.device("cpu"))
    for sentence, vector in zip(sentences, vectors, strict=True):
        ids, _ = model.tokenizer.encode_pairs([sentence], max_tokens=40)[0]
        with torch.inference_mode():
            hidden = model.encoder(torch.tensor([ids])).hidden[-1][0]
        expected = hidden.mean(dim=0) if pooling == "mean" else hidden[0]
        assert torch.allclose(vector, expected / expected.norm(), atol=1e-5)


def test_neighbours_are_others_and_translations_are_found_by_their_text():
    # by the teacher 0 and 1 are nearest to each other, and 2 to 1; the student turns 2 to 0
    degrees = torch.tensor([[0.0, 30.0, 80.0], [0.0, 30.0, -40.0]]).deg2rad()
    teacher, student = torch.stack([degrees.cos(), degrees.sin()], dim=-1)
    assert as_is.neighbours_kept(student, teacher) == pytest.approx(2 / 3)
    assert as_is.neighbours_kept(student, teacher / 0) is None
    # query 2 finds candidate 0, query 1 finds 1 or its double, which has the same text
    queries = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    candidates = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]])
    assert as_is.retrieval_accuracy(queries, candidates, ["a", "b", "b"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes", [3, None])
def test_the_probe_is_the_ridge_regression_of_least_leave_one_out_error(classes):
    """By scikit-learn, fitted anew without each example; that of one row is no traceback."""
    chosen = set()
    for seed in range(12):
        generator = np.random.default_rng(seed)
        x, test = generator.normal(size=(12, 8)), generator.normal(size=(50, 8))
        y = x[:, :4] @ generator.normal(size=(4, classes or 1)) + 2  # the intercept counts
        y += 2 * generator.normal(size=y.shape)
        y = np.eye(classes)[y.argmax(axis=1)] if classes else y
        errors = {}
        for ridge in as_is.RIDGES:
            left_out = []
            for n in range(12):
                fitted = Ridge(alpha=ridge).fit(np.delete(x, n, 0), np.delete(y, n, 0))
                left_out.append(fitted.predict(x[n : n + 1]).reshape(-1))
            wrong = np.argmax(left_out, 1) != y.argmax(1) if classes else np.square(left_out - y)
            errors[ridge] = wrong.mean()
        best = min(errors, key=errors.get)
        chosen.add(best)
        expected = Ridge(alpha=best).fit(x, y).predict(test).reshape(len(test), -1)
        [found] = as_is.probe(*map(torch.from_numpy, (x, y)), [torch.from_numpy(test)])
        assert np.allclose(found, expected)
    assert len(chosen) > 3
    assert as_is.probe(torch.ones(1, 3), torch.ones(1, 1), [torch.zeros(2, 3)])[0].shape == (2, 1)


def test_another_teacher_is_noted_and_one_that_does_not_fit_refused(here, tmp_path):
    other = tiny_encoder(tiny_config(max_position_embeddings=64), seed=9)
    save_pretrained(tmp_path / "other", other, load_pretrained(here / "teacher")[1])
    notes = columns.load_columns(["direct-minilm"], str(tmp_path / "other"))["direct-minilm"].notes
    assert notes[0] == "direct-minilm has 64 positions, so its texts are cut there"
    assert notes[1] == f"direct-minilm learned from another teacher than {tmp_path / 'other'}"
    assert notes[2].startswith("no column for the untrained start of direct-minilm: rebuilt")
    save_pretrained(tmp_path / "roberta", tiny_encoder("roberta"), tiny_tokenizer("roberta"))
    with pytest.raises(UserError, match=r"mha and teacher .* different tokenizers"):
        columns.load_columns(["mha"], str(tmp_path / "roberta"))
    assert list(columns.load_columns(["mha"], "mha")) == ["mha"]  # a run may be its own teacher
    model = columns.load_columns(["mha"])["mha"]
    assert columns.untrained_start(model, [{"settings": {}}]) is None  # a log of another version
    (tmp_path / "killed").mkdir()
    shutil.copy(here / "mha" / "log.jsonl", tmp_path / "killed")
    message = r"killed: .* config.json.* \(an unfinished run\? resume it"
    with pytest.raises(UserError, match=message):
        columns.load_columns([str(tmp_path / "killed")])


@pytest.mark.slow
def test_what_people_bring(here, run, tmp_path, capsys):
    """Another tokenizer, one token type and pairs, surrogates, long inputs, unknown letters."""
    save_pretrained(tmp_path / "roberta", tiny_encoder("roberta"), tiny_tokenizer("xlm-roberta"))
    rows = [["ok HALF bad", "the model", 0], ["the text " * 60, "of a token", 1]] * 4
    hidden = [["the", "a", -1], ["a", "\u0e01\u0e02" * 900, 1]]
    own(tmp_path / "odd", ["text", "text_pair", "label"], [*rows, *hidden], rows)
    for file in (tmp_path / "odd").iterdir():
        file.write_text(file.read_text().replace("HALF", "\\ud83d"))
    flags = ["--epochs", "1", "--teacher", "teacher", "--out", "odd-results"]
    found = run(tmp_path / "roberta", "--tasks", tmp_path / "odd", *flags)["notes"]
    printed, kept = capsys.readouterr().out, (here / "odd-results" / "results.md").read_text()
    for place in (printed, kept, "\n".join(found)):
        assert "note: odd train: 1 of 10 rows have no label and are left out" in place
        assert "WARNING: the tokenizer of teacher does not know " in place


def test_a_terminal_does_not_obey_names_and_labels(capsys):
    evaluate.show("the class \x1b[31mred", "é ± …")
    assert capsys.readouterr().out == "the class \\x1b[31mred\né ± …\n"


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/here")
    names = ("teacher", "tasks", "data-dir", "out")
    config = evaluate.parse_config(["~/run", *(word for n in names for word in (f"--{n}", "~/a"))])
    assert (config.runs, config.tasks) == (["/here/run"], ["/here/a"])
    assert {config.teacher, config.data_dir, config.out} == {"/here/a"}


WRONG = [
    ("--epochs 0", "--epochs is 0; it must be at least 1"),
    ("--tasks mine other/mine", "another task called mine"),
    ("--tasks movies docs", "--tasks docs: neither a folder nor one of movies, topics, claims"),
    ("--tasks cola", "--tasks cola: both a folder and one of .*; for a folder say ./cola"),
    ("./mistyped --tasks movies", r"\./mistyped: no such folder"),
    ("", "works in one process"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG)
def test_what_is_wrong_is_one_line_before_any_work(flags, message, here, monkeypatch):
    for copy in ("other/mine", "cola"):
        shutil.copytree(here / "mine", here / copy, dirs_exist_ok=True)
    monkeypatch.setattr(evaluate, "load_columns", None)
    monkeypatch.setitem(evaluate.NAMED, "movies", None)  # whoever fetches it fails
    if not flags:
        monkeypatch.setattr(evaluate, "world", lambda: 2)
    with pytest.raises(UserError, match=message):
        evaluate.main(["--threads", "1", "teacher", *flags.split()])
