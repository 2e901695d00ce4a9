"""Compare the methods: list the rows, run them, write their page.

    python -m distill.study list                             the rows in their order; which are done
    python -m distill.study run                              those without a record, in that order
    python -m distill.study run --only 'english-3x384/*/2M'  the rows whose names begin so
    python -m distill.study report                           the page of the records in --results

Several `run` at once share the list: one for each GPU (CUDA_VISIBLE_DEVICES=1), or one for each
core (OMP_NUM_THREADS=1). Multilingual text needs Debian's apt-get, its teacher the hub or
--teacher. For a student of your own see docs/full_scale.md.
"""

import argparse
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

from distill.study.report import write_report
from distill.study.rows import CORE, OTHERS, VARIANTS, grid, rows
from distill.study.run import Study, read_records
from distill.training import cli
from minitransformer.files import UserError


def parse_config(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, text = parser.add_argument, os.path.expanduser

    def path(name: str) -> Path:
        return Path(name).expanduser().absolute()  # the same, wherever a row is resumed from

    add("command", choices=["list", "run", "report"])
    add("--only", default="", metavar="NAME", help="rows whose names begin so; * matches any part")
    add("--folder", type=path, default="runs/study", help="work folder")
    add("--results", type=path, default=Path("results/study.jsonl"), help="file of the records")
    add("--page", type=path, default=Path("results/study.md"), help="report: page to write")
    add("--teacher", type=text, help="for multilingual or your own rows: a folder or a hub id")
    add("--data", action="append", default=[], help="your own: as in train.py")
    add("--tasks", nargs="+", default=[], help="your own: as in evaluate.py")
    add("--data-dir", type=text, help="as in evaluate.py")
    add("--student", metavar="LxH", help="your own: layers and width, such as 6x768")
    add("--start", help="of your own student: train.py's --init (default: uniform)")
    add("--tokens", type=float, help="that your student reads (default: 1e9)")
    add("--batch", type=int, default=16, help="sequences in a step, over all processes")
    add("--seq-len", type=int, default=128, help="tokens in a sequence")
    rates_help = f"learning rate of all methods, or METHOD=RATE, of {', '.join(VARIANTS)}"
    add("--rates", nargs="+", default=[], metavar="RATE", help=rates_help)
    add("--warmup", help="share of the steps, as in train.py")
    add("--heads", help="train.py's --student-heads")
    add("--ffn", help="train.py's --student-ffn")
    add("--nproc", type=int, default=1, help="processes of torchrun, one for each GPU")
    config = parser.parse_args(argv)
    if config.student and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", config.student):
        raise UserError(f"--student {config.student}: give LAYERSxWIDTH, such as 6x768")
    own = (config.student, config.data, config.tasks)
    if any((*own, config.start, config.tokens)) and not (all(own) and config.teacher):
        raise UserError("your own rows need --student, --teacher, --data and --tasks")
    config.start, config.tokens = config.start or "uniform", config.tokens or 1e9
    for name, least in {"tokens": 1, "batch": 1, "seq_len": 3, "nproc": 1}.items():
        cli.check_number(name, getattr(config, name), least)
    if config.batch % config.nproc:
        raise UserError(f"--batch {config.batch} is not a multiple of --nproc {config.nproc}")
    config.rates = {name: rate for name, _, rate in (r.rpartition("=") for r in config.rates)}
    if unknown := config.rates.keys() - VARIANTS.keys() - {""}:
        raise UserError(f"--rates {', '.join(unknown)}: not one of {', '.join(VARIANTS)}")
    return config


def main(argv: list[str] | None = None) -> int:
    config = parse_config(argv)
    if config.command == "report":
        return write_report(config.results, config.page)
    chosen = rows()
    if config.student:
        own, seeds = f"own-{config.student}", (0, 1, 2)
        chosen = grid(own, CORE + OTHERS, [config.start], seeds, config.tokens)
    chosen = [row for row in chosen if fnmatchcase(row.name, config.only + "*")]
    if not chosen:
        raise UserError(f"--only {config.only}: no row's name begins so; `list` shows all")
    if config.command == "list":
        done = {record["row"] for record in read_records(config.results)}
        print(*(f"{'done' if r.name in done else '':4}  {r.name}" for r in chosen), sep="\n")
        return 0
    return Study(config).run(chosen)


if __name__ == "__main__":
    cli.run(main)
