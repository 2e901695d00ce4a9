"""The study: units in order, records that survive kills, differences, the page, the languages."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch
from conftest import save_tiny
from helpers import ROOT, environment, kill, make_inputs, steps_of, wait_for

from distill.study import help_text, multilingual, units
from distill.study.__main__ import main
from distill.study.compare import Comparison, Difference
from distill.study.records import Records
from distill.study.report import judge, measured_speeds, write_report
from distill.study.run import Failed, OutOfTime, Study
from distill.study.units import Student, Unit
from minitransformer import load_pretrained, weights_hash
from minitransformer.files import UserError

STUDENT = Student("own", 2, 32, 40_960, 4_000)  # 20 steps


# ---- units and records ---------------------------------------------------------------------------


def test_the_plan_has_the_teacher_and_the_pilot_first_and_no_unit_twice():
    names = [unit.name for unit in units.plan(1.0, rates=False)]
    assert names[:5] == [
        "english/teacher/500",
        "english-3x384/mha-L-1/seed-0/2M",
        "english-3x384/hs-uniform/seed-0/2M",
        "english-3x384/mha-L-1/seed-1/2M",
        "english-3x384/hs-uniform/seed-1/2M",
    ]
    assert len(set(names)) == len(names)
    for method in units.ALL:  # three seeds for the main student, two for the others
        seeds = {
            student: sum(name.startswith(f"english-{student}/{method}/seed") for name in names)
            for student in ("3x384", "4x192", "2x384")
        }
        assert seeds == {"3x384": 3, "4x192": 2, "2x384": 2}


def test_a_search_for_the_learning_rate_comes_before_its_units_and_is_a_quarter_as_long():
    names = [unit.name for unit in units.plan(0.5, rates=True, only="english-2x384/od-after-hs")]
    searches = [f"english-2x384/{method}/rates/0.25M" for method in ("hs-uniform", "od")]
    assert names[1:4] == [*searches, "english-2x384/od-after-hs/seed-0/1M"]
    with pytest.raises(UserError, match="english-9x9"):
        units.plan(1.0, rates=True, only="english-9x9")


def test_a_second_phase_costs_as_much_again_or_shares_the_tokens():
    after = Unit(STUDENT, "od-after-hs", 1, 40_960)
    assert after.first == Unit(STUDENT, "hs-uniform", 1, 40_960)
    shared = Unit(STUDENT, "mha-after-hs", 1, 40_960)
    assert shared.steps == shared.first.steps == 10


def test_a_line_cut_short_by_a_kill_is_no_record_and_goes_at_the_next_append(tmp_path, capsys):
    records = Records(tmp_path / "study" / "results.jsonl")
    records.append({"unit": "a"})
    with open(records.file, "ab") as file:
        file.write(b'{"unit": "b", "sc')
    assert records.read() == [{"unit": "a"}]
    records.append({"unit": "c"})
    assert "cut short" in capsys.readouterr().out
    assert records.read() == [{"unit": "a"}, {"unit": "c"}]
    with pytest.raises(UserError, match="has a record of a already"):
        records.append({"unit": "a"})


# ---- running, with processes that only pretend ---------------------------------------------------


class Pretended(Study):
    """Write what train.py and evaluate.py would: the loss is 1000 x the distance from 6e-4."""

    def _call(self, script, *words):
        calls.append(words)
        flags = dict(itertools.pairwise(words))
        out = Path(flags["--out"])
        if script.endswith("evaluate.py"):
            write_evaluation(out, words[0], 0.7)
            return
        rate = float(flags.get("--lr", 6e-4))
        write_run(out, rate, int(flags["--steps"]), 1000 * abs(rate - 6e-4) + 0.1)


calls = []


def write_run(folder, rate, steps, loss):
    settings = {"lr": rate, "seq_len": 128, "batch_size": 16, "precision": "fp32", "data": ["docs"]}
    start = {"event": "start", "settings": settings, "sequences_a_step": 16, "machine": "here"}
    start |= {"text": [{"tokens": 9}], "commit": "0" * 40, "start": {"layers": [1, 2]}}
    start["teacher"] = None
    log = [start, {"event": "eval", "step": 0, "loss": 1.0}]
    log += [{"event": "step", "tokens_per_s": 2048}] * steps
    log += [{"event": "eval", "step": steps, "loss": loss}, {"event": "summary"}]
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))


def write_evaluation(folder, run, score):
    models = {"teacher": 0.9, f"{run} (start)": 0.5, run: score}
    rows = [
        {"model": model, "task": task, "metric": "accuracy", "values": [value], "chance": 0.5}
        for model, value in models.items()
        for task in ("docs-order", "docs-next")
    ]
    facts = [{"model": model, "latency_ms": {"1 x 128": {"median": 5.0}}} for model in models]
    folder.mkdir(parents=True, exist_ok=True)
    results = {"rows": rows, "models": facts, "settings": {"seeds": 1}}
    (folder / "results.json").write_text(json.dumps(results))


def pretended(folder, rates=True):
    calls.clear()
    (folder / "teacher").mkdir(exist_ok=True)
    (folder / "teacher" / "config.json").write_text('{"num_hidden_layers": 4}')
    records = Records(folder / "results.jsonl")
    sources = (f"{folder}/teacher", ("docs",), ("docs",))
    return Pretended(folder / "work", records, 1.0, rates, math.inf, 500, *sources)


def test_a_unit_takes_the_best_rate_of_its_search_and_leaves_one_record_and_no_weights(tmp_path):
    study = pretended(tmp_path)
    planned = units.plan(1.0, True, "own-2x32/mha-L-2", STUDENT)[:2]
    assert study.run(planned) == 0
    search, unit = study.records.read()
    assert (search["best"], [rate for rate, _ in search["rates"]]) == (6e-4, list(units.RATES))
    assert unit["settings"]["lr"] == 6e-4
    assert ("--teacher-layer", "2") in itertools.pairwise(calls[-2])
    assert unit["scores"]["start"][0]["values"] == [0.5]
    assert unit["tokens_read"] == 40_960
    assert not list((tmp_path / "work").rglob("log.jsonl"))
    done = len(calls)
    assert study.run(planned) == 0
    assert len(calls) == done  # nothing is started twice


def test_a_row_with_another_start_differs_in_the_start_alone(tmp_path):
    other, own = (Unit(STUDENT, name, 1, 40_960) for name in ("hs-uniform@2,3,4", "hs-uniform"))
    assert other.rates == own.rates
    assert other.steps == own.steps
    run = pretended(tmp_path)
    flags = run._flags(other, 1, 1e-3)
    at = flags.index("--init")
    assert flags[at : at + 2] == ["--init", "2,3,4"]
    assert flags[:at] + flags[at + 2 :] == run._flags(own, 1, 1e-3)


def test_a_student_stays_until_the_unit_that_starts_from_it_is_done(tmp_path):
    study = pretended(tmp_path, rates=False)
    first, after = (Unit(STUDENT, m, 0, 40_960) for m in ("hs-uniform", "od-after-hs"))
    study.run([first])
    assert (tmp_path / "work" / first.name / "run").exists()
    study.run([after])
    trainings = [words for words in calls if "--steps" in words]
    assert len(trainings) == 2  # the hs student is not trained again
    assert str(tmp_path / "work" / first.name / "run") in trainings[1]
    assert not (tmp_path / "work" / first.name).exists()


def test_students_of_two_teachers_are_not_mixed(tmp_path):
    study = pretended(tmp_path, rates=False)
    shutil.rmtree(tmp_path / "teacher")
    save_tiny(tmp_path / "teacher")
    digest = weights_hash(load_pretrained(tmp_path / "teacher")[0])
    for number, teacher in enumerate((None, {"hash": digest}, {"hash": "0" * 64})):
        student = {"unit": str(number), "student": STUDENT.name, "teacher": teacher}
        study.records.append(student)
    assert study.run([Unit(STUDENT, "hs-uniform", 0, 40_960)]) == 0  # the first that has one counts
    study.records.file.write_text(json.dumps(student) + "\n")
    with pytest.raises(
        UserError, match=f"another teacher .0{{12}}, now {digest[:12]}.; .*--results"
    ):
        study.run([Unit(STUDENT, "hs-uniform", 0, 40_960)])


def test_what_failed_is_named_also_where_the_time_is_over(tmp_path, capsys, monkeypatch):
    study, ends = pretended(tmp_path, rates=False), [Failed("no memory"), OutOfTime()]

    def end(*_):
        raise ends.pop(0)

    monkeypatch.setattr(Pretended, "_finish", end)
    assert study.run([Unit(STUDENT, "mlm", seed, 40_960) for seed in (0, 1)]) == 1
    printed = capsys.readouterr().out
    assert "failed, their messages stand above: own-2x32/mlm/seed-0" in printed
    assert "out of time" in printed


def test_a_unit_that_another_process_runs_is_left_to_it(tmp_path, capsys):
    study = pretended(tmp_path, rates=False)
    held, free = (Unit(STUDENT, "mlm", seed, 40_960) for seed in (0, 1))
    program = f"""
