"""The run folder: a checkpoint is whole or absent, the log has each record once, one program."""

import errno
import os
from pathlib import Path

import pytest
import torch
from conftest import Killed

from distill.training.run import Run
from minitransformer.files import UserError


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run") as run:
        run.create("unused")
        run.log("start", settings={}, teacher=None, start={}, text=[])
        yield run


def state(number):
    return {"student": {"w": torch.full((1000,), float(number))}}


def saved(run):
    return [int(file.name.split("-")[1]) for file in run.checkpoints()]


def test_a_checkpoint_comes_back_and_the_two_newest_are_kept(run):
    for step in (5, 10, 15, 20):
        run.save(step, state(step))
    back = run.newest()
    assert (back["step"], back["log_length"]) == (20, run.log_file.stat().st_size)
    assert torch.equal(back["student"]["w"], state(20)["student"]["w"])
    assert saved(run) == [15, 20]
    (run.folder / "checkpoint-unfinished.tmp").touch()
    run.remove_checkpoints()
    assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "log.jsonl"]


def test_a_second_program_is_refused_and_no_lock_stays(run):
    with Run(run.folder) as second, pytest.raises(UserError, match="another program trains in"):
        second.lock()
    assert (run.folder / ".lock").exists()  # the refused one leaves it alone
    run.__exit__()
    assert [path.name for path in run.folder.iterdir()] == ["log.jsonl"]
    with Run(run.folder) as second:
        second.lock()


def test_only_the_writing_rank_writes(run):
    before = run.log_file.read_bytes()
    other = Run(run.folder, writes=False)
    other.lock()
    other.log("step", step=1)
    other.save(1, state(1))
    other.cut_log(0)
    assert run.log_file.read_bytes() == before
    assert saved(run) == []
    run.save(1, state(1))
    other.remove_checkpoints()
    assert other.newest()["step"] == 1


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_newest_is_named_and_the_one_before_is_used(run, capsys):
    run.save(5, state(5))
    run.save(10, state(10))
    flip(run.checkpoints()[-1])
    assert run.newest()["step"] == 5
    assert "checkpoint-000000010-" in capsys.readouterr().out
    run.save(10, state(11))  # the next of that step takes the damaged one's place
    assert saved(run) == [5, 10]
    assert run.newest()["student"]["w"][0] == 11
    for file in run.checkpoints():
        flip(file)
    with pytest.raises(UserError, match="all its checkpoints are damaged"):  # no fresh start
        run.newest()


@pytest.mark.parametrize("moment", ["save", "flush", "replace", "prune"])
def test_killed_at_any_moment_of_a_save(run, moment, monkeypatch):
    """What is found afterwards is the checkpoint before or the new one, never anything else."""
    run.save(5, state(5))
    run.save(10, state(10))

    def kill(*args, **settings):
        raise Killed

    def half(whole, file):
        file.write(b"half of it")
        raise Killed

    place = {
        "save": (torch, "save", half),
        "flush": (os, "fsync", kill),
        "replace": (os, "replace", kill),
        "prune": (Path, "unlink", kill),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(*place)
        with pytest.raises(Killed):
            run.save(15, state(15))
    found = 15 if moment == "prune" else 10
    assert run.newest()["step"] == found
    run.save(20, state(20))  # over what the killed one left
    assert saved(run) == [found, 20]
    assert not list(run.folder.glob("*.tmp"))


def test_all_is_on_the_disk_before_it_has_its_name(run, monkeypatch):
    """A power cut, too, finds the old checkpoint or the new one, and the log that belongs to it."""
    seen, replace = [], os.replace

    def watched_fsync(handle):
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: seen.append("renamed") or replace(*names))
    run.save(5, state(5))
    assert seen == ["log.jsonl", "checkpoint-unfinished.tmp", "renamed", "run"]


def test_a_failed_write_leaves_the_last_good_one(run, monkeypatch):
    run.save(5, state(5))

    def full(*args, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place in ((os, "fsync"), (os, "replace"), (torch, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(*place, full)
            with pytest.raises(UserError, match=r"step 9 .*No space left.*before are kept"):
                run.save(9, state(9))
        assert saved(run) == [5]
        assert run.newest()["step"] == 5
        assert not list(run.folder.glob("*.tmp"))


def test_an_error_that_is_no_full_disk_is_not_hidden(run, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run.save(1, state(1))


def test_the_log_is_cut_back_to_the_checkpoint(run):
    run.log("step", step=1)
    run.save(1, state(1))
    run.log("step", step=2)
    with open(run.log_file, "a") as log:
        log.write('{"event": "step", "st')
    assert [r["event"] for r in run.records()] == ["start", "step", "step"]
    length = run.newest()["log_length"]
    run.cut_log(length)
    assert [r["event"] for r in run.records()] == ["start", "step"]
    run.cut_log(None)
    assert [r["event"] for r in run.records()] == ["start"]
    size = run.log_file.stat().st_size
    with pytest.raises(UserError, match=rf"has {size} bytes, but .* when it had {length}"):
        run.cut_log(length)  # not padded with NULs
    assert run.log_file.stat().st_size == size


@pytest.mark.parametrize(
    "content",
    [
        None,
        b'{"event": "start"',
        b'{"event": "step"}\n',
        b'{"event": "start"}\n',
        b'{"event": "start", "settings": {}}\n',
        b"3\n",
        b"\xff\n",
    ],
)
def test_a_log_that_no_run_wrote(tmp_path, content):
    if content is not None:
        (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"log.jsonl is missing, damaged or has no start record"):
        Run(tmp_path).records()


def test_a_new_folder_must_be_new_and_possible(tmp_path):
    Run(tmp_path / "a" / "b" / "c").check_new()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("", "file", "link"):
        with pytest.raises(UserError, match="exists"):
            Run(tmp_path / name).check_new()
    with pytest.raises(UserError, match="nothing can be made in"):
        Run(tmp_path / "file" / "run").check_new()
    (tmp_path / "mha-1").mkdir()
    with Run(None) as run:
        run.check_new()
        assert run.create(f"{tmp_path}/mha") == tmp_path / "mha-2"
