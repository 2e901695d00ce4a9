"""Interrupted anywhere and resumed, a run ends with the very weights of the unbroken one.

Most tests stop train.main in this process, by an exception that none of its code catches; the slow
ones use processes and real signals; tests/torture kills for longer than a test may take.
"""

import json
import os
import random
import signal
import time

import pytest
import safetensors.torch
from conftest import WORDS, Killed
from helpers import differences, kill, make_inputs, records, spoil, start, steps_of, wait_for

import train
from distill import METHODS
from distill.data import corpus
from distill.training.resume import resumed_settings
from distill.training.run import Run
from distill.training.signals import Signals
from distill.training.skipped import SkippedSteps
from minitransformer.files import UserError

KILLS = int(os.environ.get("KILLS", "2"))
OFTEN = "--steps 12 --save-every 3 --eval-every 4".split()
NARROW = ["--student-hidden", "16"]  # so that hs and direct-minilm have maps to learn
METHOD_FLAGS = {"mha": ["--plain"], "hs": NARROW, "direct-minilm": NARROW, "od": []}
METHOD_FLAGS["mlm"] = ["--accumulate", "2"]


@pytest.fixture(scope="module")
def flags(home):
    return [*make_inputs(home), *OFTEN]


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


@pytest.fixture(autouse=True)
def signals_as_they_were():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


def steps_once(run):
    return [r["step"] for r in records(run) if r["event"] == "step"] == list(range(1, 13))


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m == "mha" else pytest.mark.slow) for m in METHODS]
)
def test_killed_three_times_each_method_ends_as_if_nothing_had_happened(
    method, flags, unbroken, new, capsys
):
    """Before the first checkpoint, between two, and later, when the newest is damaged as well."""
    resume = ["--out", new, "--resume"]
    killed_at(2, *flags, "--method", method, *METHOD_FLAGS[method], "--out", new)
    killed_at(5, *resume)
    assert f"resuming {new} at step 0 (0 sequences read)" in capsys.readouterr().out
    killed_at(9, *resume)
    assert "at step 3" in capsys.readouterr().out
    (newest,) = new.glob("checkpoint-000000006-*")
    os.truncate(newest, 5000)
    main(*resume)
    printed = capsys.readouterr().out
    assert f"{newest} is damaged, trying the one before" in printed
    assert "at step 3 (" in printed
    assert differences(new, unbroken(method)) == []
    assert steps_once(new)
    assert [r["step"] for r in records(new) if r["event"] == "eval"] == [0, 4, 8, 12]
    assert (new / "projections.safetensors").exists() == (method in ("hs", "direct-minilm"))
    starts = [r["start"] for r in records(new) if "start" in r]
    assert starts[0] == starts[1]


@pytest.mark.slow
def test_real_kills_in_real_processes(home, flags, new):
    flags = [*flags, "--accumulate", "16", "--save-every", "1", "--steps", str(6 * KILLS)]
    chance, whole = random.Random(0), home / "not-killed"
    for number in range(KILLS):
        process = start(home, *(["--resume"] if number else flags), "--out", new)
        before = steps_of(new)
        if number % 2:
            assert wait_for(process, lambda n=before: steps_of(new) != n)  # cut, or grown
            time.sleep(chance.uniform(0, 0.05))
        else:
            assert wait_for(process, lambda n=before: steps_of(new) >= n + 2)
            assert wait_for(process, (new / "checkpoint-unfinished.tmp").exists)
        assert kill(process) == -signal.SIGKILL
    main("--out", new, "--resume")
    main(*flags, "--out", whole)
    assert differences(new, whole) == []


