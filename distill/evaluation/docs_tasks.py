"""Tasks made from `docs`, the prose on every machine: labels come free, nothing is downloaded.

    docs-library   which of eight libraries is this sentence from?      one sentence, 8 classes
    docs-order     are all words in their place?                        one sentence, 2 classes
    docs-next      does the second sentence follow the first?           two sentences, 2 classes

The first asks for words, the second for grammar, the third for meaning. Whole documents belong to
train or to dev, and no sentence stands in both. The examples are few, so that fine-tuning takes
seconds and what a model knew before decides.
"""

import hashlib
import itertools
import re

from distill.data.docs import docs_documents
from distill.evaluation.tasks import Split, Task
from minitransformer.errors import UserError

LIBRARIES = ("huggingface_hub", "matplotlib", "networkx", "numpy", "pandas")
LIBRARIES += ("python", "reference", "sympy")  # Python's library and the reference of its language
GIVEAWAYS = r"numpy|pandas|matplotlib|pyplot|networkx|sympy|hugging|\bhub\b|python|\b(np|pd|plt)\."
SENTENCE_END = re.compile(r'(?<=[a-z0-9)`"][.!?])\s+(?=[A-Z"`])')
SIZES = {"train": 64, "dev": 80}  # examples a library


def docs_library() -> Task:
    """Which library is the sentence from? Sentences with a name that gives it away are left out."""
    giveaway = re.compile(GIVEAWAYS, re.IGNORECASE)
    found = sentences(lambda sentence: not giveaway.search(sentence))
    classes = [name for name in LIBRARIES if all(found[split, name] for split in SIZES)]
    splits = {}
    for split in SIZES:
        examples = [(s, n) for n, library in enumerate(classes) for s in found[split, library]]
        splits[split] = Split(*columns(examples, texts=1))
    return docs_task("docs-library", splits, classes)


def docs_order() -> Task:
    """Are all words in their place, or have two neighbours changed theirs? Every other one has."""
    found = sentences(lambda sentence: swappable(sentence.split()))
    splits = {}
    for split in SIZES:
        examples = []
        for library in LIBRARIES:
            for i, sentence in enumerate(found[split, library]):
                words = sentence.split()
                places = swappable(words)
                n = places[int(scrambled(sentence)[:8], 16) % len(places)]
                swapped = [*words[:n], words[n + 1], words[n], *words[n + 2 :]]
                examples.append((sentence, 1) if i % 2 else (" ".join(swapped), 0))
        splits[split] = Split(*columns(examples, texts=1))
    return docs_task("docs-order", splits, ["swapped", "intact"])


def swappable(words: list[str]) -> list[int]:
    """Where two plain words follow each other, the sentence's first and last word left alone."""
    pairs = enumerate(itertools.pairwise(words[:-1]))
    return [n for n, (a, b) in pairs if n and a.isalpha() and b.isalpha() and a != b]


def docs_next() -> Task:
    """Does the second sentence follow the first, or come from another document of its library?

    Every other pair is wrong and takes its second sentence from the next pair, as a rule a right
    one; so the same sentences stand in right and wrong pairs, and none tells by itself.
    """
    found, taken = no_examples(), set()
    for key, document, paragraph in docs_paragraphs():
        for a, b in itertools.pairwise(paragraph):
            if whole(a) and whole(b) and not {a, b} & taken:
                taken |= {a, b}
                found[key].append((document, a, b))
    splits = {}
    for split, size in SIZES.items():
        examples = []
        for library in LIBRARIES:
            pairs = sorted(found[split, library], key=lambda pair: scrambled(*pair))[:size]
            for i, (document, a, b) in enumerate(pairs):
                others = [pair[2] for pair in pairs[i + 1 :] + pairs[:i] if pair[0] != document]
                if others:
                    examples.append((a, b, 1) if i % 2 else (a, others[0], 0))
        splits[split] = Split(*columns(examples, texts=2))
    return docs_task("docs-next", splits, ["elsewhere", "next"])


def docs_task(name: str, splits: dict[str, Split], classes: list[str]) -> Task:
    for split in splits.values():
        if len(set(split.labels)) < 2:
            raise UserError(f"--tasks {name}: the installed libraries have too few docstrings")
    return Task(name, splits["train"], {"dev": splits["dev"]}, tuple(classes), ("accuracy",))


def sentences(fit) -> dict[tuple[str, str], list[str]]:
    """{(split, library): sentences}, as many as `SIZES` says, of those that fit; none twice."""
    found, taken = no_examples(), set()
    for key, _, paragraph in docs_paragraphs():
        for sentence in paragraph:
            if whole(sentence) and sentence not in taken and fit(sentence):
                taken.add(sentence)
                found[key].append(sentence)
    return {key: sorted(of, key=scrambled)[: SIZES[key[0]]] for key, of in found.items()}


def no_examples() -> dict[tuple[str, str], list]:
    return {(split, library): [] for split in SIZES for library in LIBRARIES}


def docs_paragraphs():
    """((split, library), document, sentences) a paragraph; a quarter of the documents is dev."""
    for document, text in docs_documents():
        library = document.split(".")[0]
        if library in LIBRARIES:
            split = "dev" if scrambled(document) < "4" else "train"
            for paragraph in text.split("\n"):
                yield (split, library), document, SENTENCE_END.split(paragraph)


def whole(sentence: str) -> bool:
    """6 to 18 words from a capital to a full stop, not out of a list of parameters."""
    marks = ("--", " : ", "::", "==", "optional*")
    words = len(sentence.split())
    ends = sentence[:1].isupper() and sentence[-1:] in ".!?"
    return 6 <= words <= 18 and ends and not any(mark in sentence for mark in marks)


def columns(examples: list[tuple], texts: int) -> tuple[list, list | None, list]:
    """(texts, their pairs or None, labels), in an order that says nothing about the labels."""
    examples = sorted(examples, key=lambda example: scrambled("order", example[0]))
    first, *second, labels = ([example[i] for example in examples] for i in range(texts + 1))
    return first, second[0] if second else None, labels


def scrambled(*texts: str) -> str:
    """A fixed order without any meaning: 64 hexadecimal digits, the first below 4 for a quarter."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


DOCS = {"docs-library": docs_library, "docs-order": docs_order, "docs-next": docs_next}
