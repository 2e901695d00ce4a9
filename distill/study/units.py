"""What the study consists of: settings, students, methods, seeds, and the order of the units.

A unit is one student: trained, evaluated, one record. Its name is its identity:

    english-3x384/mha-L-1/seed-0/2M        setting-student / method / seed / tokens it reads
    english-3x384/mha-L-1/rates/0.5M       its search for a learning rate, a quarter as long
    english-3x384/mha-L-1@2,3,4/seed-0/2M  from a start of these teacher layers
    english/teacher/500                    the teacher after that many steps

m is written from the top of the teacher: L is its last layer, L-1 the last but one.
"""

from dataclasses import dataclass, replace

from minitransformer.files import UserError

BATCH, LENGTH = 16, 128  # sequences in a step, tokens in a sequence
RATES = (3e-4, 6e-4, 1.2e-3, 2.4e-3)  # the grid of learning rates
TEACHER_STEPS, TEACHER_BATCH = 500, 32  # of the English teacher, which needs an MLM head


@dataclass(frozen=True)
class Method:
    """`first`: the method whose student this one starts from. It costs as many tokens again (od, as
    in the paper), or half of the unit's tokens (`equal_cost`). `init`: None, the student's.
    """

    flags: str
    from_top: int | None = None  # m = L_t - from_top
    first: str | None = None
    equal_cost: bool = False
    init: str | None = None


METHODS = {
    "mha-L": Method("--method mha", from_top=0),
    "mha-L-1": Method("--method mha", from_top=1),
    "mha-L-2": Method("--method mha", from_top=2),
    "direct-minilm": Method("--method direct-minilm", from_top=1),
    "hs-single": Method("--method hs --mapping single"),
    "hs-uniform": Method("--method hs --mapping uniform"),
    "hs-last": Method("--method hs --mapping last"),
    "hs-uniform-consecutive": Method("--method hs --mapping uniform-consecutive"),
    "hs-uniform+last": Method("--method hs --mapping uniform+last"),
    "od": Method("--method od"),
    "od-after-hs": Method("--method od", first="hs-uniform"),
    "mlm": Method("--method mlm"),
    # a row of our own: half of the tokens for hidden states, half for relations
    "mha-after-hs": Method("--method mha", 1, first="hs-uniform", equal_cost=True),
}
PILOT = ("mha-L-1", "hs-uniform")
CORE = (*PILOT, "mlm", "od", "direct-minilm", "hs-uniform+last")
CORE_MULTILINGUAL = (*PILOT, "mlm", "mha-L", "hs-uniform+last", "direct-minilm")
ALL = tuple(METHODS)
# A copied start follows m, so that a row has both. From the start of mha-L-2, methods alone differ.
SAME_START = ("mha-L-1", "hs-uniform", "direct-minilm", "od", "mlm")
OTHER_STARTS = {f"{name}@2,3,4": replace(METHODS[name], init="2,3,4") for name in SAME_START}
OTHER_STARTS["mha-L-1@3,4,5"] = replace(METHODS["mha-L-1"], init="3,4,5")  # m, and no gap below it
METHODS |= OTHER_STARTS


@dataclass(frozen=True)
class Student:
    setting: str
    layers: int
    hidden: int
    tokens: float
    speed: float  # tokens/s on two cores of an AMD EPYC in bf16, until a record says better
    init: str | None = None  # None: train.py's default, copied layers

    @property
    def name(self) -> str:
        return f"{self.setting}-{self.layers}x{self.hidden}"


STUDENTS = (
    Student("english", 3, 384, 2e6, 4_600),
    Student("english", 4, 192, 8e6, 6_000, init="embeddings"),
    Student("english", 2, 384, 2e6, 5_500),
    Student("multilingual", 6, 384, 1e6, 1_900),
    Student("multilingual", 3, 384, 1e6, 2_600),
)
TEACHER_SPEED = 3_000  # tokens/s of its MLM training
EVALUATION_SECONDS = 200
ORDER = (  # (student, methods, seeds): the earlier ones matter more
    ("english-3x384", PILOT, (0, 1)),
    ("english-3x384", CORE, (0, 1)),
    ("english-3x384", ALL, (0, 1)),
    ("english-3x384", OTHER_STARTS, (0, 1)),
    ("english-3x384", ALL, (2,)),
    ("multilingual-6x384", CORE_MULTILINGUAL, (0, 1)),
    ("english-2x384", CORE, (0, 1)),
    ("english-4x192", CORE, (0, 1)),
    ("multilingual-3x384", CORE_MULTILINGUAL, (0, 1)),
    ("english-2x384", ALL, (0, 1)),
    ("english-4x192", ALL, (0, 1)),
)


