"""Interrupted anywhere and resumed, a run ends with the very weights of the unbroken one."""

import json
import os
import signal

import pytest
from conftest import Killed
from helpers import differences, make_inputs, records, spoil

import train
from distill import METHODS
from distill.training.run import Run
from minitransformer.files import UserError

NARROW = ["--student-hidden", "16"]  # so that hs and direct-minilm have maps to learn
METHOD_FLAGS = {"mha": ["--plain"], "hs": NARROW, "direct-minilm": NARROW, "od": []}
METHOD_FLAGS["mlm"] = ["--accumulate", "2"]


@pytest.fixture(scope="module")
def flags(home):
    return [*make_inputs(home), *"--steps 12 --save-every 3 --eval-every 4".split()]


@pytest.fixture(scope="module")
def unbroken(home, flags):
    """unbroken(method): the folder of a finished run that nobody disturbed."""
    made = {}

    def run(method="mha"):
        if method not in made:
            made[method] = home / f"unbroken-{method}"
            main(*flags, "--method", method, *METHOD_FLAGS[method], "--out", made[method])
        return made[method]

    return run


@pytest.fixture
def new(home):
    return home / f"run-{len(list(home.iterdir()))}"


def main(*argv, status=0):
    assert train.main([str(word) for word in argv]) == status


def at_step(monkeypatch, wanted, act):
    """Call `act` with the run when step `wanted` is about to be logged."""
    whole = Run.log

    def log(run, event, **fields):
        if event == "step" and fields["step"] == wanted:
            act(run)
        whole(run, event, **fields)

    monkeypatch.setattr(Run, "log", log)


def die(*args, **settings):
    raise Killed


def half_a_line(run):
    with open(run.log_file, "a") as file:
        file.write('{"event": "step", "step": ')
    die()


def killed_at(step, *argv):
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, half_a_line)
        with pytest.raises(Killed):
            main(*argv)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m == "mha" else pytest.mark.slow) for m in METHODS]
)
def test_killed_three_times_each_method_ends_as_if_nothing_had_happened(
    method, flags, unbroken, new, monkeypatch, capsys
):
    """Before the first checkpoint, between two, and later, when the newest is damaged as well."""
    resume = ["--out", new, "--resume"]
    killed_at(2, *flags, "--method", method, *METHOD_FLAGS[method], "--out", new)
    killed_at(5, *resume)
    assert f"resuming {new} at step 0 (0 sequences read)" in capsys.readouterr().out
    rounded = [{**record, "start": {"hash": "0" * 64}} for record in Run(new).records()]
    with monkeypatch.context() as patch:  # a start of another processor: the checkpoint replaces it
        patch.setattr(Run, "records", lambda run: rounded)
        killed_at(9, *resume)
    assert "at step 3" in capsys.readouterr().out
    (newest,) = new.glob("checkpoint-000000006-*")
    os.truncate(newest, 5000)
    main(*resume)
    printed = capsys.readouterr().out
    assert f"{newest} is damaged, trying the one before" in printed
    assert "at step 3 (" in printed
    assert differences(new, unbroken(method)) == []
    assert (new / "projections.safetensors").exists() == (method in ("hs", "direct-minilm"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_lets_the_step_finish_and_be_saved(
    name, flags, unbroken, home, monkeypatch, capsys
):
    whole, run, number = unbroken(), home / f"told;{name}", getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # a shell ignores some in background jobs
    at_step(monkeypatch, 4, lambda run: signal.raise_signal(number))
    main(*flags, "--plain", "--out", run, status=128 + number)
    command = f"python train.py --out '{run}' --resume"
    assert f"stopped after step 5; to resume: {command}\n" in capsys.readouterr().out
    checkpoints = [path.name[:20] for path in Run(run).checkpoints()]
    assert checkpoints == ["checkpoint-000000003", "checkpoint-000000005"]
    at_step(monkeypatch, 11, lambda run: signal.raise_signal(number))  # in the last step
    main("--out", run, "--resume")
    assert differences(run, whole) == []
    assert signal.signal(number, before) == signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize("place", ["save_pretrained", "write_card", "Run.remove_checkpoints"])
def test_killed_while_it_finishes(place, flags, unbroken, new, monkeypatch, capsys):
    """No step is done again: the last one has its checkpoint, too."""
    with monkeypatch.context() as patch:
        patch.setattr(f"distill.training.report.{place}", die)
        with pytest.raises(Killed):
            main(*flags, "--method", "direct-minilm", *NARROW, "--out", new)
    monkeypatch.setattr("distill.training.setup.set_learning_rate", die)
    main("--resume", "--out", new)
    assert differences(new, unbroken("direct-minilm")) == []
    assert ("is finished" in capsys.readouterr().out) == ("remove" in place)
    log = new / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"a finished student, but its log.jsonl lacks the end"):
        main("--resume", "--out", new)


@pytest.mark.slow
def test_settings_of_the_schedule_may_change_and_stay_changed(flags, new, capsys):
    killed_at(5, *flags, "--lr", "6e-4", "--out", new)
    killed_at(8, "--out", new, "--resume", "--lr", "1e-4", "--batch-size", "2", "--save-every", 2)
    assert "a step has 2 sequences, not 4; --accumulate 2 restores that" in capsys.readouterr().out
    main("--out", new, "--resume")
    assert "restores" not in capsys.readouterr().out  # as at the last resume
    rates = {r["step"]: r["lr"] for r in records(new) if r["event"] == "step"}
    assert [rates[3], rates[4], rates[12]] == pytest.approx([6e-4, 9e-5, 1e-5])


def test_what_the_run_depends_on_must_not_have_changed(flags, new, capsys):
    killed_at(2, *flags, "--out", new)
    with pytest.raises(UserError, match=r"--seed 1, but .* was started with 0; leave --seed out"):
        main("--out", new, "--resume", "--seed", "1")
    log = new / "log.jsonl"
    begun = log.read_text()
    (new.parent / "moved").symlink_to(new.parent / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, die)
        patch.setattr(train, "provenance", lambda: {"commit": "f00", "versions": {}})
        with pytest.raises(Killed):
            main("--out", new, "--resume", "--teacher", new.parent / "moved")
    before = records(new)[0]["commit"]
    assert f"note: commit {before} before, f00 from here on" in capsys.readouterr().out
    (resumed,) = [r["settings"] for r in records(new) if r["event"] == "resume"]
    assert resumed["teacher"] == str(new.parent / "moved")
    first = json.loads(begun.splitlines()[0])
    log.write_text(begun.replace("mean, normalize False", "cls, normalize True"))
    with pytest.raises(UserError, match="how the teacher makes sentence vectors has changed"):
        main("--out", new, "--resume")
    facts = {"teacher": first["teacher"], "text web": first["text"][0]}
    for what, fact in (facts | {"untrained student": first["start"]}).items():
        log.write_text(begun.replace(fact["hash"], "another"))
        with pytest.raises(UserError, match=f"{what} has changed .*: sha256 another then, "):
            main("--out", new, "--resume")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_ends_the_run_and_the_checkpoint_before_stays(
    how, flags, unbroken, new, monkeypatch
):
    with monkeypatch.context() as patch:
        spoil(patch, [5], how)
        with pytest.raises(UserError, match=f"the {how} of step 5 is not finite.* lower --lr and"):
            main(*flags, "--plain", "--out", new)
    assert [path.name[:20] for path in Run(new).checkpoints()] == ["checkpoint-000000003"]
    main("--out", new, "--resume")  # here the cause is gone
    assert differences(new, unbroken()) == []
