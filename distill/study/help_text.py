"""LibreOffice's help: a text in many languages that everyone can fetch, and a task made of it.

Page (an HTML file) and paragraph (`<p id="par_id...">`) have the same names in every language, so
the text is parallel. An English paragraph that stands on several pages counts once; one that the
translators left in English counts as English alone. A fifth of the pages is held out of training.

    FOLDER/LANGUAGE.json     {page#id: paragraph}, all of them
    FOLDER/LANGUAGE.txt      the pages to train on, one document each

Translation retrieval, without fine-tuning: is a held-out paragraph's translation the nearest of
1,000 English ones, by the cosine of the sentence vectors? As for Tatoeba in arXiv 1812.10464.

Source   packages libreoffice-help-LANGUAGE of Debian 12 (MPL 2.0), fetched with apt-get and
         unpacked with dpkg; the .deb files may lie in FOLDER/packages already.
"""

import hashlib
import html
import itertools
import json
import re
import statistics
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from distill.evaluation.as_is import sentence_vectors
from distill.evaluation.columns import load_columns
from minitransformer.files import UserError, atomic

ENGLISH = "en-us"
TRAINED = (ENGLISH, "cs", "de", "es", "fi", "fr", "hi", "it", "ja", "ko", "nl", "pl", "pt-br")
TRAINED += ("ru", "vi", "zh-cn")
KEPT_OUT = ("el", "hu", "sv", "tr")  # evaluated, never distilled on
ASKED = ("de", "es", "fr", "it", "nl", "pl", "ru", "fi", "vi", "ja", "ko", "zh-cn", *KEPT_OUT)
QUERIES, CANDIDATES = 200, 1_000


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


def paragraphs(folder: Path, language: str) -> dict[str, str]:
    """Return {page#id: text} of one language; the first call unpacks its package (10 seconds)."""
    file = folder / f"{language}.json"
    if file.exists():
        return json.loads(file.read_text("utf-8"))
    with TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg", "-x", package(folder, language), unpacked], check=True)
        (root,) = Path(unpacked, "usr/share/libreoffice/help").glob("*/text")
        english = paragraphs(folder, ENGLISH) if language != ENGLISH else None
        found = different(read_pages(root), english)
    with atomic(file) as unfinished:
        unfinished.write_text(json.dumps(found, ensure_ascii=False), "utf-8")
    return found


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


def held_out(key: str) -> bool:
    return hashlib.sha256(key.partition("#")[0].encode()).digest()[0] < 51  # of 256: a fifth


def training_text(folder: Path, language: str) -> Path:
    """Return the file with the pages that are not held out."""
    file = folder / f"{language}.txt"
    if not file.exists():
        texts = {k: text for k, text in paragraphs(folder, language).items() if not held_out(k)}
        pages = itertools.groupby(texts, lambda key: key.partition("#")[0])
        documents = ["\n".join(texts[key] for key in keys) for _, keys in pages]
        with atomic(file) as unfinished:
            unfinished.write_text("\n\n".join(documents) + "\n", "utf-8")
    return file


def retrieval_sets(texts: dict[str, dict[str, str]]) -> dict[str, tuple[list, list]]:
    """Return {language: (queries, English candidates)}; query i belongs to candidate i.

    texts   {language: {page#id: paragraph}}; those of 40 to 400 English characters are taken, in a
            fixed order without any meaning
    """
    english = {k: t for k, t in texts[ENGLISH].items() if held_out(k) and 40 <= len(t) <= 400}
    keys = sorted(english, key=lambda key: hashlib.sha256(english[key].encode()).digest())
    sets = {}
    for language in texts.keys() - {ENGLISH}:
        translated = [key for key in keys if key in texts[language]][:QUERIES]
        others = [key for key in keys if key not in translated][: CANDIDATES - len(translated)]
        candidates = [english[key] for key in translated + others]
        sets[language] = ([texts[language][key] for key in translated], candidates)
    return sets


def retrieval(run: str, teacher: str, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return {model: {"help retrieval": mean, "help retrieval LANGUAGE": share of the queries}}."""
    sets = retrieval_sets({name: paragraphs(folder, name) for name in (ENGLISH, *ASKED)})
    texts = sorted({text for pair in sets.values() for part in pair for text in part})
    place = {text: row for row, text in enumerate(texts)}
    scores = {}
    for name, model in load_columns([run], teacher).items():
        vectors = sentence_vectors(model, texts, torch.device("cpu"))  # (M, D), of length 1
        shares = {}
        for language, parts in sets.items():
            queries, candidates = (vectors[[place[text] for text in part]] for part in parts)
            nearest = (queries @ candidates.T).argmax(dim=-1).tolist()
            shares[language] = statistics.fmean(row == hit for row, hit in enumerate(nearest))
        scores[name] = {"help retrieval": [statistics.fmean(shares.values())]}
        scores[name] |= {f"help retrieval {language}": [s] for language, s in shares.items()}
    return scores
