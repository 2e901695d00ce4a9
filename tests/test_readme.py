"""README.md and docs/ against the disk: sizes, the tree, commands, links, and the code shown."""

import re
import shlex

import pytest
import torch
from conftest import tiny_config, tiny_encoder, tokens
from helpers import ROOT

import evaluate
import train
from distill.method import Batch, QKVMethod, in_float32

README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READING_PATH = [f"minitransformer/{name}.py" for name in ("config", "model", "attention")]
READING_PATH += ["distill/method.py", "distill/mha.py", "train.py"]
PROGRAM = [
    str(file.relative_to(ROOT))
    for pattern in ("*.py", "minitransformer/**/*.py", "distill/**/*.py")
    for file in ROOT.glob(pattern)
]


def lines(files) -> int:
    return sum(len((ROOT / file).read_text("utf-8").splitlines()) for file in files)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readme_is_short():
    rows = README.splitlines()
    assert len(rows) <= 180
    assert max(map(len, rows)) <= 120


def test_line_counts():
    program = [file for file in PROGRAM if "study" not in file]
    for what, files in (("reading path", READING_PATH), ("program", program)):
        stated = re.search(rf"{what}[^.]*?([\d,]+)\s+lines", README)[1].replace(",", "")
        assert int(stated) == pytest.approx(lines(files), rel=0.02), what
    assert lines(READING_PATH) <= 1100


def test_the_tree_is_the_tree_on_disk():
    tree = re.search(r"## The code\n.*?```\n(.*?)```", README, re.DOTALL)[1]
    named, folder = [], ""
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = line.split()[0] if line.split()[0].endswith("/") else ""
        named += [folder + name for name in re.findall(r"\w+\.py\b", line)]
    assert sorted(named) == sorted(file for file in PROGRAM if not file.endswith("__init__.py"))


def commands() -> list:
    """List the calls of train.py and evaluate.py that the pages show."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        shown = "".join(blocks("bash", text)).replace("\\\n", " ")
        shown += "\n".join(re.findall(r"`((?:python|torchrun) [^`]*\.py[^`]*)`", text))
        for line in shown.splitlines():
            line = line.replace("--method cosine", "--method mha")  # added in docs/add_a_method.md
            if re.search(r"\b(train|evaluate)\.py", line) and not line.startswith("#"):
                found.append(pytest.param(line, id=f"{page.name}: {line[:60]}"))
    return found


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    words = shlex.split(command, comments=True)
    program = next(i for i, word in enumerate(words) if word.endswith(".py"))
    flags = [word for word in words[program + 1 :] if word not in ("...", "…")]
    if words[program] == "train.py" and not {"--resume", "--help"} & {*flags}:
        train.parse_config(flags)
    if words[program] == "evaluate.py":
        evaluate.parse_config(flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_scripts_exist_and_no_number_is_missing(page):
    text = page.read_text("utf-8")
    assert re.findall(r"<<.*?>>", text) == []  # marks a number that a measurement has to fill in
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]]+\]: (\S+)", text, re.M)
    for target in targets:
        assert target.startswith("https://") or (page.parent / target.split("#")[0]).exists(), (
            target
        )
    for script in re.findall(r"python (\S+\.py)", text):
        assert (ROOT / script).exists(), script


def test_the_idea_on_one_screen_runs_and_its_loss_falls(capsys):
    exec(blocks("python")[0], {})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    first, last = re.search(r"# (\S+) at first, (\S+) at the end", README).groups()
    assert [losses[0], losses[-1]] == pytest.approx([float(first), float(last)], abs=0.05)


def test_the_method_that_the_readme_adds_runs():
    """The class of docs/add_a_method.md is tried in test_methods.py."""
    code = next(block for block in blocks("python") if "(B, N)" in block)
    names = {"torch": torch, "QKVMethod": QKVMethod, "in_float32": in_float32}
    exec(code, names)
    added = next(value for value in reversed(names.values()) if isinstance(value, type))
    config = tiny_config(num_hidden_layers=1)
    student, teacher = tiny_encoder(config, seed=1), tiny_encoder(config)
    batch = Batch(*tokens(config, (6, 6)))
    method = added(config, config)
    with torch.autocast("cpu", torch.bfloat16):
        total, count = method(student, teacher, batch)
    assert total.dtype == count.dtype == torch.float32
    total.backward()
    assert total > 0
    assert student.blocks[0].query.weight.grad.any()
    assert method(teacher, teacher, batch)[0].item() == pytest.approx(0, abs=1e-5)
    assert method.describe()
