"""The study: its list, the loop that survives kills, the text of many languages, the page."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, environment, kill, make_inputs, steps_of, wait_for

from distill.study import help_text, rows
from distill.study.__main__ import main, parse_config
from distill.study.rows import Row
from distill.study.run import Study, read_records
from minitransformer.files import UserError

OWN = Row("own-2x32", "mha-L-2", "uniform", 1, 40_960)  # 20 steps


# ---- the list and the flags ----------------------------------------------------------------------


def test_no_row_comes_twice_and_the_core_has_three_seeds_and_two_starts_at_each_method():
    names = [row.name for row in rows.rows()]
    assert len(set(names)) == len(names)
    for method, start, seed in itertools.product(rows.CORE, rows.STARTS, (0, 1, 2)):
        assert f"english-3x384/{method}/{start}/seed-{seed}/0.5M" in names
    assert all(row.start == rows.rows()[0].start for row in rows.rows()[: len(rows.CORE)])


def config(folder, *words):
    """The command line of a student of one's own, with a teacher of four layers."""
    (folder / "config.json").write_text('{"num_hidden_layers": 4}')
    own = f"run --student 2x32 --teacher {folder} --data docs --tasks movies --folder {folder}/work"
    return parse_config([*own.split(), "--results", f"{folder}/new/results.jsonl", *words])


def test_what_a_user_sets_reaches_train_py(tmp_path):
    words = "--batch 8 --seq-len 64 --nproc 4 --warmup 0.01 --heads 2 --rates 6e-4 hs-uniform=2e-3"
    study = Study(config(tmp_path, *words.split()))
    flags = "--teacher-layer 2 --batch-size 2 --steps 80 --warmup 0.01 --student-heads 2 --lr 6e-4"
    flags += " --seed 1 --student-layers 2 --init uniform --save-every 20"
    given = " ".join(study.train_flags(OWN))
    assert all(flag in given for flag in re.findall(r"--\S+ \S+", flags))
    assert "2e-3" in study.train_flags(Row("own-2x32", "hs-uniform", "first", 1, 40_960))


WRONG = [
    ("list --only english-9x9", "no row's name begins so"),
    ("run --tasks movies", "needs --student, --teacher, --data and --tasks"),
    ("run --student 3x --teacher t --data docs --tasks t", "--student 3x: give LAYERSxWIDTH"),
    ("run --student 3x384 --data docs --tasks t", "needs --student, --teacher"),
    ("run --batch 10 --nproc 4", "--batch 10 is not a multiple of --nproc 4"),
    ("run --rates mha=1e-3", "--rates mha: not one of mha-L,"),
    ("list --results {here}/list.jsonl", "list.jsonl: a line is damaged"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_mistake_is_one_line(words, message, tmp_path):
    (tmp_path / "list.jsonl").write_text("[1\n")
    with pytest.raises(UserError, match=message):
        main(words.format(here=tmp_path).split())


# ---- the loop, with processes that only pretend --------------------------------------------------


class Pretended(Study):
    """Write what train.py and evaluate.py would; `calls` has their command lines."""

    def _call(self, script, *words):
        calls.append([script.rpartition("/")[2], *words])
        out = Path(dict(itertools.pairwise(words))["--out"])
        if "mlm" in words:
            raise UserError("no memory")
        write = write_evaluation if script.endswith("evaluate.py") else write_run
        write(out, words)


calls = []


def write_run(out, words):
    settings = {"lr": 1e-3, "batch_size": 16, "accumulate": 1, "seq_len": 128, "steps": 2}
    start = {"event": "start", "settings": {**settings, "warmup": 0.1, "precision": "fp32"}}
    start |= {"sequences_a_step": 16, "start": {"layers": [1, 2]}, "text": [{"tokens": 9}]}
    start |= {"commit": "0" * 40, "machine": "here", "versions": {}}
    steps = [{"event": "step", "tokens_per_s": 2048}] * 2
    log = [start, *steps, {"event": "eval", "step": 2, "loss": 0.5}, {"event": "summary"}]
    out.mkdir(parents=True)
    (out / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))


def write_evaluation(out, words):
    teacher = words[2]
    scores = {teacher: 0.9, f"{teacher} (first 2 layers)": 0.5, words[0]: 0.7}
    score = {"task": "movies", "metric": "accuracy"}
    scored = [{"model": name, **score, "values": [value]} for name, value in scores.items()]
    out.mkdir()
    (out / "results.json").write_text(json.dumps({"rows": scored}))


@pytest.fixture
def study(tmp_path):
    calls.clear()
    return Pretended(config(tmp_path))


def test_a_row_leaves_one_record_and_no_weights_and_is_not_run_again(study, capsys):
    after, fails = (Row("own-2x32", method, "first", 0, 4096) for method in ("od-after-hs", "mlm"))
    assert study.run([fails, OWN, after]) == 1  # a failed row is passed over
    assert "failed, their messages stand above: own-2x32/mlm/first" in capsys.readouterr().out
    teacher, cut, own, last = read_records(study.config.results)
    assert (teacher["row"], cut["row"]) == ("own-2x32/teacher", "own-2x32/cut-off teacher")
    assert own["scores"] == {"movies accuracy": [0.7]}
    assert own["tokens_read"] == 4096
    assert str(study.folder.parent) not in study.config.results.read_text()
    (hs, od) = [words for words in calls if "od-after-hs" in words[2] and "--steps" in words]
    assert "--mapping" in hs
    assert od[od.index("--init") + 1] == hs[2]  # the student that it starts from
    assert last["method"] == "od-after-hs"
    assert not list(study.folder.rglob("log.jsonl"))
    calls.clear()
    assert study.run([OWN, after]) == 0
    assert not calls


def test_a_row_that_was_run_with_another_teacher_is_refused(study, tmp_path, capsys):
    study.run([OWN])
    assert Pretended(config(tmp_path, "--teacher", "minilm")).run([OWN]) == 1
    assert "has it with another teacher; name other --results" in capsys.readouterr().out


def test_a_row_that_another_process_runs_is_left_to_it(study, capsys):
    free = Row("own-2x32", "hs-uniform", "first", 0, 4096)
    file = study.folder / "locks" / OWN.name.replace("/", " ")
    file.parent.mkdir(parents=True)
    program = (
        f"import filelock\nwith filelock.FileLock({str(file)!r}):\n    print(flush=True), input()"
    )
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe)
    other.stdout.readline()
    assert study.run([OWN, free]) == 0
    assert f"another process runs {OWN.name}" in capsys.readouterr().out
    kill(other)  # a killed process holds no lock
    assert study.run([OWN, free]) == 0
    names = [record["row"] for record in read_records(study.config.results)]
    assert names[2:] == [free.name, OWN.name]