import filelock, pathlib, sys
folder = pathlib.Path({str(tmp_path / "work" / "locks")!r})
folder.mkdir(parents=True)
with filelock.FileLock(folder / {"unit " + held.name.replace("/", " ")!r}):
    print("locked", flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe)
    assert other.stdout.readline() == b"locked\n"
    assert study.run([held, free]) == 0
    assert study.records.units() == {free.name}
    assert f"another process runs {held.name}" in capsys.readouterr().out
    kill(other)  # a killed process holds no lock
    assert study.run([held, free]) == 0
    assert study.records.units() == {held.name, free.name}


# ---- differences, with numbers worked out by hand ------------------------------------------------


def scores(**methods):
    """{method: {seed: {task: score}}} from lists over seeds, the same in two tasks."""
    return {
        method: {seed: {"x": value, "y": value} for seed, value in enumerate(values)}
        for method, values in methods.items()
    }


def test_a_difference_is_paired_by_seed():
    # a - b is 0.10 and 0.12 in both tasks: mean 0.11, variance 0.0002, SE sqrt(2 * 0.0001) / 2
    comparison = Comparison(scores(a=[0.60, 0.82], b=[0.50, 0.70]))
    difference = comparison.difference("a", "b")
    assert difference.mean == pytest.approx(0.11)
    assert difference.error == pytest.approx(math.sqrt(2 * 0.0001) / 2)
    assert difference.verdict == "ahead"
    assert comparison.difference("b", "a").verdict == "behind"
    # residuals of score = method + seed are +-0.005: variance 4 * 0.005^2 / 1
    assert comparison.residual_variance("x") == pytest.approx(1e-4)


