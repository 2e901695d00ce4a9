"""Imports run one way only: a module imports its own level and the levels below it.

Every import counts, also one inside a function: deferring an import hides a circle.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = [
    ("minitransformer",),
    ("distill.method",),
    ("distill.lean",),
    ("distill",),  # distill/__init__.py and the pages: mha, direct_minilm, hs, od, mlm, student
    ("distill.data",),
    ("distill.training",),
    ("distill.evaluation",),
    ("distill.study",),
    ("train", "evaluate"),
]
FILES = [*ROOT.glob("*.py"), *ROOT.glob("minitransformer/**/*.py"), *ROOT.glob("distill/**/*.py")]
NAMES = {
    file: ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in FILES
}


def level(module: str) -> int | None:
    """Return the level of the longest listed name that the module's name begins with."""
    while module:
        for number, names in enumerate(LEVELS):
            if module in names:
                return number
        module = module.rpartition(".")[0]
    return None


def imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            # "from distill import method" may name a module or something inside the package
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def upward(module: str, source: str) -> list[str]:
    """List the imports of this source that go up, or need transformers at run time."""
    own = level(module)
    assert own is not None, f"{module} belongs to no level"
    names = imports(source)
    return [n for n in names if (level(n) or 0) > own or n.split(".")[0] == "transformers"]


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
