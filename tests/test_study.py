"""The study: its list, the loop that survives kills, the text of many languages, the page."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import ROOT, make_inputs

from distill.study import help_text, rows
from distill.study.__main__ import main, parse_config
from distill.study.rows import Row
from distill.study.run import Study, read_records
from minitransformer.files import UserError

OWN = Row("own-2x32", "mha-L-2", "uniform", 1, 40_960)  # 20 steps


def test_no_row_comes_twice_and_the_core_has_three_seeds_and_two_starts():
    names = [row.name for row in rows.rows()]
    assert len(set(names)) == len(names)
    for method, start, seed in itertools.product(rows.CORE, rows.STARTS, (0, 1, 2)):
        assert f"english-3x384/{method}/{start}/seed-{seed}/0.5M" in names


def config(folder, *words):
    """The command line of a student of one's own, with a teacher of four layers."""
    (folder / "config.json").write_text('{"num_hidden_layers": 4}')
    own = f"run --student 2x32 --teacher {folder} --data docs --tasks movies --folder {folder}/work"
    return parse_config([*own.split(), "--results", f"{folder}/new/results.jsonl", *words])


def test_what_a_user_sets_reaches_train_py(tmp_path):
    words = "--batch 8 --seq-len 64 --nproc 4 --warmup 0.01 --heads 2 --rates 6e-4 hs-uniform=2e-3"
    study = Study(config(tmp_path, *words.split()))
    given = " ".join(study.train_flags(OWN))
    flags = "--teacher-layer 2 --batch-size 2 --steps 80 --warmup 0.01 --student-heads 2 --lr 6e-4"
    flags += " --seed 1 --student-layers 2 --init uniform --save-every 20"
    assert all(flag in given for flag in re.findall(r"--\S+ \S+", flags))
    assert "2e-3" in study.train_flags(Row("own-2x32", "hs-uniform", "first", 1, 40_960))