@dataclass(frozen=True)
class Unit:
    """`method` is one of METHODS, or `teacher`; `seed` None: the search for a learning rate."""

    student: Student
    method: str
    seed: int | None
    tokens: float

    @property
    def setting(self) -> str:
        return self.student.setting

    @property
    def name(self) -> str:
        if self.method == "teacher":
            return f"{self.setting}/teacher/{self.steps}"
        seed = "rates" if self.seed is None else f"seed-{self.seed}"
        return f"{self.student.name}/{self.method}/{seed}/{self.tokens / 1e6:g}M"

    @property
    def steps(self) -> int:
        if self.method == "teacher":
            return round(self.tokens / (TEACHER_BATCH * LENGTH))
        share = 0.5 if METHODS[self.method].equal_cost else 1
        return max(1, round(share * self.tokens / (BATCH * LENGTH)))

    @property
    def first(self) -> "Unit | None":
        """The unit whose student this one starts from."""
        method = METHODS[self.method]
        if method.first is None:
            return None
        tokens = self.tokens / 2 if method.equal_cost else self.tokens
        return Unit(self.student, method.first, self.seed, tokens)

    def starts_others(self, done: set[str]) -> bool:
        """Whether a unit that is not done starts from this one's student."""
        others = (Unit(self.student, method, self.seed, self.tokens) for method in METHODS)
        return any(other.first == self and other.name not in done for other in others)

    @property
    def rates(self) -> "Unit":
        """The unit that searches this one's learning rate; a second phase, or another start, has
        that of the method alone.
        """
        alone = self.method.partition("@")[0]
        alone = {"od-after-hs": "od", "mha-after-hs": "mha-L-1"}.get(alone, alone)
        return Unit(self.student, alone, None, self.tokens / 4)

    @property
    def parts(self) -> int:
        """How often it trains for `tokens`."""
        return len(RATES) if self.seed is None else 1


def teacher_unit(steps: int) -> Unit:
    """The English teacher, which all English students share."""
    return Unit(STUDENTS[0], "teacher", 0, steps * TEACHER_BATCH * LENGTH)


def plan(
    scale: float,
    rates: bool,
    only: str = "",
    own: Student | None = None,
    teacher_steps: int = TEACHER_STEPS,
) -> list[Unit]:
    """Return the units in their order.

    scale   multiplies the tokens of all students
    rates   adds the searches for learning rates
    only    keeps the names that begin so, and the teacher and the searches that they need
    own     replaces the students by one with a teacher of the user's own
    """
    students = {student.name: student for student in STUDENTS}
    order = ORDER
    if own:
        students, order = {own.name: own}, ((own.name, CORE, (0, 1)), (own.name, ALL, (0, 1)))
    units: dict[Unit, None] = {}  # a set that keeps its order
    for name, methods, seeds in order:
        student = students[name]
        for seed in seeds:
            for method in methods:
                unit = Unit(student, method, seed, student.tokens * scale)
                if rates:
                    units.setdefault(unit.rates)
                units.setdefault(unit)
    kept = [unit for unit in units if unit.name.startswith(only)]
    if rates:
        phases = [phase for unit in kept for phase in (unit.first, unit) if phase]
        needed = {phase.rates for phase in phases if phase.seed is not None}
        kept = [unit for unit in units if unit in needed or unit in kept]
    teacher = teacher_unit(teacher_steps)
    if any(unit.setting == "english" for unit in kept) or (only and teacher.name.startswith(only)):
        kept.insert(0, teacher)
    if not kept:
        names = ", ".join(students)
        raise UserError(f"--only {only}: no unit's name begins so; students are {names}")
    return kept


def estimated_seconds(unit: Unit, speeds: dict[str, float]) -> float:
    """`speeds`: measured tokens/s by student and method, and by student."""
    if unit.method == "teacher":
        return unit.tokens / TEACHER_SPEED
    speed = speeds.get(f"{unit.student.name}/{unit.method}") or unit.student.speed
    training = unit.parts * unit.tokens / speed
    return training + (0 if unit.seed is None else EVALUATION_SECONDS)
