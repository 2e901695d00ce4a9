"""LibreOffice's help: a text in many languages that everyone can fetch.

Page (an HTML file) and paragraph (`<p id="par_id...">`) have the same names in every language, so
the text is parallel. An English paragraph that stands on several pages counts once; one that the
translators left in English counts as English alone.

    FOLDER/LANGUAGE.txt      its pages, one document each

Source   packages libreoffice-help-LANGUAGE of Debian 12 (MPL 2.0), fetched with apt-get and
         unpacked with dpkg; the .deb files may lie in FOLDER/packages already.
"""

import functools
import html
import itertools
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from minitransformer.files import UserError, atomic

ENGLISH = "en-us"
# of the languages of `reviews`, it, ja, nl and pl are missing: tested, never distilled on
TRAINED = f"{ENGLISH} cs de el es fi fr hi hu ko pt-br ru sv tr vi zh-cn".split()

PARAGRAPH = re.compile(r'<p\b[^>]*\bid="(par_id[^"]*)"[^>]*>(.*?)</p>', re.DOTALL)


def read_pages(root: Path) -> dict[str, str]:
    """Return {page#id: text} of all HTML files under `root`, white space made single."""
    found = {}
    for file in sorted(root.rglob("*.html")):
        page = file.relative_to(root).as_posix()
        for name, content in PARAGRAPH.findall(file.read_text("utf-8")):
            text = " ".join(html.unescape(re.sub("<[^>]*>", "", content)).split())
            if text:
                found.setdefault(f"{page}#{name}", text)
    return found


@functools.cache
def paragraphs(folder: Path, language: str) -> dict[str, str]:
    """Return {page#id: text} of one language, out of its package (10 seconds)."""
    with TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg", "-x", package(folder, language), unpacked], check=True)
        (root,) = Path(unpacked, "usr/share/libreoffice/help").glob("*/text")
        found = read_pages(root)
    return different(found, None if language == ENGLISH else paragraphs(folder, ENGLISH))


def different(found: dict[str, str], english: dict[str, str] | None) -> dict[str, str]:
    """Return the translations of English paragraphs; of English (None) each text's first place."""
    if english is not None:
        return {key: text for key, text in found.items() if english.get(key, text) != text}
    first = {text: key for key, text in reversed(found.items())}
    return {key: text for key, text in found.items() if first[text] == key}


def package(folder: Path, language: str) -> Path:
    """Return the language's .deb in FOLDER/packages, downloaded where it is missing."""
    folder, name = folder / "packages", f"libreoffice-help-{language}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not list(folder.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", name], cwd=folder, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        problem = f"{name} could not be downloaded; run apt-get update, or on another system put"
        raise UserError(f"{problem} Debian's .deb files into {folder}") from None
    return next(folder.glob(f"{name}_*.deb"))


def training_text(folder: Path, language: str) -> Path:
    """Return the file of a language; the first call writes it."""
    file = folder / f"{language}.txt"
    if not file.exists():
        texts = paragraphs(folder, language)
        pages = itertools.groupby(texts, lambda key: key.partition("#")[0])
        documents = ["\n".join(texts[key] for key in keys) for _, keys in pages]
        with atomic(file) as unfinished:
            unfinished.write_text("\n\n".join(documents) + "\n", "utf-8")
    return file
