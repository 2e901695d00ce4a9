"""A multilingual text that everyone can fetch: LibreOffice's help, from Debian's packages.

A page is an HTML file, its paragraphs are `<p id="par_id...">`, and page and id are the same in
every language: so the text is parallel. Paragraphs that the translators left in English do not
count as another language. A fifth of the pages is kept for the tasks and never trained on.

    FOLDER/LANGUAGE.txt          the pages to train on, one document each
    FOLDER/paragraphs.parquet    page, id, split (train, held-out) and a column for each language

Source   packages libreoffice-help-LANGUAGE of Debian 12 (MPL 2.0), fetched with apt-get and
         unpacked with dpkg; the .deb files may lie in FOLDER/packages already.
"""

import hashlib
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas

from minitransformer.files import UserError, atomic

ENGLISH = "en-us"
TRAINED = (ENGLISH, "cs", "de", "es", "fi", "fr", "hi", "it", "ja", "ko", "nl", "pl", "pt-br")
TRAINED += ("ru", "vi", "zh-cn")
KEPT_OUT = ("el", "hu", "sv", "tr")  # evaluated, never distilled on


class Paragraphs(HTMLParser):
    """Collect {id: text} of a page; of an id that comes twice the first."""

    def __init__(self):
        super().__init__()
        self.texts: dict[str, str] = {}
        self.current: str | None = None

    def handle_starttag(self, tag, attributes):
        if tag == "p":
            name = dict(attributes).get("id") or ""
            self.current = name if name.startswith("par_id") and name not in self.texts else None
            if self.current:
                self.texts[self.current] = ""

    def handle_endtag(self, tag):
        if tag == "p":
            self.current = None

    def handle_data(self, data):
        if self.current:
            self.texts[self.current] += data


def read_pages(root: Path) -> dict[tuple[str, str], str]:
    """Return {(page, id): text} of all HTML files under `root`, white space made single."""
    found = {}
    for file in sorted(root.rglob("*.html")):
        parser = Paragraphs()
        parser.feed(file.read_text("utf-8"))
        page = file.relative_to(root).as_posix()
        for name, text in parser.texts.items():
            if text.strip():
                found[page, name] = " ".join(text.split())
    return found


def parallel(languages: dict[str, dict[tuple[str, str], str]]) -> pandas.DataFrame:
    """Join the languages by (page, id).

    A paragraph whose English stands on several pages counts once, so that nothing is on both
    sides of the split; a translation that equals the English is none (missing).
    """
    english = languages[ENGLISH]
    rows, taken = [], set()
    for (page, name), text in english.items():
        if text in taken:
            continue
        taken.add(text)
        row = {"page": page, "id": name, "split": split_of(page), ENGLISH: text}
        for language, texts in languages.items():
            translation = texts.get((page, name))
            if language != ENGLISH:
                row[language] = None if translation == text else translation
        rows.append(row)
    return pandas.DataFrame(rows)


def split_of(page: str) -> str:
    digest = hashlib.sha256(page.encode()).digest()
    return "held-out" if digest[0] < 51 else "train"  # 51 of 256: a fifth


def package(language: str, folder: Path) -> Path:
    """Return the language's .deb in `folder`, downloaded where it is missing."""
    name = f"libreoffice-help-{language}"
    if not list(folder.glob(f"{name}_*.deb")):
        folder.mkdir(parents=True, exist_ok=True)
        print(f"downloading {name}", flush=True)
        command = ["apt-get", "download", "-q", name]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            raise UserError(
                f"{name} could not be downloaded; run apt-get update, or on another system put"
                f" Debian's .deb files into {folder}"
            ) from None
    return next(folder.glob(f"{name}_*.deb"))


def build(folder: Path, languages: tuple[str, ...] = TRAINED + KEPT_OUT) -> pandas.DataFrame:
    """Return the paragraphs of `folder`, made on the first call (3 minutes)."""
    table = folder / "paragraphs.parquet"
    if table.exists():
        return pandas.read_parquet(table)
    texts = {}
    for language in languages:
        with TemporaryDirectory() as unpacked:
            archive = package(language, folder / "packages")
            subprocess.run(["dpkg", "-x", archive, unpacked], check=True)
            (root,) = Path(unpacked, "usr/share/libreoffice/help").glob("*/text")
            texts[language] = read_pages(root)
    frame = parallel(texts)
    train = frame[frame["split"] == "train"]
    for language in languages:
        pages = train.dropna(subset=[language]).groupby("page", sort=True)[language]
        with atomic(folder / f"{language}.txt") as unfinished:
            unfinished.write_text("\n\n".join(pages.agg("\n".join)) + "\n", "utf-8")
    with atomic(table) as unfinished:  # last: whoever finds it finds the texts too
        frame.to_parquet(unfinished)
    return frame