def test_an_error_that_is_small_by_chance_is_held_against_the_pooled_one():
    steady = Comparison(scores(a=[0.60, 0.70], b=[0.61, 0.71], c=[0.9, 0.3], d=[0.2, 0.7]))
    assert steady.difference("a", "b").error > 0.05
    assert steady.difference("a", "b").verdict == "tie"
    assert Comparison(scores(a=[0.6], b=[0.9])).difference("a", "b").verdict == "one seed"
    # c has one seed: the residuals of a and b, +-0.005, give an SE of sqrt(2 * 2 * 0.0001) / 2
    one = Comparison(scores(a=[0.60, 0.82], b=[0.50, 0.70], c=[0.61]))
    assert one.difference("c", "a").mean == pytest.approx(0.01)
    assert one.difference("c", "a").error == pytest.approx(0.01)
    assert one.difference("c", "a").verdict == "tie"
    assert one.difference("c", "b").verdict == "ahead"


# ---- the page ------------------------------------------------------------------------------------


def test_competitive_is_a_margin_and_not_a_tie():
    for mean, error, verdict in (
        (-0.01, 0.004, "agrees"),
        (-0.01, 0.008, "cannot say"),
        (-0.03, 0.004, "contradicts"),
        (-0.01, None, "cannot say"),
    ):
        assert judge(Difference(mean, error), "competitive") == verdict


def record(method, seed, score, tasks=("docs-order", "docs-next"), **more):
    rows = {
        role: [
            {"task": task, "metric": "accuracy", "values": [value], "chance": 0.5} for task in tasks
        ]
        for role, value in (("student", score), ("start", 0.5), ("teacher", 0.9))
    }
    run = {"lr": 6e-4, "batch_size": 16, "seq_len": 128, "precision": "fp32", "steps": 10}
    facts = {"unit": f"{method}-{seed}", "student": "english-3x384", "method": method, "seed": seed}
    facts |= {"tokens": 2e6, "settings": run, "text": [{"tokens": 2e6}], "machine": "here"}
    facts |= {"curve": [[0, 2.0], [10, 1.0]], "seconds": 3600, "evaluation_seconds": 60}
    latency = {"latency_ms": {"1 x 128": {"median": 5.0}}}
    facts |= {"models": {"student": latency, "teacher": latency}, "scores": rows}
    facts |= {"evaluation": {"seeds": 1}, "tokens_read": 2e6, "commit": "0" * 40 + "-dirty"}
    return facts | {"scale": 1.0, "rate_from": "defaults", **more}