WRONG = [
    ("list --only english-9x9", "no row's name begins so"),
    ("run --tasks movies", "needs --student, --teacher, --data and --tasks"),
    ("run --student 3x --teacher t --data docs --tasks t", "--student 3x: give LAYERSxWIDTH"),
    ("run --batch 10 --nproc 4", "--batch 10 is not a multiple of --nproc 4"),
    ("run --rates mha=1e-3", "--rates mha: not one of mha-L,"),
    ("list --results {here}/list.jsonl", "list.jsonl: a line is damaged"),
    ("report --results {here}/nowhere.jsonl", "nowhere.jsonl: no record"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_mistake_is_one_line(words, message, tmp_path):
    (tmp_path / "list.jsonl").write_text("[1\n")
    with pytest.raises(UserError, match=message):
        main(words.format(here=tmp_path).split())


class Pretended(Study):
    """Write what train.py and evaluate.py would; `calls` has their command lines."""

    def _call(self, script, *words):
        calls.append([script.rpartition("/")[2], *words])
        out = Path(dict(itertools.pairwise(words))["--out"])
        if "mlm" in words:
            raise UserError("no memory")
        out.mkdir(parents=True, exist_ok=True)
        if script.endswith("train.py"):
            (out / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LOG))
            return
        teacher = words[2]
        scores = {teacher: 0.9, f"{teacher} (first 2 layers)": 0.5, words[0]: 0.7}
        score = {"task": "movies", "metric": "accuracy"}
        scored = [{"model": model, **score, "values": [v]} for model, v in scores.items()]
        (out / "results.json").write_text(json.dumps({"rows": scored}))


calls = []
SETTINGS = {"lr": 1e-3, "batch_size": 16, "accumulate": 1, "seq_len": 128, "steps": 2}
SETTINGS |= {"warmup": 0.1, "precision": "fp32"}
FACTS = {"commit": "0" * 40, "machine": "here", "versions": {}}
START = {"event": "start", "settings": SETTINGS, "sequences_a_step": 16, **FACTS}
START |= {"start": {"layers": [1, 2]}, "text": [{"tokens": 9}]}
LOG = [START, *[{"event": "step", "tokens_per_s": 2048}] * 2]
LOG += [{"event": "eval", "step": 2, "loss": 0.5}, {"event": "summary"}]


@pytest.fixture
def study(tmp_path):
    calls.clear()
    return Pretended(config(tmp_path))


def test_a_row_leaves_one_record_and_no_weights_and_is_not_run_again(study, tmp_path, capsys):
    after, fails = (Row("own-2x32", method, "first", 0, 4096) for method in ("od-after-hs", "mlm"))
    assert study.run([fails, OWN, after]) == 1  # a failed row is passed over
    assert "failed, their messages stand above: own-2x32/mlm/first" in capsys.readouterr().out
    teacher, cut, own, last = read_records(study.config.results)
    assert (teacher["row"], cut["row"]) == ("own-2x32/teacher", "own-2x32/cut-off teacher")
    assert own["scores"] == {"movies accuracy": [0.7]}
    assert own["tokens_read"] == 4096
    assert str(tmp_path) not in study.config.results.read_text()
    (hs, od) = [words for words in calls if "od-after-hs" in words[2] and "--steps" in words]
    assert "--mapping" in hs
    assert od[od.index("--init") + 1] == hs[2]  # the student that it starts from
    assert last["method"] == "od-after-hs"
    assert not list(study.folder.rglob("log.jsonl"))
    calls.clear()
    assert study.run([OWN, after]) == 0
    assert not calls
    assert Pretended(config(tmp_path, "--teacher", "minilm")).run([OWN]) == 1
    assert "has it with another teacher; name other --results" in capsys.readouterr().out


@pytest.mark.parametrize(("lines", "resumes"), [(0, False), (2, True)])
def test_a_training_that_was_killed_is_resumed_or_begins_again(lines, resumes, study):
    run = study.folder / OWN.name / OWN.method
    run.mkdir(parents=True)
    log = "".join(json.dumps(record) + "\n" for record in LOG[:lines]) + '{"torn'
    (run / "log.jsonl").write_text(log)
    assert study.run([OWN]) == 0
    assert ("--resume" in calls[0]) == resumes


def test_a_row_that_another_process_runs_is_left_to_it(study, capsys):
    free = Row("own-2x32", "hs-uniform", "first", 0, 4096)
    file = study.folder / "locks" / OWN.name.replace("/", " ")
    file.parent.mkdir(parents=True)
    with FileLock(file):
        assert study.run([OWN, free]) == 0
    assert f"another process runs {OWN.name}" in capsys.readouterr().out
    assert study.run([OWN, free]) == 0
    names = [record["row"] for record in read_records(study.config.results)]
    assert names[2:] == [free.name, OWN.name]


PAGE = '<h1 id="hd_id1">T</h1><p id="par_id1">One <b>bold</b>\n  &amp; word.</p><p>no id</p>{}'


def test_paragraphs_are_joined_by_page_and_id_and_those_left_in_english_are_none(tmp_path):
    texts = {"en-us": '<p id="par_id2">Save</p>', "de": '<p id="par_id2">Speichern</p>'}
    found = {}
    for language, text in texts.items():
        (tmp_path / language).mkdir()
        for page, more in (("a", text), ("b", "")):  # the same paragraph on a second page
            (tmp_path / language / f"{page}.html").write_text(PAGE.format(more))
        found[language] = help_text.read_pages(tmp_path / language)
    english = help_text.different(found["en-us"], None)
    assert english == {"a.html#par_id1": "One bold & word.", "a.html#par_id2": "Save"}
    assert help_text.different(found["de"], english) == {"a.html#par_id2": "Speichern"}


def test_retrieval_reads_held_out_pages_and_counts_the_translations_that_are_nearest(monkeypatch):
    english = {
        f"{n}.html#1": f"A paragraph, which is long enough to be read, {n}" for n in range(99)
    }
    german = {key: f"Absatz {key[:-7]}" for key in english if not key.startswith("1")}
    texts = {"en-us": english, "de": german}
    ((queries, candidates),) = help_text.retrieval_sets(texts).values()
    kept = [key for key in english if help_text.held_out(key)]
    assert sorted(candidates) == sorted(english[key] for key in kept)
    assert sorted(queries) == sorted(german[key] for key in kept if key in german)

    def vectors(model, texts, device):  # a translation is its English paragraph, but for two
        angles = torch.tensor([int(text.split()[-1]) for text in texts]) / 99
        angles = angles + 3 * torch.tensor([text in queries[:2] for text in texts])
        return torch.stack([angles.cos(), angles.sin()], dim=-1)

    monkeypatch.setattr(help_text, "ASKED", ("de",))
    monkeypatch.setattr(help_text, "paragraphs", lambda folder, name: texts[name])
    monkeypatch.setattr(help_text, "load_columns", lambda *_: {"student": None})
    monkeypatch.setattr(help_text, "sentence_vectors", vectors)
    (share,) = help_text.retrieval("run", "teacher", Path())["student"]["help retrieval de"]
    assert share == pytest.approx(1 - 2 / len(queries))


def made_up(student, method, seed, score):
    tasks = ("reviews",) if student.startswith("m") else ("movies", "topics")
    pair = [score, score + 0.01]
    scores = {f"{task} {name}": pair for task in tasks for name in ("accuracy", "accuracy de")}
    if student.startswith("m"):
        scores |= {f"help retrieval{part}": [score] for part in ("", " de", " tr")}
    record = {"row": f"{student}/{method}", "student": student, "method": method, "scores": scores}
    if seed is None:
        return {**record, "commit": "0" * 40}
    run = {"layers": [1, 2, 3], "text_tokens": 9e6, "curve": [[0, 2.0], [2, 0.5]], "tokens": 5e5}
    return {**record, **FACTS, **run, "settings": SETTINGS, "seed": seed}


def test_the_page_compares_with_the_cut_off_teacher_and_names_who_is_above_the_teacher(tmp_path):
    models = [("teacher", None, 0.9), ("cut-off teacher", None, 0.5), ("mlm", 0, 0.95)]
    models += [("od", 0, 0.7), ("od", 1, 0.72)]
    students = (rows.ENGLISH, rows.MULTILINGUAL)
    records = [json.dumps(made_up(student, *model)) for student in students for model in models]
    (tmp_path / "r.jsonl").write_text("\n".join(records))
    (tmp_path / "study").mkdir()
    template = "<!-- table -->\n<!-- sections -->\n<!-- commits -->"
    (tmp_path / "study/page.md").write_text(template)
    main(f"report --results {tmp_path}/r.jsonl --page {tmp_path}/study.md".split())
    page = re.sub(" +", " ", (tmp_path / "study.md").read_text())
    # differences of 0.20 and 0.22 in two seeds: mean 0.21, standard error 0.01
    assert "| `od from 1,2,3` | 71.5 ± 1.0 | 71.5 ± 1.0 | +21.0 ± 1.0 | 2.000 → 0.500 | 2 |" in page
    assert "Above the teacher: `mlm from 1,2,3` on movies by 5.0, `mlm" in page
    assert "| `od from 1,2,3` | 71.0 | 71.0 | 71 | 71 |" in page  # seen, kept out, de, tr
    assert page.endswith("\n000000000000")
    for picture in ("ranking", "tokens", "languages"):
        assert (tmp_path / "study" / f"{picture}.png").stat().st_size > 1000


FULL_SCALE = (ROOT / "docs/full_scale.md").read_text()
COMMANDS = re.findall(r"^python -m distill.study (run .*)$", FULL_SCALE, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_full_scale_command_trains_two_steps_of_a_tiny_stand_in(number, folder):
    """Teacher, text, tasks, width, tokens and processes are replaced; all else is as printed."""
    make_inputs(folder, num_hidden_layers=12, max_position_embeddings=520)
    lines = "".join(f'{{"text": "{word}", "label": "{word}"}}\n' for word in ("the", "of") * 8)
    (folder / "task").mkdir()
    for split in ("train", "dev"):
        (folder / f"task/{split}.jsonl").write_text(lines)
    command = re.sub(r"--data \S+", "", COMMANDS[number])
    layers, method = re.search(r"--student (\d+)x", command)[1], re.search(r"/(.*?)/", command)[1]
    command += f" --teacher teacher --data web=text.txt --tasks task --tokens {2 * 256 * 512}"
    command += f" --student {layers}x16 --heads 2 --only own-{layers}x16/{method}/*/seed-0"
    command += " --start embeddings --nproc 2 --results new.jsonl"
    assert main(shlex.split(command)) == 0
    *_, record = read_records(Path("new.jsonl"))
    assert len(record["curve"]) == 3
