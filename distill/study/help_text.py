"""LibreOffice's help: a text in many languages that everyone can fetch.

    FOLDER/LANGUAGE.txt      its pages, one document each

A paragraph that stands on several pages counts once; one that the translators left in English
counts as English alone.

Source   packages libreoffice-help-LANGUAGE of Debian 12 (MPL 2.0), fetched with apt-get and
         unpacked with dpkg; the .deb files may lie in FOLDER/packages already.
"""

import functools
import html
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from minitransformer.files import UserError, atomic

ENGLISH = "en-us"
# of the languages of `reviews`, it, ja, nl and pl are missing: tested, never distilled on
TRAINED = f"{ENGLISH} cs de el es fi fr hi hu ko pt-br ru sv tr vi zh-cn".split()

PARAGRAPH = re.compile(r'<p\b[^>]*\bid="par_id[^>]*>(.*?)</p>', re.DOTALL)


@functools.cache
def read_pages(folder: Path, language: str) -> list[list[str]]:
    """Return the paragraphs of each page (an HTML file), white space made single (10 seconds)."""
    pages = []
    with TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg", "-x", package(folder, language), unpacked], check=True)
        for file in sorted(Path(unpacked).rglob("*.html")):
            found = PARAGRAPH.findall(file.read_text("utf-8"))
            texts = (html.unescape(re.sub("<[^>]*>", "", content)) for content in found)
            pages.append([" ".join(text.split()) for text in texts if text.strip()])
    return pages


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
        english = [] if language == ENGLISH else read_pages(folder, ENGLISH)
        seen, documents = {text for page in english for text in page}, []
        for page in read_pages(folder, language):
            new = [text for text in dict.fromkeys(page) if text not in seen]
            seen.update(new)
            documents += ["\n".join(new)] if new else []
        with atomic(file) as unfinished:
            unfinished.write_text("\n\n".join(documents) + "\n", "utf-8")
    return file
