"""`docs`: English prose that is already on the machine, the default text.

Docstrings of the installed libraries and the Python language reference.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("numpy", "pandas", "matplotlib", "networkx", "sympy")
PACKAGES += ("datasets", "huggingface_hub", "fsspec")
SKIPPED_FOLDERS = {"site-packages", "tests", "test", "testing", "idlelib", "lib2to3", "__pycache__"}


def docs_identity() -> str:
    """Return a sha256 over the versions of Python and of every package that `docs` reads."""
    versions = {"python": platform.python_version(), "format": 3}
    for package in PACKAGES:
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package)
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()


def docs_documents() -> list[tuple[str, str]]:
    """Return [(name, text)]: a document for each module with prose in its docstrings, and for each
    topic of the Python reference.

    A name is a dotted module path (`numpy.linalg.linalg`) or `reference.TOPIC`; a text has one
    paragraph a line. No two documents share a paragraph. Parsing takes 20 s.
    """
    seen: set[str] = set()
    documents = []
    for name, docstrings in _all_docstrings():
        new = [text for text in dict.fromkeys(_paragraphs(docstrings)) if text not in seen]
        seen.update(new)
        if new:
            documents.append((name, "\n".join(new)))
    return documents


def _all_docstrings() -> Iterator[tuple[str, list[str]]]:
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield f"reference.{topic}", [topics[topic]]
    roots = {"python": sysconfig.get_path("stdlib")}
    for package in PACKAGES:
        if spec := importlib.util.find_spec(package):
            roots[package] = spec.submodule_search_locations[0]
    for package, root in roots.items():
        for path in sorted(Path(root).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if not SKIPPED_FOLDERS & {*parts[:-1]}:
                yield ".".join([package, *parts]).removesuffix(".__init__"), _docstrings(path)


def _docstrings(path: Path) -> list[str]:
    source = path.read_text("utf-8", errors="replace")
    try:
        with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's code
            tree = ast.parse(source)
    except SyntaxError:  # some libraries ship templates and Python 2 examples
        return []
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes))
    return [d for d in docstrings if d]


def _paragraphs(docstrings: list[str]) -> list[str]:
    """Return the paragraphs that are prose: eight words or more, nearly all letters, no >>>."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", "\n\n".join(docstrings)):
        words = paragraph.split()
        text = " ".join(words)
        prose = sum(c.isalpha() or c in " ,.;:'()-" for c in text)
        if len(words) >= 8 and prose >= 0.93 * len(text) and ">>>" not in text:
            kept.append(text)
    return kept
