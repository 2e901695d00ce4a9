"""Plan, run and report the study.

    python -m distill.study plan                             what is to be done, hours, what is done
    python -m distill.study run --hours 2                    goes on from there, in that order
    python -m distill.study run --only english-3x384/mha     the units whose names begin so
    python -m distill.study report                           docs/study.md and its pictures

Several `run` at once share the units: one for each GPU (CUDA_VISIBLE_DEVICES=1), or one for each
core (OMP_NUM_THREADS=1, which gave more tokens a second on two cores than one `run` on both).

Every command reads the records in docs/study/results.jsonl; `run` appends to them. To reproduce a
unit, run it with another --results and compare. The multilingual setting needs --teacher (a folder,
or intfloat/multilingual-e5-small from the hub) and Debian's apt-get. Your own setting:

    python -m distill.study run --student 6x768 --teacher google-bert/bert-base-uncased \\
        --data web='corpus/*.parquet' --tasks glue --tokens 1e9 --results results/bert.jsonl
"""

import argparse
import math
import re
import time
from pathlib import Path

from distill.data.batches import parse_sources
from distill.study import units
from distill.study.records import Records
from distill.study.report import measured_speeds, write_report
from distill.study.run import Study
from distill.study.units import Student, estimated_seconds
from distill.training import cli
from minitransformer.files import UserError

E5 = "intfloat/multilingual-e5-small"  # the teacher of the multilingual setting


def parse_config(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("command", choices=["plan", "run", "report"])
    add("--only", default="", metavar="NAME", help="units whose names begin so")
    add("--hours", type=float, default=math.inf, help="run: stop after them (default: never)")
    add("--scale", type=float, default=1.0, help="factor on all tokens (default: 1)")
    rate_help = "search each method's learning rate first, or take train.py's (default: grid)"
    add("--lr-from", choices=["grid", "defaults"], default="grid", help=rate_help)
    add("--teacher-steps", type=int, default=units.TEACHER_STEPS, help="of the English teacher")
    add("--teacher", help=f"your own, or of multilingual (default: {E5})")
    add("--student", metavar="LxH", help="your own setting: layers and width, such as 6x768")
    add("--data", action="append", default=[], help="your own setting: text, as in train.py")
    add("--tasks", nargs="+", help="your own setting: as in evaluate.py (default: docs)")
    add("--tokens", type=float, help="your own setting: of a run (default: 1e9)")
    add("--folder", type=Path, default=Path("runs/study"), help="work folder")
    add("--results", type=Path, default=Path("docs/study/results.jsonl"), help="the records")
    add("--page", type=Path, default=Path("docs/study.md"), help="report: the page to write")
    add("--readme", action="store_true", help="report: print the README's table instead")
    config = parser.parse_args(argv)
    if not config.student and (config.data or config.tasks or config.tokens is not None):
        raise UserError("--data, --tasks and --tokens are of your own setting: name its --student")
    config.tasks = config.tasks or ["docs"]
    config.tokens = 1e9 if config.tokens is None else config.tokens
    parse_sources(config.data)  # fail on a bad --data before any training
    for name, least in {"scale": 1e-6, "tokens": 1, "teacher_steps": 1}.items():
        cli.check_number(name, getattr(config, name), least)
    cli.check_number("hours", config.hours, least=0, most=math.inf)
    if config.student:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", config.student):
            raise UserError(f"--student {config.student}: give LAYERSxWIDTH, such as 6x768")
        if not (config.teacher and config.data):
            raise UserError(f"--student {config.student} needs a --teacher and --data")
    for flag, path in (("--results", config.results), ("--page", config.page)):
        if path.is_dir():
            raise UserError(f"{flag} {path} is a folder; name a file")
    return config


def planned_units(config: argparse.Namespace) -> list[units.Unit]:
    own = None
    if config.student:
        layers, hidden = map(int, config.student.split("x"))
        own = Student("own", layers, hidden, config.tokens, 3_000)
    rates = config.lr_from == "grid"
    return units.plan(config.scale, rates, config.only, own, config.teacher_steps)


def print_plan(planned: list[units.Unit], records: list[dict]) -> None:
    """One line a unit: its name, estimated hours, the hours up to its end; done or not."""
    done = {record["unit"] for record in records}
    speeds = measured_speeds(records)
    hours = 0.0
    for unit in planned:
        if unit.name in done:
            print(f"{unit.name:58} done")
        else:
            needed = estimated_seconds(unit, speeds) / 3600
            hours += needed
            print(f"{unit.name:58} {needed:6.2f} h  {hours:7.1f} h in all")
    finished = sum(unit.name in done for unit in planned)
    print(f"{finished} of {len(planned)} units are done; about {hours:.1f} hours are left")


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    records = Records(config.results)
    if config.command == "report":
        return write_report(records, config.page, config.readme)
    planned = planned_units(config)
    if config.command == "plan":
        print_plan(planned, records.read())
        return 0
    study = Study(
        folder=config.folder,
        records=records,
        scale=config.scale,
        rates=config.lr_from == "grid",
        deadline=time.monotonic() + 3600 * config.hours,
        teacher_steps=config.teacher_steps,
        teacher=config.teacher or E5,
        data=tuple(config.data),
        tasks=tuple(config.tasks),
    )
    return study.run(planned)


if __name__ == "__main__":
    cli.run(main)
