"""Interrupted anywhere and gone on with, a run ends with the very weights of the unbroken one.

Most tests stop train.main in this process, by an exception that none of its code catches; those
with processes of their own use real signals. tests/torture/torture.py is the long form of these.
"""

import errno
import json
import os
import random
import signal
import time

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from conftest import WORDS, tiny_encoder, tiny_tokenizer
from helpers import (
    amid_a_save,
    differences,
    environment,
    kill,
    make_inputs,
    records,
    start,
    steps_of,
    wait_for,
    without_figures,
)

import train
from distill import METHODS
from distill.data import corpus
from distill.training.run import Run
from distill.training.signals import Signals
from minitransformer import save_pretrained
from minitransformer.errors import UserError

OFTEN = ["--steps", "12", "--save-every", "3", "--eval-every", "4"]
NARROW = ["--student-hidden", "16"]  # so that hs and direct-minilm have maps to learn
METHOD_FLAGS = {
    "mha": [],
    "hs": NARROW,
    "od": [],
    "direct-minilm": NARROW,
    "mlm": ["--accumulate", "2"],
}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    for name, value in environment(folder).items():
        patch.setenv(name, value)
    without_figures(patch)
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def flags(folder):
    return [*make_inputs(folder), *OFTEN]


@pytest.fixture(scope="module")
def unbroken(folder, flags):
    """unbroken(method): the folder of a finished run that nobody disturbed."""
    made = {}

    def run(method="mha"):
        if method not in made:
            made[method] = folder / f"unbroken-{method}"
            method_flags = ["--method", method, *METHOD_FLAGS[method]]
            assert train.main([*flags, *method_flags, "--out", str(made[method])]) == 0
        return made[method]

    return run


@pytest.fixture
def new(folder):
    """A name for a run that is not there yet."""
    return folder / f"run-{len(list(folder.iterdir()))}"


@pytest.fixture(autouse=True)
def signals_as_they_were():
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def at_step(monkeypatch, wanted, act):
    """`act` happens when the log is told of step `wanted`, once half of that line is written."""
    whole = Run.log

    def log(run, event, **fields):
        if event == "step" and fields["step"] == wanted:
            with open(run.log_file, "a") as file:
                file.write('{"event": "step", "step": ')
            act()
        whole(run, event, **fields)

    monkeypatch.setattr(Run, "log", log)


def die():
    raise Killed


def killed_at(step, argv):
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, die)
        with pytest.raises(Killed):
            train.main([*map(str, argv)])


def steps_once(run):
    return [r["step"] for r in records(run) if r["event"] == "step"] == list(range(1, 13))


@pytest.mark.parametrize("method", METHODS)
def test_killed_three_times_each_method_ends_as_if_nothing_had_happened(
    method, flags, unbroken, new, capsys
):
    """Before the first checkpoint, between two, and again before the next: torn lines each time."""
    resume = ["--out", new, "--resume"]
    killed_at(2, [*flags, "--method", method, *METHOD_FLAGS[method], "--out", new])
    killed_at(5, resume)
    assert "at step 0, sequence 0" in capsys.readouterr().out
    killed_at(9, resume)
    assert "at step 3" in capsys.readouterr().out
    assert train.main([*map(str, resume)]) == 0
    assert "at step 6" in capsys.readouterr().out
    assert differences(new, unbroken(method)) == []
    assert steps_once(new)
    assert [r["step"] for r in records(new) if r["event"] == "eval"] == [0, 4, 8, 12]
    assert (new / "projections.safetensors").exists() == (method in ("hs", "direct-minilm"))


