"""Imports run one way only, also those inside functions, which can hide a circle."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT

# a module imports its own room and those before it
ROOMS = ["minitransformer", "distill.method", "distill.lean", "distill", "distill.data"]
ROOMS += ["distill.training", "distill.evaluation", "distill.study", "train", "evaluate"]
FILES = [*ROOT.glob("*.py"), *ROOT.glob("minitransformer/*.py"), *ROOT.glob("distill/**/*.py")]
NAMES = {
    file: ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in FILES
}


def upward(module: str, source: str) -> list[str]:
    """List the imports of this source that go up, or need transformers at run time."""

    def room(name: str) -> int:
        within = [room for room in ROOMS if f"{name}.".startswith(f"{room}.")]
        return ROOMS.index(max(within, key=len)) if within else 0

    nodes = [node for node in ast.walk(ast.parse(source)) if hasattr(node, "names")]
    names = [f"{getattr(n, 'module', '')}.{a.name}".lstrip(".") for n in nodes for a in n.names]
    return [n for n in names if room(n) > room(module) or n.startswith("transformers")]


@pytest.mark.parametrize("file", FILES, ids=NAMES.get)
def test_no_import_goes_up(file):
    assert upward(NAMES[file], file.read_text("utf-8")) == []


def test_a_planted_import_is_found():
    assert upward("distill.lean.relations", "def f():\n    from distill.mha import relation_loss")
    assert upward("evaluate", "def f():\n    import transformers")


@pytest.mark.slow
def test_every_module_imports_without_transformers():
    program = "import sys; sys.modules.update(transformers=None, sentence_transformers=None)\n"
    program += f"import {', '.join(NAMES.values())}"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
