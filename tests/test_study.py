"""The study: its list, the loop that survives kills, the text of many languages, the page."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT, make_inputs

from distill.study import help_text
from distill.study.__main__ import main, parse_config
from distill.study.report import KEPT, Section, values
from distill.study.rows import ENGLISH, Row
from distill.study.run import KEPT_SETTINGS, Study, append, read_records
from minitransformer.files import UserError

PRINTED, RECORDS = (ROOT / "docs/full_scale.md").read_text(), ROOT / "docs/study/results.jsonl"
OWN = Row("own-2x32", "mha-L-2", "uniform", 1, 40_960)  # 20 steps


def config(folder, *words):
    (folder / "config.json").write_text('{"num_hidden_layers": 4}')
    own = f"run --student 2x32 --teacher {folder} --data docs --tasks movies --folder {folder}/work"
    return parse_config([*own.split(), "--results", f"{folder}/new/results.jsonl", *words])


def test_what_a_user_sets_reaches_train_py(tmp_path):
    words = "--batch 8 --seq-len 64 --nproc 4 --warmup 0.01 --heads 2 --rates 6e-4 hs-uniform=2e-3"
    study = Study(config(tmp_path, *words.split()))
    given = " ".join(study.train_flags(OWN))
    flags = "--teacher-layer 2 --batch-size 2 --steps 80 --warmup 0.01 --student-heads 2 --lr 6e-4"
    assert all(flag in given for flag in re.findall(r"--\S+ \S+", flags))
    assert "2e-3" in study.train_flags(Row("own-2x32", "hs-uniform", "first", 1, 40_960))


WRONG = [
    ("list --only english-9x9", "no row's name begins so"),
    ("list --tasks movies", "need --student, --teacher, --data and --tasks"),
    ("list --student 3x --teacher t --data docs --tasks t", "--student 3x: give LAYERSxWIDTH"),
    ("list --tokens 5", "need --student, --teacher, --data and --tasks"),
    ("list --batch 10 --nproc 4", "--batch 10 is not a multiple of --nproc 4"),
    ("list --rates mha=1e-3", "--rates mha: not one of mha-L,"),
    ("list --results {here}/list.jsonl", "list.jsonl: a line is damaged"),
    ("report --results {here}/nowhere.jsonl", "nowhere.jsonl: no record"),
    ("report --results {here}/list.jsonl", "list.jsonl: a line is damaged"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_mistake_is_one_line(words, message, tmp_path):
    (tmp_path / "list.jsonl").write_text("[1\n" if words.startswith("list") else '{"row": 1}\n')
    with pytest.raises(UserError, match=message):
        main(words.format(here=tmp_path).split())


class Pretended(Study):  # without train.py and evaluate.py
    def _call(self, script, *words):
        calls.append(words)
        if "--out" not in words:  # the teacher alone, before a row of one's own
            return
        out = Path(dict(itertools.pairwise(words))["--out"])
        if "mlm" in words:
            raise UserError("no memory")
        out.mkdir(parents=True, exist_ok=True)
        student = 0.95 if "hs-single" in words[0] else 0.70 + 0.02 * ("seed-1" in words[0])
        scores = {words[2]: 0.9, f"{words[2]} (first 2 layers)": 0.5, words[0]: student}
        scored = []
        for (model, value), name in itertools.product(scores.items(), METRICS):
            task, metric = name.split(" ", 1)
            scored.append({"model": model, "task": task, "metric": metric, "values": [value] * 2})
        found = {"rows": scored, "tasks": TASKS, "hashes": dict.fromkeys(scores, "1")}
        (out / "results.json").write_text(json.dumps(found))
        (out / "log.jsonl").write_text(log())


calls, TASKS = [], {"reviews": "a"}
METRICS = "accuracy/accuracy de/accuracy ja/probe accuracy/retrieval accuracy".split("/")
METRICS = [f"reviews {n}" for n in (*METRICS, "retrieval accuracy de", "retrieval accuracy ja")]
SETTINGS = dict.fromkeys(KEPT_SETTINGS, 1) | {"seq_len": 128}
START = {"event": "start", "settings": SETTINGS, "teacher": None, "versions": {}}
TEXT = {"tokens": 9, "hash": "t"}
START |= {"start": {"layers": [1, 2]}, "text": [TEXT], "commit": None, "machine": ""}
EVALS = [{"event": "eval", "step": step, "loss": loss} for step, loss in ((0, 2.0), (2, 0.5))]
START_NAME = "untrained start from 1,2"
LOG = [START, *[{"event": "step"}] * 2, *EVALS, {"event": "summary"}]


def log(lines=None):
    return "".join(json.dumps(record) + "\n" for record in LOG[:lines])


@pytest.fixture
def study(tmp_path):
    calls.clear()
    return Pretended(config(tmp_path))


def test_a_row_leaves_one_record_and_weights_of_ones_own_and_is_not_run_again(
    study, tmp_path, capsys
):
    after, fails = (Row("own-2x32", method, "first", 0, 4096) for method in ("od-after-hs", "mlm"))
    assert study.run([fails, OWN, after]) == 1  # a failed row is passed over
    assert "failed, their messages stand above: own-2x32/mlm/first" in capsys.readouterr().out
    teacher, cut, own, _ = read_records(study.config.results)
    assert (teacher["row"], cut["row"]) == ("own-2x32/teacher", "own-2x32/cut-off teacher")
    assert own["scores"]["reviews accuracy"] == [0.72, 0.72]
    assert str(tmp_path) not in study.config.results.read_text()
    (hs, od) = [words for words in calls if "od-after-hs" in words[1] and "--steps" in words]
    assert "--mapping" in hs
    assert od[od.index("--init") + 1] == hs[1]  # the student that it starts from
    assert list((study.folder / OWN.name).rglob("log.jsonl"))  # one's own stay
    study.config.results.write_text(study.config.results.read_text().rstrip())  # by an editor
    append(study.config.results, own | {"row": "english-2x32/od\u2028", "student": "english-2x32"})
    assert study.run([Row("english-2x32", "hs-single", "first", 0, 4096)]) == 0
    assert not list((study.folder / "english-2x32").rglob("log.jsonl"))
    before = len(calls)
    assert (study.run([OWN, after]), len(calls)) == (0, before)
    assert Pretended(config(tmp_path, "--teacher", f"elsewhere/{tmp_path.name}")).run([OWN]) == 1
    assert "has another teacher; use other --results" in capsys.readouterr().out
    elsewhere = config(tmp_path, "--rates", "9e-4", "--results", f"{tmp_path}/other.jsonl")
    assert Pretended(elsewhere).run([OWN]) == 0
    assert len({words[1] for words in calls if OWN.name in words[1]}) == 2  # is trained anew
    other = Row("own-2x32", "hs-last", "first", 0, 4096)  # nor may two rows have two teachers
    assert Pretended(config(tmp_path, "--teacher", "other/teacher")).run([other]) == 1
    assert Pretended(config(tmp_path, "--ffn", "7")).run([other]) == 1  # or other sizes
    TEXT["hash"] = "u"  # nor two texts
    assert study.run([other]) == 1
    assert f"{OWN.name} read another text" not in (said := capsys.readouterr().out)  # more tokens
    assert f"{after.name} read another text; use other --results" in said
    TEXT["hash"] = "t"
    TASKS["reviews"] = "b"  # its files were edited: the references are of other examples
    assert study.run([other]) == 1
    assert "teacher or tasks of own-2x32/teacher have changed" in capsys.readouterr().out
    TASKS["reviews"] = "a"
    assert study.run([other]) == 0  # its training was kept


def test_untrained_starts_are_recorded_by_their_layers(study, monkeypatch):
    roles = "teacher", "untrained start", "student"
    found = {role: {"reviews accuracy": [0.5]} for role in roles}
    monkeypatch.setattr(study, "_evaluate", lambda row, run: ([], dict(found)))
    after, hs = (Row("own-2x32", name, "first", 0, 4096) for name in ("od-after-hs", "hs-single"))
    for row, more in ((after, ["teacher", after.name[9:]]), (hs, [hs.name[9:], START_NAME])):
        before = len(read_records(study.config.results))
        assert study.run([row]) == 0
        records = read_records(study.config.results)[before:]
        assert [record["row"] for record in records] == [f"own-2x32/{name}" for name in more]


@pytest.mark.parametrize(("lines", "resumes"), [(0, False), (2, True)])
def test_a_training_that_was_killed_is_resumed_or_begins_again(lines, resumes, study):
    run = study._train_student(OWN)
    (run / "log.jsonl").write_text(log(lines) + '{"torn')
    assert (study.run([OWN]), "--resume" in calls[2]) == (0, resumes)  # after --tasks
    assert {"--steps", "--accumulate"} <= {*calls[2]}  # so that train.py refuses what has changed


def test_a_row_that_another_process_runs_is_left_to_it(study, capsys):
    free = Row("own-2x32", "hs-uniform", "first", 0, 4096)
    with study._lock(OWN.name):
        assert study.run([OWN, free]) == 0
    assert f"another process runs {OWN.name}" in capsys.readouterr().out
    assert study.run([OWN, free]) == 0
    assert [r["row"] for r in read_records(study.config.results)[2:]] == [free.name, OWN.name]


PAGE = '<h1 id="hd_id1">T</h1><p id="par_id1">One <b>bold</b>\n  &amp; word.</p><p>no id</p>{}'


def test_the_help_of_a_language_has_each_paragraph_once_and_none_left_in_english(
    tmp_path, monkeypatch
):
    def unpack(command, check):  # in place of dpkg -x PACKAGE FOLDER
        language = command[2].name
        more = {"en-us": "Save", "de": "Speichern"}[language]
        for page, text in (("a", more), ("b", more), ("c", "")):  # the same on two pages
            paragraph = f'<p id="par_id2">{text}</p>'
            Path(command[3], f"{page}.html").write_text(PAGE.format(paragraph))

    monkeypatch.setattr(help_text.subprocess, "run", unpack)
    monkeypatch.setattr(help_text, "package", lambda folder, language: folder / language)
    texts = [help_text.training_text(tmp_path, name).read_text() for name in ("en-us", "de")]
    assert texts == ["One bold & word.\nSave\n", "Speichern\n"]


def test_the_page_compares_with_the_cut_off_teacher_and_names_who_is_above_the_teacher(study):
    study.run([Row("own-2x32", "od", "first", seed, 4096) for seed in (0, 1)])
    study.run([Row("own-2x32", "hs-single", "first", 0, 4096)])
    results, folder = study.config.results, study.folder  # of pictures, beside its page
    results.write_text(2 * results.read_text().replace("own-", "multilingual-"))  # joined files
    (folder / "page.md").write_text("<!-- sections -->\n<!-- commits -->")
    main(f"report --results {results} --page {folder}.md".split())
    page = re.sub(" +", " ", Path(f"{folder}.md").read_text())
    scores = "71.0 ± 1.0 (+21.0 ± 1.0) | 71.0 ± 1.0 | 71.0 ± 1.0"
    row = f"| `od from 1,2` | {scores} | 2.000 → 0.500 | 2 |"
    assert page.count(row) == 1  # 0.20 and 0.22 above
    assert page.count("| `hs-single from 1,2` |") == 3  # in the section and two tables of languages
    assert "In parentheses: the difference to `cut-off teacher`." in page
    assert "Above the teacher in reviews: `hs-single from 1,2` by 5.0; in reviews probe: " in page
    assert page.endswith("no commit")  # an unpacked archive has none
    assert "| reviews retrieval accuracy | distilled on | kept out | de | ja |" in page
    assert str(values([{"method": "hs", "scores": {}}], KEPT)) == "[nan]"  # not a teacher's 100 %
    assert {f.name for f in folder.glob("*.png")} == {"ranking.png", "languages-0.004096M.png"}
    study.run([Row("own-2x32", "hs-single", "first", 0, 8192)])
    lacking = results.read_text().replace('"reviews probe accuracy": [0.95, 0.95]', '"other": [0]')
    results.write_text(lacking.replace("own-", "multilingual-"))
    main(f"report --results {results} --page {folder}.md".split())
    assert (folder / "tokens.png").exists()


def test_a_row_starts_from_a_copy_of_its_own_teacher():
    english = [r for r in read_records(RECORDS) if r["student"] == ENGLISH]
    section = Section(english, ENGLISH, 0.5e6)
    assert section.start("mha-L-2 from 1,2,3") == "cut-off teacher"
    assert section.start("od from 1,4,6") == "untrained start with MLM head from 1,4,6"
    (trained,) = {section.start(name) for name in section.rows} - section.models.keys()
    no_copy = "untrained start with MLM head from uniform", "nan"  # of od-after-hs
    assert (trained, str(section.view(trained, KEPT)[0])) == no_copy
    bare = Section([r for r in english if "cut-off" not in r["method"]], ENGLISH, 0.5e6)
    assert bare.baseline("mha-L-2 from 1,3,4") == bare.start("mha-L-2 from 1,3,4")


COMMANDS = re.findall(r"(?<=^python -m distill.study )run .*", PRINTED, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_full_scale_command_trains_two_steps_of_a_tiny_stand_in(number, folder, monkeypatch):
    monkeypatch.setattr(Study, "_evaluate", lambda *_: ([], {"student": {}}))
    make_inputs(folder, num_hidden_layers=12)
    command = re.sub(r"--data \S+|--tasks \S+( --data-dir \S+)?", "", COMMANDS[number])
    layers, method = re.search(r"own-(\d+)x\d+/(.*?)/", command).groups()
    command += " --teacher teacher --tasks none --data web=text.txt --start embeddings --batch 4"
    command += f" --student {layers}x16 --heads 2 --only own-{layers}x16/{method}/*/seed-0"
    command += f" --seq-len 16 --tokens 128 --nproc {2 - min(number, 1)}"
    assert main(shlex.split(command)) == 0
    assert read_records(max(folder.glob("results/*.jsonl")))[0]["settings"]["steps"] == 2