def report(folder, records, readme=False):
    """Return the page made from these records."""
    file, page = folder / "results.jsonl", folder / "study.md"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    write_report(Records(file), page, readme)
    return page.read_text()


def test_a_full_page_ranks_judges_and_leaves_undefined_scores_out(tmp_path, capsys):
    records = [
        record(method, seed, 0.6 + gain + 0.01 * seed)
        for method, gain in (("mha-L-1", 0.2), ("hs-uniform", 0.1), ("od", 0.1), ("mha-L", 0.2))
        for seed in (0, 1)
    ]
    broken = record("mlm", 0, 0.5)
    broken["scores"]["student"][0]["values"] = [None]
    page = report(tmp_path, [*records, broken])
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    assert len(pictures) == 3
    assert all((tmp_path / picture).stat().st_size > 1000 for picture in pictures)
    lines = {line.split(" | ")[0].strip("| "): line for line in page.splitlines()}
    assert " agrees |" in lines["MHA transfer is generally best"]
    assert "+10.0" in lines["MHA transfer is generally best"]
    assert "4 of 4 agree" in lines["MHA transfer is generally best"]
    assert " contradicts |" in lines["HS transfer stays competitive with MHA: within 2 points"]
    assert " cannot say |" in lines["MHA: an upper-middle layer, and its start, over the last"]
    assert "`python -m distill.study run --only english-3x384 --lr-from defaults`" in page
    assert f"Commits: {'0' * 12}-dirty." in page
    assert " 50.0 | 2 | " in re.sub(" +", " ", lines["`mha-L-1`"])  # its start, seeds
    assert "Left out, a score is undefined: mlm-0." in page
    narrow = [record(m, 0, 0.549, student="english-4x192") for m in ("mha-L-1", "od")]
    page = report(tmp_path, [*records, *narrow])
    tasks = "where no student is 5 points above chance in docs-order, docs-next."
    assert f"Left out: english-4x192, 2 M tokens, {tasks}" in page
    assert "| english-4x192" not in re.sub(" +", " ", page)
    assert "(results.jsonl)" in page
    report(tmp_path, records, readme=True)
    printed = capsys.readouterr().out
    assert "2 million tokens" in printed
    assert printed.count("\n| `") == 3  # mha, hs, od
    assert "no difference has a standard error" in report(tmp_path, records[:1])
    assert measured_speeds(records)["english-3x384"] == pytest.approx(2e6 / 3600)


