"""The rows of the study, a plain list in the order in which they are run.

    english-3x384/mha-L-2/uniform/seed-0/0.5M      student / method / start / seed / tokens

The start is train.py's --init: `uniform` follows the layer that the method reads, `first` is the
same for all methods.
"""

import itertools
from dataclasses import dataclass

# settings of train.py; `teacher-layer` counts from the teacher's last one, L
VARIANTS = {
    "mha-L": {"method": "mha", "teacher-layer": 0},
    "mha-L-1": {"method": "mha", "teacher-layer": -1},
    "mha-L-2": {"method": "mha", "teacher-layer": -2},
    "direct-minilm-L-1": {"method": "direct-minilm", "teacher-layer": -1},
    "direct-minilm-L-2": {"method": "direct-minilm", "teacher-layer": -2},
    "hs-single": {"method": "hs", "mapping": "single"},
    "hs-uniform": {"method": "hs", "mapping": "uniform"},  # train.py's default
    "hs-uniform-L-1": {"method": "hs", "mapping": "uniform", "teacher-layer": -1},
    "hs-last": {"method": "hs", "mapping": "last"},
    "hs-uniform-consecutive": {"method": "hs", "mapping": "uniform-consecutive"},
    "hs-uniform+last": {"method": "hs", "mapping": "uniform+last"},
    "od": {"method": "od"},
    "od-after-hs": {"method": "od"},  # from an hs-uniform student, which read as many tokens before
    "mlm": {"method": "mlm"},
}
CORE = ("mha-L-1", "mha-L-2", "direct-minilm-L-2", "hs-uniform", "od", "mlm")
OTHERS = tuple(name for name in VARIANTS if name not in CORE)
WITHOUT_OD = ("mha-L-1", "mha-L-2", "direct-minilm-L-2", "hs-uniform", "mlm")  # no MLM head
STARTS = ("uniform", "first")

KEPT_OUT = ("it", "ja", "nl", "pl")  # of the languages of `reviews` not in the distillation text
ENGLISH, NARROW, MULTILINGUAL = "english-3x384", "english-4x192", "multilingual-6x384"


@dataclass(frozen=True)
class Row:
    student: str  # SETTING-LAYERSxWIDTH
    method: str  # one of VARIANTS
    start: str
    seed: int
    tokens: float

    @property
    def name(self) -> str:
        run = f"seed-{self.seed}/{self.tokens / 1e6:.10g}M"
        return f"{self.student}/{self.method}/{self.start}/{run}"

    @property
    def setting(self) -> str:
        return self.student.rpartition("-")[0]

    @property
    def sizes(self) -> tuple[int, int]:
        """(layers, width)"""
        return tuple(map(int, self.student.rpartition("-")[2].split("x")))


def grid(student, methods, starts, seeds, tokens) -> list[Row]:
    parts = itertools.product(seeds, starts, methods)
    return [Row(student, method, start, seed, tokens) for seed, start, method in parts]


def rows() -> list[Row]:
    """Return all rows, those that matter most first."""
    return [
        *grid(ENGLISH, CORE, STARTS, [0, 1, 2], 0.5e6),
        *grid(ENGLISH, [*CORE, "hs-uniform-L-1"], ["uniform"], [0], 2e6),
        *grid(MULTILINGUAL, WITHOUT_OD, ["uniform"], [0], 0.5e6),
        *grid(ENGLISH, CORE, ["uniform"], [1, 2], 2e6),
        *grid(MULTILINGUAL, WITHOUT_OD, ["uniform"], [1], 0.5e6),
        *grid(ENGLISH, OTHERS, STARTS, [0], 0.5e6),
        *grid(ENGLISH, [*CORE, "hs-uniform-L-1"], ["uniform"], [0], 8e6),
        *grid(ENGLISH, ["hs-uniform"], ["uniform"], [0], 32e6),
        *grid(MULTILINGUAL, ["direct-minilm-L-2", "hs-uniform"], ["uniform"], [0, 1], 2e6),
        *grid(NARROW, CORE, ["embeddings"], [0, 1, 2], 2e6),
        *grid(ENGLISH, CORE, ["first"], [0, 1, 2], 2e6),
        *grid(ENGLISH, OTHERS, STARTS, [1, 2], 0.5e6),
        *grid(MULTILINGUAL, WITHOUT_OD, ["first"], [0, 1], 0.5e6),
    ]