def test_real_kills_in_real_processes(folder, flags, new):
    """The short form of tests/torture/torture.py: amid a save, then soon after the first step."""
    flags, whole = [*flags, "--accumulate", "16"], folder / "not-killed"
    process = start(folder, *flags, "--out", new, "--save-every", 1)
    assert wait_for(process, lambda: steps_of(new) >= 2)
    assert wait_for(process, amid_a_save(new))
    assert kill(process) == -signal.SIGKILL
    process = start(folder, "--out", new, "--resume")
    before = steps_of(new)
    wait_for(process, lambda: steps_of(new) != before)  # the log was cut, or grew
    time.sleep(random.Random(0).uniform(0, 0.05))
    kill(process)
    assert train.main(["--out", str(new), "--resume"]) == 0
    assert train.main([*flags, "--out", str(whole)]) == 0
    assert differences(new, whole) == []
    assert steps_once(new)


def test_sigterm_and_ctrl_c_finish_the_step_save_and_say_how_to_go_on(folder, flags, new):
    runs = {signal.SIGTERM: new, signal.SIGINT: folder / "interrupted"}
    flags = [*flags, "--accumulate", "32", "--save-every", "1000"]
    whole = folder / "not-interrupted"
    began = {number: start(folder, *flags, "--out", run) for number, run in runs.items()}
    waiting = set(began)
    while waiting:
        for number in [number for number in waiting if steps_of(runs[number])]:
            # twice, as from a scheduler that tells every process and torchrun that passes it on
            began[number].send_signal(number)
            began[number].send_signal(number)
            waiting.remove(number)
        assert all(began[number].poll() is None for number in waiting)
        time.sleep(0.001)
    train.main([*flags, "--out", str(whole)])
    for number, process in began.items():
        printed, complaint = process.communicate()
        status = {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        assert (process.returncode, complaint) == (status, "")
        steps = steps_of(runs[number])
        assert 1 <= steps < 12
        assert printed.splitlines()[-1] == (
            f"stopped after step {steps}; to go on: python train.py --out {runs[number]} --resume"
        )
        assert [path.name for path in Run(runs[number]).checkpoints()] == [
            f"checkpoint-{steps:09d}"
        ]
    for run in runs.values():
        assert train.main(["--out", str(run), "--resume"]) == 0
        assert differences(run, whole) == []


def test_signals_end_at_once_only_when_they_come_again_later(monkeypatch):
    # a shell starts what it puts in the background, perhaps this suite, with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals = Signals()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert (signals.received, signals.status) == (signal.SIGTERM, 143)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 4)
    monkeypatch.setattr(signal, "raise_signal", lambda number: die())
    with pytest.raises(Killed):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = Signals()
    signal.raise_signal(signal.SIGHUP)
    assert not signals.received


@pytest.mark.parametrize("logged", [11, 12], ids=["before its computing", "after it"])
def test_a_signal_in_the_last_step_lets_the_run_finish(logged, flags, unbroken, new, monkeypatch):
    whole = unbroken()
    at_step(
        monkeypatch,
        logged,
        lambda: (
            signal.raise_signal(signal.SIGTERM)
            or os.truncate(new / "log.jsonl", (new / "log.jsonl").read_bytes().rindex(b"\n") + 1)
        ),
    )
    assert train.main([*flags, "--out", str(new)]) == 0
    assert differences(new, whole) == []


@pytest.mark.parametrize(
    "place",
    [
        "distill.training.report.save_pretrained",
        "distill.training.report.plot_loss",
        "distill.training.report.write_tensors",
        "distill.training.run.Run.remove_checkpoints",
    ],
)
def test_killed_while_it_finishes(place, flags, unbroken, new, monkeypatch, capsys):
    """No step is done again: the last one has its checkpoint, too."""
    method, whole = ["--method", "direct-minilm", *NARROW], unbroken("direct-minilm")
    with monkeypatch.context() as patch:
        patch.setattr(place, lambda *args: die())
        with pytest.raises(Killed):
            train.main([*flags, *method, "--out", str(new)])
    monkeypatch.setattr(train, "train_step", die)
    assert train.main(["--resume", "--out", str(new)]) == 0
    assert differences(new, whole) == []
    assert ("is finished: 12 steps" in capsys.readouterr().out) == ("remove" in place)


def test_a_finished_run_says_so_and_is_not_touched(unbroken, capsys):
    before = {path: path.read_bytes() for path in unbroken().iterdir()}
    assert train.main(["--out", str(unbroken()), "--resume"]) == 0
    assert "is finished: 12 steps, held-out loss" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in unbroken().iterdir()} == before


