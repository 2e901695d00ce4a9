"""The README's facts against the disk: its tree, its line count, its commands, its links."""

import re
import shlex
from pathlib import Path

import pytest

import evaluate
import train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def lines(*patterns):
    files = [file for pattern in patterns for file in ROOT.glob(pattern)]
    return {str(f.relative_to(ROOT)): len(f.read_text("utf-8").splitlines()) for f in files}


def test_line_counts():
    """The sentence about size, the limits on files, and the columns."""
    program = lines("*.py", "minitransformer/*.py", "distill/*.py")
    said = int(re.search(r"([\d,]+) lines of Python", README)[1].replace(",", ""))
    assert abs(said - sum(program.values())) <= 50, sum(program.values())
    for file, count in (program | lines("tests/*.py")).items():
        limit = 450 if file in ("train.py", "evaluate.py") else 300
        assert count <= limit or file.startswith("tests/"), f"{file} has {count} lines"


def test_tree():
    """Every file of the program stands in the tree, and nothing else does."""
    tree = re.search(r"## Reading order\n\n```\n(.*?)```", README, re.DOTALL)[1]
    named, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
        if not name.endswith("/"):
            named.add((folder if line.startswith(" ") else "") + name)
    assert named == set(lines("*.py", "minitransformer/*.py", "distill/*.py")) - {
        "minitransformer/__init__.py"
    }


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"`(python (?:train|evaluate)\.py [^`]*)`", README)
    text = "".join(blocks).replace("\\\n", " ") + "\n".join(inline)
    return [line for line in text.splitlines() if ".py" in line and not line.startswith("#")]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command, monkeypatch):
    """Each command line of the README is one that the program accepts as far as flags go."""
    words = shlex.split(command)
    program = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert (ROOT / words[program]).exists()
    flags = words[program + 1 :]
    if words[program] == "train.py" and "--resume" not in flags and "--help" not in flags:
        train.parse_config(flags)
    if words[program] == "evaluate.py":
        evaluate.parse_config(flags)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