WRONG = [
    ("plan --only english-9x9", "no unit's name begins so"),
    ("plan --scale nan", "--scale is nan; it must be from 1e-06"),
    ("plan --student 3x384 --teacher t --data docs --tokens 1e999", "--tokens is inf"),
    ("plan --student 3x384 --teacher t --data docs --tokens 0", "--tokens is 0.0; it must be at"),
    ("run --tokens 1e6", "of your own setting: name its --student"),
    ("run --student 3x384 --teacher t --data web=nowhere.txt", "no file matches nowhere.txt"),
    ("run --hours -1", "--hours is -1.0"),
    ("plan --student 3x", "--student 3x: give LAYERSxWIDTH"),
    ("plan --student 3x384 --data docs", "--student 3x384 needs a --teacher"),
    ("plan --results {here}", "--results .* is a folder"),
    ("report --results {here}/nowhere.jsonl", "nowhere.jsonl holds no record"),
    ("report --results {here}/list.jsonl", "list.jsonl, line 1: no record of a unit"),
    ("plan --results {here}/text.jsonl", "text.jsonl, line 1: no record of a unit"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_mistake_is_one_line_and_no_page_is_written(words, message, tmp_path):
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "text.jsonl").write_text("once upon a time\n")
    page = tmp_path / "study.md"
    with pytest.raises(UserError, match=message):
        main([*words.format(here=tmp_path).split(), "--page", str(page)])
    assert not page.exists()


# ---- languages -----------------------------------------------------------------------------------

PAGE = '<h1 id="hd_id1">T</h1><p id="par_id1">One <b>bold</b>\n  word.</p><p>no id</p>{}'


def test_paragraphs_are_joined_by_page_and_id_and_those_left_in_english_are_none(tmp_path):
    texts = {"en-us": '<p id="par_id2">Save</p>', "de": '<p id="par_id2">Speichern</p>'}
    for language, text in texts.items():
        folder = tmp_path / language / "swriter"
        folder.mkdir(parents=True)
        (folder / "a.html").write_text(PAGE.format(text))
        (folder / "b.html").write_text(PAGE.format(""))  # the same paragraph on a second page
    frame = help_text.parallel({name: help_text.read_pages(tmp_path / name) for name in texts})
    assert frame["en-us"].tolist() == ["One bold word.", "Save"]
    assert frame["de"].isna().tolist() == [True, False]
    assert set(frame["page"]) == {"swriter/a.html"}


def made_up_frame():
    rows = []
    for part in multilingual.PARTS:
        for page in range(30):
            name = f"{part}/{page}.html"
            for n in range(4):
                english = (
                    f"Paragraph {n} of the page {page} in {part[1:4]}, long enough to be read."
                )
                row = {"page": name, "id": str(n), "split": help_text.split_of(name)}
                others = dict.fromkeys(multilingual.LANGUAGES, english.replace("page", "Seite"))
                rows.append({**row, "en-us": english, **others})
    frame = pandas.DataFrame(rows)
    frame.loc[frame["id"] == "3", "hu"] = None
    return frame


def test_the_language_task_learns_english_and_is_tested_on_other_pages():
    frame = made_up_frame()
    task = multilingual.part_task(frame)
    assert set(task.scored) == {"en-us", *multilingual.LANGUAGES}
    assert len(multilingual.LANGUAGES) >= 11
    assert not set(task.train.texts) & set(task.scored["en-us"].texts)
    assert len(task.scored["hu"].texts) < len(task.scored["de"].texts)
    assert set(task.scored["de"].labels) == set(range(len(multilingual.PARTS)))


def test_a_query_finds_its_translation_where_the_vectors_say_so(tmp_path, monkeypatch):
    sets = {"de": (["eins", "zwei"], ["one", "two", "three"])}
    vectors = {"eins": 0.1, "one": 0.0, "zwei": 1.0, "two": 1.3, "three": 1.1}  # angles

    def look_up(model, texts, device):
        angles = torch.tensor([vectors[text] for text in texts])
        return torch.stack([angles.cos(), angles.sin()], dim=-1)

    class Model:
        fingerprint = {"weights": "0"}  # noqa: RUF012

    monkeypatch.setattr(multilingual, "sentence_vectors", look_up)
    assert multilingual.retrieval(Model, sets, "cpu", tmp_path) == {"de": 0.5}
    vectors["zwei"] = 1.3  # the cache answers
    assert multilingual.retrieval(Model, sets, "cpu", tmp_path) == {"de": 0.5}


# ---- real processes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_in_training_and_in_evaluation_it_goes_on_and_runs_no_unit_twice(tmp_path):
    make_inputs(tmp_path, max_position_embeddings=140)
    (tmp_path / "task").mkdir()
    for split in ("train", "dev"):
        rows = [{"text": f"the {'text' if n % 2 else 'model'}", "label": n % 2} for n in range(64)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "task" / f"{split}.jsonl").write_text(lines)
    flags = "--student 2x32 --teacher teacher --data web=text.txt --tasks task --tokens 40960"
    flags += " --lr-from defaults --results results.jsonl --only own-2x32/hs-uniform/seed-0"
    command = [sys.executable, "-m", "distill.study", "run", *flags.split(), "--folder", "work"]
    run = tmp_path / "work/own-2x32/hs-uniform/seed-0/0.04096M/run"

    def start():
        settings = environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=settings, stdout=pipe, text=True)

    study = start()
    assert wait_for(study, lambda: steps_of(run) >= 5)
    kill(study)
    study = start()
    assert wait_for(study, lambda: list((tmp_path / "cache").rglob("finetune/*.json")))
    kill(study)
    study = start()
    output = study.communicate()[0]
    assert study.returncode == 0
    assert "train.py" not in output  # the training was finished
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    (record,) = map(json.loads, lines)
    assert record["tokens_read"] == 40_960
    assert record["curve"][-1][0] == 20
    study = start()
    assert "==" not in study.communicate()[0]
    assert (tmp_path / "results.jsonl").read_text().splitlines() == lines