def test_a_full_disk_stops_the_run_with_the_last_good_checkpoint(flags, unbroken, new, monkeypatch):
    whole, saves = torch.save, []

    def save(state, file):
        saves.append(file)
        if len(saves) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match=r"step 6 cannot be .*No space left.*000003 is kept"):
        train.main([*flags, "--out", str(new)])
    assert train.main(["--out", str(new), "--resume"]) == 0
    assert differences(new, unbroken()) == []


def test_a_damaged_checkpoint_costs_three_steps_and_nothing_else(flags, unbroken, new, capsys):
    killed_at(8, [*flags, "--out", new])
    newest = Run(new).checkpoints()[-1]
    assert newest.name == "checkpoint-000000006"
    os.truncate(newest / "state.pt", 5000)
    assert train.main(["--out", str(new), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "checkpoint-000000006 is damaged and passed over" in printed
    assert "at step 3, sequence 12" in printed
    assert differences(new, unbroken()) == []
    assert steps_once(new)


def test_settings_of_the_schedule_may_change_and_stay_changed(flags, new):
    killed_at(5, [*flags, "--out", new])
    killed_at(8, ["--out", new, "--resume", "--lr", "1e-4", "--batch-size", "2", "--save-every", 2])
    assert train.main(["--out", str(new), "--resume"]) == 0
    rates = {r["step"]: r["lr"] for r in records(new) if r["event"] == "step"}
    assert rates[3] == pytest.approx(6e-4 * 10 / 10)
    assert rates[4] == pytest.approx(1e-4 * 9 / 10)
    assert rates[12] == pytest.approx(1e-4 / 10)
    drawn = records(new)[-1]["text"][0]["sequences_drawn"]
    assert drawn == 3 * 4 + 9 * 2
    assert steps_once(new)


def test_what_the_run_depends_on_must_not_have_changed(folder, flags, new):
    text, before = folder / "text.txt", (folder / "text.txt").read_text()
    killed_at(5, [*flags, "--out", new])
    resume = ["--out", str(new), "--resume"]
    with pytest.raises(UserError, match=r"--seed 1, but .* was started with 0; leave --seed out"):
        train.main([*resume, "--seed", "1"])
    try:
        text.write_text(before + "\n\nmore of the text")
        with pytest.raises(UserError, match="the text web has changed since"):
            train.main(resume)
    finally:
        text.write_text(before)
    try:
        save_pretrained(folder / "teacher", tiny_encoder(seed=1), tiny_tokenizer())
        with pytest.raises(UserError, match="the teacher has changed since"):
            train.main(resume)
    finally:
        save_pretrained(folder / "teacher", tiny_encoder(), tiny_tokenizer())
    assert train.main(resume) == 0


# ---- numbers that go wrong -----------------------------------------------------------------------


def spoil(monkeypatch, spoiled, how):
    """The loss (or the gradient) of these steps is not a number; counted from 1 at each start."""
    whole, turn = METHODS["mha"].forward, []

    def forward(self, student, teacher, batch):
        total, count = whole(self, student, teacher, batch)
        if torch.is_grad_enabled():
            turn.append(0)
            # the first call is the search for what the method reaches
            if len(turn) - 1 in spoiled and how == "loss":
                total = total * float("nan")
            elif len(turn) - 1 in spoiled:
                total.register_hook(lambda gradient: gradient * float("inf"))
        return total, count

    monkeypatch.setattr(METHODS["mha"], "forward", forward)


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_no_number_is_skipped_and_counted(how, flags, new, monkeypatch, capsys):
    spoil(monkeypatch, (4, 7, 8), how)
    assert train.main([*flags, "--out", str(new)]) == 0
    losses = [r["loss"] for r in records(new) if r["event"] == "step"]
    assert [i for i, loss in enumerate(losses, 1) if loss is None] == [4, 7, 8]
    assert records(new)[-1]["skipped_steps"] == 3
    printed = capsys.readouterr().out
    assert "step 7 is skipped: its loss or gradient is not finite" in printed
    weights = safetensors.torch.load_file(new / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_too_many_such_steps_stop_the_run_and_leave_what_was_good(
    flags, unbroken, new, monkeypatch
):
    """Its checkpoints are those from before; when the cause is gone it goes on as if it never was:
    a skipped step changes no weight.
    """
    long = [*flags, "--steps", "30", "--out", str(new)]
    with monkeypatch.context() as patch:
        spoil(patch, range(5, 30), "loss")
        with pytest.raises(UserError, match=r"10 steps in a row .* step 14; .* lower --lr than"):
            train.main(long)
    assert [path.name for path in Run(new).checkpoints()] == ["checkpoint-000000003"]
    batch = safetensors.torch.load_file(new / "bad-batch-rank0.safetensors")
    assert batch["0.ids"].shape == (4, 16)
    assert train.main(["--out", str(new), "--resume"]) == 0
    assert records(new)[-1]["skipped_steps"] == 0


def test_steps_in_a_row_are_counted_across_an_interruption(flags, new):
    """Five, a signal, five more: the streak is part of the state, so the end is the same."""
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, range(4, 30), "loss")
        at_step(
            patch,
            8,
            lambda: (
                signal.raise_signal(signal.SIGTERM)
                or os.truncate(
                    new / "log.jsonl", (new / "log.jsonl").read_bytes().rindex(b"\n") + 1
                )
            ),
        )
        assert train.main([*flags, "--steps", "30", "--out", str(new)]) == 143
    assert Run(new).newest()["bad"] == 6
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, range(1, 30), "loss")
        with pytest.raises(UserError, match=r"10 steps in a row .* step 13;"):
            train.main(["--out", str(new), "--resume"])


def test_an_absurd_learning_rate_ends_in_one_line(flags, new):
    with pytest.raises(UserError, match=r"10 steps in a row had no finite loss or gradient"):
        train.main([*flags, "--steps", "40", "--lr", "1e14", "--clip", "0", "--out", str(new)])
    assert not (new / "config.json").exists()


# ---- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_stream_resumes_where_it_stood(form, folder, flags, new, monkeypatch, capsys):
    """With its place in the files, what is left of a document, and the buffer it is shuffled in;
    killed in the first pass and in the second, at once after a resume and later.
    """
    monkeypatch.setattr(corpus, "BUFFER", 24)
    monkeypatch.setattr(corpus, "HELD_OUT", 8)
    dataset = folder / f"dataset-{form}"
    dataset.mkdir()
    chance = random.Random(1)
    for shard in range(2):
        # a long document each, so that some steps read none
        texts = [" ".join(chance.choices(WORDS, k=k)) for k in (30, 500, 30, 40, 20)]
        if form == "parquet":
            table = pyarrow.table({"text": texts, "n": [0] * len(texts)})
            pyarrow.parquet.write_table(table, dataset / f"{shard}.parquet", row_group_size=2)
        else:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (dataset / f"{shard}.jsonl").write_text(lines)
    flags = [*flags, "--data", f"s=hub:{dataset}", "--steps", "24", "--save-every", "2"]
    del flags[flags.index("--data") : flags.index("--data") + 2]
    whole = folder / f"unbroken-{form}"
    assert train.main([*flags, "--out", str(whole)]) == 0
    assert "corpus s: the stream ended, pass 2 begins" in capsys.readouterr().out
    killed_at(4, [*flags, "--out", new])
    for step in (5, 7, 12, 13, 20):
        killed_at(step, ["--out", new, "--resume"])
    assert train.main(["--out", str(new), "--resume"]) == 0
    assert differences(new, whole) == []
    hashes = [records(run)[-1]["text"][0]["hash"] for run in (new, whole)]
    assert hashes[0] == hashes[1]
