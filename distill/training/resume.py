"""Begin a run or go on with one: its settings, its start record, its state."""

from dataclasses import asdict, fields

from distill.training.device import provenance
from distill.training.models import Models
from distill.training.processes import world
from distill.training.run import Run
from minitransformer.files import UserError

# settings that a resume may change: they alter how the run goes on, not what it is
MAY_CHANGE = "out resume batch_size accumulate device threads save_every eval_every lr clip".split()


def resumed_settings(config_class: type, given: dict) -> dict:
    """Return the settings of the run that `--out` names, changed by those given with --resume."""
    if "out" not in given:
        raise UserError("--resume goes on with a run folder: name it with --out")
    # the newest: an earlier resume may have changed them
    settings = [r["settings"] for r in Run(given["out"]).records() if "settings" in r][-1]
    if settings.keys() != {f.name for f in fields(config_class)}:
        raise UserError(
            f"{given['out']} was begun by another version of this program; resume it with that"
            " version or start a new run"
        )
    for name, value in given.items():
        if name not in MAY_CHANGE and value not in (settings[name], "auto"):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} {value}, but {given['out']} was started with {settings[name]};"
                f" leave {flag} out to resume it"
            )
    return settings | {name: value for name, value in given.items() if name in MAY_CHANGE}


def is_finished(run: Run) -> bool:
    """Say so if the run is finished, and return whether it is."""
    *_, last = records = run.records()
    if last["event"] != "summary":
        return False
    run.remove_checkpoints()  # it may have been killed between its summary and this
    steps = max(record["step"] for record in records if record["event"] == "eval")
    print(f"{run.folder} is finished: {steps} steps, held-out loss {last['loss_after']}")
    return True


def start_record(config, models: Models, text) -> dict:
    """Return what the log's first record says: settings, teacher, start, text, machine."""
    return {
        "settings": asdict(config),
        "processes": world(),
        "text": text.describe(),
        "sequences_a_step": config.batch_size * config.accumulate * world(),
        "teacher": models.teacher_record,
        "start": models.start,
        **provenance(),
    }


def begin(run: Run, record: dict) -> int:
    """Make the run folder, write the start record at once, return step 0."""
    record["settings"]["out"] = str(run.create(f"runs/{record['settings']['method']}"))
    run.log("start", **record)
    return 0


def resume(run: Run, record: dict, parts: dict) -> tuple[int, int]:
    """Load the newest checkpoint into `parts`, cut the log back to it, return its step
    and how many sequences were read.

    record   the run's start record as it would be now
    parts    name -> whatever has load_state_dict: student, method, optimizer, ...
    """
    run.check_unchanged(record)
    checkpoint = run.newest()
    run.cut_log(checkpoint and checkpoint["log_length"])
    step = sequences = 0
    if checkpoint:
        step, sequences = checkpoint["step"], checkpoint["sequences"]
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
    print(f"resuming {run.folder} at step {step} ({sequences} sequences read)")
    run.log("resume", step=step, **record)
    return step, sequences
