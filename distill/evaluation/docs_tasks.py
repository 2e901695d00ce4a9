"""Tasks made from `docs`, the prose on every machine: labels come free, nothing is downloaded.

    docs-library   which of eight libraries is this sentence from?      one sentence, 8 classes
    docs-order     are all words in their place?                        one sentence, 2 classes
    docs-next      does the second sentence follow the first?           two sentences, 2 classes

The first asks for words, the second for grammar, the third for meaning. A document belongs to train
or to dev as a whole, and no sentence stands in both. Train is small, so that fine-tuning takes
seconds and what a model knew before decides. Dev is large, so that a difference of two points is
two standard errors: sqrt(0.6 * 0.4 / 2500) is one point.
"""

import functools
import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Callable

from distill.data.docs import docs_documents
from distill.evaluation.tasks import Split, Task
from minitransformer.files import UserError

# examples a library at most; not every library has so many
LIBRARY = {"train": 64, "dev": 330}
ORDER = {"train": 128, "dev": 330}
PAIRS = {"train": 32, "dev": 200}  # each gives two examples
# at 2e-4 docs-next ends in one class for one seed in two, also for the teacher
LRS = {"docs-library": 2e-4, "docs-order": 2e-4, "docs-next": 1e-4}

# python is its standard library, reference that of the language
LIBRARIES = "huggingface_hub matplotlib networkx numpy pandas python reference sympy".split()
GIVEAWAYS = re.compile(
    r"numpy|pandas|matplotlib|pyplot|networkx|sympy|hugging|\bhub\b|python|\b(np|pd|plt)\.",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r'(?<=[a-z0-9)`"][.!?])\s+(?=[A-Z"`])')


def docs_library() -> Task:
    """Which library is the sentence from? Sentences with a name that gives it away are left out."""
    found = sentences(lambda sentence: not GIVEAWAYS.search(sentence), LIBRARY)
    examples = {"train": [], "dev": []}
    for (split, library), rows in found.items():
        examples[split] += [(sentence, LIBRARIES.index(library)) for sentence in rows]
    return docs_task("docs-library", examples, LIBRARIES)


def docs_order() -> Task:
    """Are all words in their place, or have two neighbours changed theirs? Every other one has."""
    found = sentences(lambda sentence: swappable(sentence.split()), ORDER)
    examples = {"train": [], "dev": []}
    for (split, _), chosen in found.items():
        for number, sentence in enumerate(chosen):
            label = number % 2
            if label == 0:
                words = sentence.split()
                places = swappable(words)
                place = places[int(scrambled(sentence)[:8], 16) % len(places)]
                words[place], words[place + 1] = words[place + 1], words[place]
                sentence = " ".join(words)
            examples[split].append((sentence, label))
    return docs_task("docs-order", examples, ["swapped", "intact"])


def swappable(words: list[str]) -> list[int]:
    """Where two plain words follow each other, the sentence's first and last word left alone."""
    places = []
    for place in range(1, len(words) - 2):
        first, second = words[place], words[place + 1]
        if first.isalpha() and second.isalpha() and first != second:
            places.append(place)
    return places


def docs_next() -> Task:
    """Does the second sentence follow the first, or come from another document of its library?

    Each first sentence stands in two examples, once before its own second sentence and once before
    that of another pair: no sentence tells the label by itself.
    """
    found, taken = defaultdict(list), set()
    for key, document, paragraph in docs_paragraphs():
        for first, second in itertools.pairwise(paragraph):
            if is_whole(first) and is_whole(second) and not taken & {first, second}:
                taken |= {first, second}
                found[key].append((document, first, second))
    examples = {"train": [], "dev": []}
    for (split, _), pairs in found.items():
        pairs = sorted(pairs, key=lambda pair: scrambled(*pair))[: PAIRS[split]]
        for number, (document, first, second) in enumerate(pairs):
            others = pairs[number + 1 :] + pairs[:number]
            wrong = next((other[2] for other in others if other[0] != document), None)
            if wrong:
                examples[split] += [(first, second, 1), (first, wrong, 0)]
    return docs_task("docs-next", examples, ["elsewhere", "next"])


def docs_task(name: str, examples: dict[str, list[tuple]], classes: list[str]) -> Task:
    """The task of these examples {split: [(text, [its pair,] label)]}, in an order that says
    nothing about the labels.
    """
    splits = {}
    for split, rows in examples.items():
        rows = sorted(rows, key=lambda row: scrambled(*row[:-1]))
        labels = [row[-1] for row in rows]
        if len(set(labels)) < 2:
            raise UserError(f"--tasks {name}: the installed libraries have too few docstrings")
        pairs = [row[1] for row in rows] if len(rows[0]) == 3 else None
        splits[split] = Split([row[0] for row in rows], pairs, labels)
    fine_tuning = {"lrs": (LRS[name],), "epochs": (2,), "batch_size": 8}
    dev = {"dev": splits["dev"]}
    return Task(name, splits["train"], dev, tuple(classes), ("accuracy",), **fine_tuning)


def sentences(fits: Callable[[str], object], sizes: dict[str, int]) -> dict[tuple, list[str]]:
    """{(split, library): sentences}, as many as `sizes` says, of those that fit; none twice."""
    found, taken = defaultdict(list), set()
    for key, _, paragraph in docs_paragraphs():
        for sentence in paragraph:
            if is_whole(sentence) and sentence not in taken and fits(sentence):
                taken.add(sentence)
                found[key].append(sentence)
    return {key: sorted(rows, key=scrambled)[: sizes[key[0]]] for key, rows in found.items()}


@functools.cache
def docs_paragraphs() -> list[tuple[tuple[str, str], str, list[str]]]:
    """Return [((split, library), document, sentences)] of all paragraphs; half of the documents
    are dev.
    """
    paragraphs = []
    for document, text in docs_documents():
        library = document.split(".")[0]
        if library in LIBRARIES:
            split = "dev" if scrambled(document) < "8" else "train"
            for paragraph in text.split("\n"):
                paragraphs.append(((split, library), document, SENTENCE_END.split(paragraph)))
    return paragraphs


def is_whole(sentence: str) -> bool:
    """6 to 16 words from a capital to a full stop, not out of a list of parameters."""
    if not (sentence[:1].isupper() and sentence[-1:] in ".!?"):
        return False
    marks = ("--", " : ", "::", "==", "optional*")
    return 6 <= len(sentence.split()) <= 16 and not any(mark in sentence for mark in marks)


def scrambled(*texts: str) -> str:
    """A fixed order without any meaning: 64 hexadecimal digits, the first below 8 for a half."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


DOCS = {"docs-library": docs_library, "docs-order": docs_order, "docs-next": docs_next}
