"""Files that are whole or absent, what killed programs leave, the cache folder, escapes."""

import os
import subprocess
import sys

import pytest
from checkpoints import refusal

from minitransformer import UserError
from minitransformer.files import atomic, cache_folder, printable

DIES = """
import os, sys, pathlib
from minitransformer.files import atomic
with atomic(pathlib.Path(sys.argv[1])) as path:
    path.write_text("half")
    os._exit(9)
"""


@pytest.mark.slow
def test_what_a_killed_program_left_is_swept_by_the_next_and_nothing_else(tmp_path):
    target = tmp_path / "a[1].json"
    subprocess.run([sys.executable, "-c", DIES, target], check=False)
    [left] = tmp_path.iterdir()
    running = left.with_suffix("").with_suffix(".1.tmp")
    running.write_text("half")
    os.utime(left, (0, 0))  # of long ago
    with atomic(target) as temporary:
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert {*tmp_path.iterdir()} == {target, running}


def test_control_characters_are_escaped_in_errors():
    assert printable("é 中 \x1b[2J\r\n\t\x9b\udc80") == r"é 中 \x1b[2J\r \t\x9b\udc80"
    assert str(UserError("a\x07\nb")) == r"a\x07 b"


def test_without_a_folder_for_the_cache_one_line_says_what_to_set(monkeypatch):
    for cache in ("~nobody-of-this-name", "/dev/null/x"):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        refusal(cache_folder, says="cannot make the cache folder: .*; set XDG_CACHE_HOME")
