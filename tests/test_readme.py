"""README.md and docs/ against the disk: sizes, commands, links, and the code shown."""

import re
import shlex

import pytest
from helpers import ROOT

import evaluate
import train

README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READING_PATH = [f"minitransformer/{name}.py" for name in ("config", "model", "attention")]
READING_PATH += [f"distill/{name}.py" for name in ("method", "mha", "lean/relations", "student")]
READING_PATH += ["distill/data/batches.py", "train.py"]
ROOMS = ".", "minitransformer/**", "distill/**"
PROGRAM = [file for room in ROOMS for file in ROOT.glob(f"{room}/*.py")]


def lines(files) -> int:
    return sum(len((ROOT / file).read_text("utf-8").splitlines()) for file in files)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readme_is_short():
    rows = README.splitlines()
    assert len(rows) <= 150
    assert max(map(len, rows)) <= 120


def test_line_counts():
    for what, files in (("reading path", READING_PATH), ("whole program", PROGRAM)):
        stated = re.search(rf"{what}[^.]*?([\d,]+)\s+lines", README)[1].replace(",", "")
        assert int(stated) == pytest.approx(lines(files), rel=0.02), what
    assert lines(PROGRAM) <= 6100
    assert lines(ROOT.glob("tests/**/*.py")) <= 5200


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
        file = page.parent / target.split("#")[0]
        assert target.startswith("https://") or file.exists(), target
    for script in re.findall(r"python (\S+\.py)", text):
        assert (ROOT / script).exists(), script


def test_the_idea_on_one_screen_runs_and_its_loss_falls(capsys):
    exec(blocks("python")[0], {})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    first, last = re.search(r"# (\S+) at first, (\S+) at the end", README).groups()
    assert [losses[0], losses[-1]] == pytest.approx([float(first), float(last)], abs=0.05)
