"""Translation retrieval, without fine-tuning: is a paragraph's translation the nearest of 1,000
English ones, by the cosine of the sentence vectors? The pages were held out of every run.

Source of the protocol   arXiv 1812.10464 (Tatoeba)
"""

import hashlib
import statistics
from pathlib import Path

import torch

from distill.evaluation.as_is import sentence_vectors
from distill.evaluation.columns import load_columns
from distill.study.help_text import ENGLISH, KEPT_OUT, held_out, paragraphs

TRAINED = ("de", "es", "fr", "it", "nl", "pl", "ru", "fi", "vi", "ja", "ko", "zh-cn")
LANGUAGES = TRAINED + KEPT_OUT
CANDIDATES, QUERIES = 1_000, 200

Sets = dict[str, tuple[list[str], list[str]]]


def retrieval_sets(texts: dict[str, dict[str, str]]) -> Sets:
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
    sets = retrieval_sets({name: paragraphs(folder, name) for name in (ENGLISH, *LANGUAGES)})
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
