"""The README's comparison: every method from the same start, on the same text, for the same steps.

    python tests/study/compare.py                          goes on where it was killed
    python tests/study/compare.py --steps 20 --seeds 1     a trial of a few minutes

1. The embedded teacher has no MLM head, which OD needs: `--method mlm --init embedded` trains one.
   The result is the teacher of all methods.
2. Each method trains one student a seed, all from the same start: by default every other layer of
   the teacher, because from random blocks no hundred steps lift a student above chance.
3. evaluate.py compares teacher, students and the untrained start, runs/compare/evaluation/; its
   scores are put into one table, a line a method.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

METHODS = {
    "mha": ["--method", "mha"],
    "direct-minilm": ["--method", "direct-minilm"],
    "hs-uniform": ["--method", "hs", "--mapping", "uniform"],
    "hs-uniform+last": ["--method", "hs", "--mapping", "uniform+last"],
    "od": ["--method", "od"],
    "mlm": ["--method", "mlm"],
}


def train(out: Path, *flags: str) -> None:
    """Trains into `out`, or goes on with it, or leaves it as it is where it is finished."""
    if (out / "log.jsonl").exists():
        flags = ("--resume",)
    call("train.py", "--out", str(out), *flags)


def call(*words: str) -> None:
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of each student")
    parser.add_argument("--teacher-steps", type=int, default=150, help="that train the MLM head")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--init", default="uniform", help="start of all students, as in train.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"))
    settings = parser.parse_args()

    teacher = settings.folder / "teacher"
    train(
        teacher,
        "--method",
        "mlm",
        "--init",
        "embedded",
        "--lr",
        "2e-4",
        "--steps",
        str(settings.teacher_steps),
        "--save-every",
        "50",
    )
    shape = [
        "--student-layers",
        str(settings.layers),
        "--student-hidden",
        str(settings.hidden),
        "--teacher",
        str(teacher),
        "--init",
        settings.init,
        "--save-every",
        "50",
        "--eval-every",
        str(settings.steps),
    ]
    groups: dict[str, list[str]] = {"teacher": [str(teacher)]}
    for seed in range(settings.seeds):
        seeded = [*shape, "--seed", str(seed)]
        if seed == 0 or settings.init in ("random", "embeddings"):  # others draw nothing
            # a learning rate of nearly nothing: the start itself, exported like the others
            start = settings.folder / f"start-{seed}"
            train(start, *seeded, "--method", "mha", "--steps", "1", "--lr", "1e-12")
            groups.setdefault("start", []).append(str(start))
        for name, flags in METHODS.items():
            out = settings.folder / f"{name}-{seed}"
            train(out, *seeded, *flags, "--steps", str(settings.steps))
            groups.setdefault(name, []).append(str(out))
    runs = [run for group in groups.values() for run in group]
    out = settings.folder / "evaluation"
    call("evaluate.py", *runs, "--out", str(out))
    summarise(json.loads((out / "results.json").read_text()), groups)


def summarise(results: dict, groups: dict[str, list[str]]) -> None:
    """Mean and standard deviation over all fine-tuned models of a method: students x seeds."""
    tasks = sorted({(row["task"], row["metric"]) for row in results["rows"]})
    print(
        "| method | "
        + " | ".join(f"{task} {metric}" for task, metric in tasks)
        + " | mean of the tasks |\n"
        + "| --- " * (len(tasks) + 2)
        + "|"
    )
    for name, runs in groups.items():
        columns = [
            [
                score
                for row in results["rows"]
                for score in row["values"]
                if row["model"] in runs and (row["task"], row["metric"]) == key
            ]
            for key in tasks
        ]
        columns.append([statistics.fmean(scores) for scores in zip(*columns, strict=True)])
        cells = [
            f"{statistics.fmean(scores):.3f} ± {statistics.stdev(scores):.3f}" for scores in columns
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
