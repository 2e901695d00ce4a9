"""The run folder: a checkpoint is whole or absent, the log has each record once, one program."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import Attack, Killed

from distill.training.run import Run, Signals
from minitransformer.files import UserError


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run").open("unused") as run:
        run.log("start", settings={}, teacher=None, start={}, text=[])
        yield run


def state(number):
    return {"student": {"w": torch.full((1000,), float(number))}}


def saved(run):
    return [int(file.name.split("-")[1]) for file in run.checkpoints()]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_two_newest_checkpoints_are_kept_and_only_rank_0_writes(run):
    for step in (5, 10, 15, 20):
        run.log("step", step=step)
        run.save(step, state(step))
    back = run.newest()
    assert (back["step"], back["log_length"]) == (20, run.log_file.stat().st_size)
    assert torch.equal(back["student"]["w"], state(20)["student"]["w"])
    log = run.log_file.read_bytes()
    for other in (log[:-1], log.replace(b'"step": 20', b'"step": 19')):  # copied early; went on
        run.log_file.write_bytes(other)
        assert run.newest()["step"] == 15
    run.log_file.write_bytes(log)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    with Run(run.folder, writes=False).open("unused") as other:
        other.log("step", step=1)
        other.save(21, state(21))
        other.cut_log(0)
        other.remove_checkpoints()
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
    assert saved(run) == [15, 20]
    (run.folder / "checkpoint-unfinished.tmp").touch()  # of a killed program
    run.remove_checkpoints()
    assert names(run.folder) == [".lock", "log.jsonl"]


def test_damaged_checkpoints_are_no_reason_to_begin_again_and_are_replaced(run):
    run.save(5, state(5))
    run.checkpoints()[0].write_bytes(b"")
    with pytest.raises(UserError, match="none of its checkpoints can be used"):
        run.newest()
    run.save(5, state(6))
    assert run.newest()["student"]["w"][0] == 6


def test_a_damaged_line_ends_the_log_where_a_checkpoint_knows_what_came_before(run):
    for damage in (b"\0\0\n", b"3\n", b'{"event": "st\n'):
        with open(run.log_file, "ab") as log:
            log.write(damage + b'{"event": "step", "step": 9}\n')
        with pytest.raises(UserError, match="damaged"):
            run.records()  # of a finished run: its curve would be cut short
        run.save(5, state(5))
        assert [record["event"] for record in run.records()] == ["start"]
        run.remove_checkpoints()
        run.cut_log(None)


def test_a_checkpoint_that_holds_code_is_refused_in_our_words(run):
    run.save(5, {"student": Attack(run.folder / "it-ran")})
    with pytest.raises(UserError, match="holds code, so no run wrote it") as raised:
        run.newest()
    assert "weights_only" not in str(raised.value)
    assert not (run.folder / "it-ran").exists()


@pytest.mark.parametrize(
    ("found", "place", "name"),
    [(10, torch, "save"), (10, os, "fsync"), (10, os, "replace"), (15, Path, "unlink")],
)
def test_killed_at_any_moment_of_a_save(run, found, place, name, monkeypatch):
    """What is found afterwards is the checkpoint before or the new one, never anything else."""
    run.save(5, state(5))
    run.save(10, state(10))

    def kill(*args, **settings):
        if name == "save":
            args[1].write(b"half of it")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, name, kill)
        with pytest.raises(Killed):
            run.save(15, state(15))
    assert run.newest()["step"] == found
    run.save(20, state(20))  # over what the killed one left
    assert saved(run) == [found, 20]
    assert not list(run.folder.glob("*.tmp"))


def test_a_new_folder_must_be_new_and_is_gone_unless_the_run_begins(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UserError, match="exists"), Run(tmp_path / "taken").open("unused"):
        pass
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".lock").touch()  # of a program killed before its first step
    with Run(tmp_path / "killed").open("unused") as run:
        second = Run(run.folder).open("unused")
        with pytest.raises(UserError, match="another program"), second:
            pass
        assert names(run.folder) == [".lock"]  # the refused one leaves it alone
        run.log_file.write_text("half a start rec")
    (tmp_path / "mha-1").mkdir()
    with Run(None).open(f"{tmp_path}/mha") as run:
        assert run.folder == tmp_path / "mha-2"
    assert names(tmp_path) == ["mha-1", "taken"]


def test_signals_that_nohup_ignores_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        signals.listen()
        signal.raise_signal(signal.SIGHUP)
        assert not signals.vote(torch.device("cpu"))
    signal.signal(signal.SIGHUP, before)