@pytest.mark.slow
def test_signals_finish_the_step_save_and_say_how_to_go_on(home, flags):
    # SIGTERM is that of test_distributed.py
    runs = {n: home / f"told-{n.name}" for n in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)}
    flags = [*flags, "--accumulate", "32", "--save-every", "1000"]
    whole = home / "not-told"
    processes = {number: start(home, *flags, "--out", run) for number, run in runs.items()}
    for number, process in processes.items():
        wait_for(process, lambda number=number: steps_of(runs[number]) > 0)
        # twice, as from a scheduler that signals every process and torchrun that passes it on
        process.send_signal(number)
        process.send_signal(number)
    main(*flags, "--out", whole)
    for number, process in processes.items():
        run = runs[number]
        printed, complaint = process.communicate()
        assert (process.returncode, complaint) == (128 + number, "")
        steps = steps_of(run)
        assert 1 <= steps < 12
        assert printed.splitlines()[-1] == (
            f"stopped after step {steps}; to go on: python train.py --out {run} --resume"
        )
        checkpoint, log = sorted(path.name for path in run.iterdir())
        assert (checkpoint[:20], log) == (f"checkpoint-{steps:09d}", "log.jsonl")
        main("--out", run, "--resume")
        assert differences(run, whole) == []


def test_signals_end_at_once_only_when_they_come_again_later(monkeypatch):
    # a shell starts its background jobs, perhaps this suite, with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup ignores stays ignored
    signals = Signals()
    signal.raise_signal(signal.SIGHUP)
    assert not signals.received
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert (signals.received, signals.status) == (signal.SIGTERM, 143)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 4)
    monkeypatch.setattr(signal, "raise_signal", die)
    with pytest.raises(Killed):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_signal_in_the_last_step_lets_the_run_finish(flags, unbroken, new, monkeypatch):
    at_step(monkeypatch, 12, lambda run: signal.raise_signal(signal.SIGTERM))
    main(*flags, "--plain", "--out", new)
    assert differences(new, unbroken()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "distill.training.report.save_pretrained",
        "distill.training.report.write_card",
        "distill.training.run.Run.remove_checkpoints",
    ],
)
def test_killed_while_it_finishes(place, flags, unbroken, new, monkeypatch, capsys):
    """No step is done again: the last one has its checkpoint, too."""
    with monkeypatch.context() as patch:
        patch.setattr(place, die)
        with pytest.raises(Killed):
            main(*flags, "--method", "direct-minilm", *NARROW, "--out", new)
    monkeypatch.setattr(train, "set_learning_rate", die)
    main("--resume", "--out", new)
    assert differences(new, unbroken("direct-minilm")) == []
    assert ("is finished: 12 steps" in capsys.readouterr().out) == ("remove" in place)


def test_a_finished_run_says_so_and_is_not_touched(unbroken, capsys):
    before = {path: path.read_bytes() for path in unbroken().iterdir()}
    with Run(unbroken()) as other:
        other.lock()
        with pytest.raises(UserError, match="another program trains in"):
            main("--out", unbroken(), "--resume")
    main("--out", unbroken(), "--resume")
    assert "is finished: 12 steps, held-out loss" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in unbroken().iterdir()} == before


@pytest.mark.slow
def test_settings_of_the_schedule_may_change_and_stay_changed(flags, new):
    killed_at(5, *flags, "--lr", "6e-4", "--out", new)
    killed_at(8, "--out", new, "--resume", "--lr", "1e-4", "--batch-size", "2", "--save-every", 2)
    main("--out", new, "--resume")
    rates = {r["step"]: r["lr"] for r in records(new) if r["event"] == "step"}
    assert rates[3] == pytest.approx(6e-4 * 10 / 10)
    assert rates[4] == pytest.approx(1e-4 * 9 / 10)
    assert rates[12] == pytest.approx(1e-4 / 10)
    assert steps_once(new)