# ---- languages -----------------------------------------------------------------------------------

PAGE = '<h1 id="hd_id1">T</h1><p id="par_id1">One <b>bold</b>\n  word.</p><p>no id</p>{}'


def test_paragraphs_are_joined_by_page_and_id_and_those_left_in_english_are_none(tmp_path):
    texts = {"en-us": '<p id="par_id2">Save</p>', "de": '<p id="par_id2">Speichern</p>'}
    found = {}
    for language, text in texts.items():
        (tmp_path / language).mkdir()
        for page, more in (("a", text), ("b", "")):  # the same paragraph on a second page
            (tmp_path / language / f"{page}.html").write_text(PAGE.format(more))
        found[language] = help_text.read_pages(tmp_path / language)
    english = help_text.different(found["en-us"], None)
    assert english == {"a.html#par_id1": "One bold word.", "a.html#par_id2": "Save"}
    assert help_text.different(found["de"], english) == {"a.html#par_id2": "Speichern"}


def test_retrieval_reads_held_out_pages_and_counts_the_translations_that_are_nearest(monkeypatch):
    def text(key, word="Paragraph"):
        return f"{word}, which is long enough to be read, {key.partition('.')[0]}"

    english = {f"{n}.html#1": text(f"{n}.") for n in range(99)}
    german = {key: text(key, "Absatz") for key in english if not key.startswith("1")}
    texts = {"en-us": english, "de": german}
    ((queries, candidates),) = help_text.retrieval_sets(texts).values()
    kept = [key for key in english if help_text.held_out(key)]
    assert sorted(candidates) == sorted(english[key] for key in kept)
    assert sorted(queries) == sorted(german[key] for key in kept if key in german)

    def vectors(model, texts, device):  # a translation is its English paragraph, but for two
        angles = torch.tensor([int(text.split()[-1]) for text in texts]) / 99
        wrong = torch.tensor([text in queries[:2] for text in texts])
        angles = angles + 3 * wrong
        return torch.stack([angles.cos(), angles.sin()], dim=-1)

    monkeypatch.setattr(help_text, "ASKED", ("de",))
    monkeypatch.setattr(help_text, "paragraphs", lambda folder, name: texts[name])
    monkeypatch.setattr(help_text, "load_columns", lambda *_: {"student": None})
    monkeypatch.setattr(help_text, "sentence_vectors", vectors)
    (share,) = help_text.retrieval("run", "teacher", Path())["student"]["help retrieval de"]
    assert share == pytest.approx(1 - 2 / len(queries))


# ---- real processes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_in_training_and_in_evaluation_it_resumes_and_runs_no_row_twice(tmp_path):
    make_inputs(tmp_path, max_position_embeddings=140)
    (tmp_path / "task").mkdir()
    for split in ("train", "dev"):
        rows = [{"text": f"the {'text' if n % 2 else 'model'}", "label": n % 2} for n in range(64)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "task" / f"{split}.jsonl").write_text(lines)
    flags = "--student 2x32 --teacher teacher --data web=text.txt --tasks task --tokens 40960"
    flags += " --only own-2x32/hs-uniform/uniform/seed-0 --folder work"
    command = [sys.executable, "-m", "distill.study", "run", *flags.split()]
    run = tmp_path / "work/own-2x32/hs-uniform/uniform/seed-0/0.04096M/hs-uniform"

    def start():
        settings = environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        form = {"stdout": pipe, "text": True, "start_new_session": True}
        return subprocess.Popen(command, cwd=tmp_path, env=settings, **form)

    for stage in (lambda: steps_of(run) >= 5, lambda: list(tmp_path.rglob("finetune/*.json"))):
        study = start()
        assert wait_for(study, stage)
        os.killpg(study.pid, signal.SIGKILL)
        study.communicate()
    study = start()
    output = study.communicate()[0]
    assert study.returncode == 0
    assert "train.py" not in output  # the training was finished
    *_, record = read_records(tmp_path / "results/study.jsonl")
    assert record["tokens_read"] == 40_960
    assert record["curve"][-1][0] == 20
    study = start()
    assert "==" not in study.communicate()[0]