def test_what_the_run_depends_on_must_not_have_changed(flags, new):
    killed_at(2, *flags, "--out", new)
    with pytest.raises(UserError, match=r"--seed 1, but .* was started with 0; leave --seed out"):
        main("--out", new, "--resume", "--seed", "1")
    given = {"out": str(new), "resume": True, "precision": "auto"}  # as on the first command line
    assert resumed_settings(train.TrainConfig, given)["precision"] in ("fp32", "bf16")
    log = new / "log.jsonl"
    begun = log.read_text()
    first = json.loads(begun.splitlines()[0])
    facts = {"the teacher": first["teacher"], "the text web": first["text"][0]}
    facts["the untrained student"] = first["start"]
    for what, fact in facts.items():
        log.write_text(begun.replace(fact["hash"], "another"))
        with pytest.raises(UserError, match=f"{what} has changed .*: sha256 another then, "):
            main("--out", new, "--resume")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loss", "gradient", "count"])
def test_a_step_that_teaches_nothing_is_skipped_and_counted(how, flags, new, monkeypatch, capsys):
    spoil(monkeypatch, (4, 7, 8), how)
    main(*flags, "--out", new)
    losses = [r["loss"] for r in records(new) if r["event"] == "step"]
    assert [i for i, loss in enumerate(losses, 1) if loss is None] == [4, 7, 8]
    assert records(new)[-1]["skipped_steps"] == 3
    reason = "it has nothing to learn from" if how == "count" else "its loss or gradient is not fin"
    assert f"step 7 is skipped: {reason}" in capsys.readouterr().out
    weights = safetensors.torch.load_file(new / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_the_streak_of_skipped_steps_is_part_of_the_state():
    skipped, resumed = SkippedSteps(), SkippedSteps()
    for step in range(1, 10):
        assert skipped.note(step, False, 5.0) == "its loss or gradient is not finite"
    resumed.load_state_dict(skipped.state_dict())
    assert skipped.note(10, True, 5.0) == ""
    assert skipped.note(11, False, 5.0)
    with pytest.raises(UserError, match=r"10 steps in a row .* step 10: it has nothing .*--resume"):
        resumed.note(10, False, 0.0)


@pytest.mark.slow
def test_too_many_steps_that_are_not_finite_stop_the_run(flags, new, monkeypatch):
    """Its checkpoints are those from before; when the cause is gone it goes on from there."""
    with monkeypatch.context() as patch:
        spoil(patch, range(5, 30), "loss")
        with pytest.raises(UserError, match=r"10 steps in a row .* step 14: .* lower --lr"):
            main(*flags, "--steps", "30", "--out", new)
    assert [path.name[:20] for path in Run(new).checkpoints()] == ["checkpoint-000000003"]
    main("--out", new, "--resume")
    assert records(new)[-1]["skipped_steps"] == 0


@pytest.mark.slow
def test_a_stream_resumes_where_it_stood(home, flags, new, monkeypatch, capsys):
    """With its place in the files, the rest of a document, and the buffer it is shuffled in; killed
    in the first pass and in the second, at once after a resume and later.
    """
    monkeypatch.setattr(corpus, "BLOCK", 24)
    monkeypatch.setattr(corpus, "HELD_OUT", 8)
    dataset = home / "dataset"
    dataset.mkdir()
    chance = random.Random(1)
    for shard in range(2):
        # a long document each, so that some steps read none
        texts = [" ".join(chance.choices(WORDS, k=k)) for k in (30, 500, 30, 40, 20)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (dataset / f"{shard}.jsonl").write_text(lines)
    flags = [*flags, "--data", f"s=hub:{dataset}", "--steps", "24", "--save-every", "2"]
    del flags[flags.index("--data") : flags.index("--data") + 2]
    whole = home / "unbroken-stream"
    main(*flags, "--out", whole)
    assert "text: size unknown" in capsys.readouterr().out
    killed_at(4, *flags, "--out", new)
    for step in (5, 7, 12, 13, 20):
        killed_at(step, "--out", new, "--resume")
    main("--out", new, "--resume")
    assert differences(new, whole) == []
    hashes = [records(run)[-1]["text"][0]["hash"] for run in (new, whole)]
    assert hashes[0] == hashes[1]
