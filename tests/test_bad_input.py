"""What a user can get wrong: each mistake is one line that says what, exit status 2, nothing left.

Both programs run in this process, through the same cli.run that their __main__ calls.
"""

import errno
import json
import os
import pickle
import re
import shutil
import sys

import pytest
import torch
from conftest import WORDS, tiny_config, tiny_encoder, tiny_tokenizer
from helpers import environment, make_inputs
from safetensors.torch import load_file, save_file

import evaluate
import train
from distill.program import cli
from minitransformer import save_pretrained

WORD = "embeddings.word_embeddings.weight"


class Attack:
    def __reduce__(self):
        return open, ("it-ran", "w")


def tensors_of(change):
    """A change of a teacher's weights, as a function of its folder."""

    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def config_of(**changes):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return apply


def replaced(name, content):
    def apply(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return apply


def removed(*names):
    def apply(folder):
        for name in names:
            (folder / name).unlink()

    return apply


def cut_off(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def with_pickle(content, whole=True):
    def apply(folder):
        (folder / "model.safetensors").unlink()
        if whole:
            torch.save(content, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content, protocol=2))

    return apply


def index_to(name):
    def apply(folder):
        (folder / "model.safetensors").unlink()
        index = json.dumps({"weight_map": {"x": name}})
        (folder / "model.safetensors.index.json").write_text(index)

    return apply


# A copy of the teacher with one thing wrong, and what is said of it.
TEACHERS = {
    "no config": (removed("config.json"), "no config.json"),
    "config is no JSON": (replaced("config.json", "{"), "cannot read config.json"),
    "config is no object": (replaced("config.json", "[]"), "expected a JSON object, not list"),
    "another architecture": (config_of(model_type="gpt2"), "'gpt2' is not supported; these are"),
    "another activation": (config_of(hidden_act="relu"), "hidden_act 'relu' is not supported"),
    "a decoder": (config_of(is_decoder=True), "is_decoder is set"),
    "heads do not divide": (
        config_of(num_attention_heads=5),
        "5 attention heads do not divide the width 32; these do: 1, 2, 4",
    ),
    "a size that is none": (config_of(hidden_size="32"), "hidden_size must be a whole number"),
    "a size beyond all": (config_of(num_hidden_layers=10**9), "it must lie in 1 to 512"),
    "no weights": (removed("model.safetensors"), "no model.safetensors or pytorch_model.bin"),
    "weights cut off": (cut_off, "cannot read model.safetensors"),
    "weights empty": (replaced("model.safetensors", ""), "cannot read model.safetensors"),
    "a tensor missing": (tensors_of(lambda t: t.pop("bert." + WORD)), f"missing {WORD}"),
    "a tensor too many": (tensors_of(lambda t: t.update(extra=torch.ones(1))), "unknown 'extra'"),
    "shapes, all of them": (
        config_of(intermediate_size=48),
        ".*".join(
            rf"encoder.layer.{i}.intermediate.dense.weight has shape \[64, 32\], the config says"
            rf" \[48, 32\]"
            for i in range(3)
        ),
    ),
    "another kind of number": (
        tensors_of(lambda t: t.update({"bert." + WORD: torch.ones(300, 32, dtype=torch.int32)})),
        "holds torch.int32, not plain",
    ),
    "an index to elsewhere": (index_to("../../etc/passwd"), "is no weight file of its folder"),
    "an index to nothing": (index_to("model-1.safetensors"), "model-1.safetensors"),
    "code in a checkpoint": (with_pickle({"w": Attack()}), "cannot read pytorch_model.bin"),
    "code in a pickle": (with_pickle({"w": Attack()}, whole=False), "cannot read pytorch_model"),
    "no tensors in it": (with_pickle([1, 2]), "holds no named tensors but a list"),
    "no tokenizer": (removed("tokenizer.json", "vocab.txt"), "tokenizer"),
    "tokenizer is no JSON": (replaced("tokenizer.json", "{]"), "cannot read the tokenizer"),
    "ids beyond the vocabulary": (
        lambda folder: (
            config_of(vocab_size=40)(folder),
            tensors_of(
                lambda t: t.update(
                    {name: tensor[:40].clone() for name, tensor in t.items() if len(tensor) == 300}
                )
            )(folder),
        ),
        r"the tokenizer has ids up to \d+, but the encoder's vocab_size is 40",
    ),
}

# {what: (flags, what the line says)}; {here} is the folder with teacher, texts and broken files.
TRAIN = {
    "unknown flag": ("--stepz 5", r"unrecognized arguments: --stepz 5 \(--help lists"),
    "flag cut short": ("--meth mha", "unrecognized arguments: --meth mha"),
    "a word too many": ("mha", "unrecognized arguments: mha"),
    "unknown method": ("--method magic", "invalid choice: 'magic'.*direct-minilm"),
    "unknown mapping": ("--mapping diagonal", "invalid choice: 'diagonal'.*uniform"),
    "no number": ("--steps many", "invalid int value: 'many'"),
    "no value": ("--steps", "--steps: expected one argument"),
    "a value for a switch": ("--compile=False", "--compile: ignored explicit argument 'False'"),
    "no steps": ("--steps 0", "--steps is 0; it must be from 1 to"),
    "fewer than none": ("--steps -5", "--steps is -5"),
    "lr is no number": ("--lr nan", "--lr is nan"),
    "lr without end": ("--lr inf", "--lr is inf"),
    "lr of nothing": ("--lr 0", "--lr is 0.0"),
    "warmup beyond the run": ("--warmup 2", "--warmup is 2.0; it must be from 0 to 1"),
    "negative seed": ("--seed -1", "--seed is -1"),
    "alpha": ("--alpha 3", "--alpha is 3.0; it must be from 0 to 1"),
    "temperature": ("--temperature 0", "--temperature is 0.0"),
    "no batch": ("--batch-size 0", "--batch-size is 0"),
    "a batch beyond memory": ("--batch-size 99999999", "--batch-size is 99999999"),
    "threads": ("--threads 5000", "--threads is 5000; it must be from 0 to 1024"),
    "no such device": ("--device tpu", "--device tpu cannot be used here.*give auto"),
    "no such GPU": ("--device cuda:99", "--device cuda:99 cannot be used here"),
    "not a device to train on": ("--device meta", "--device meta cannot be used here"),
    "longer than the positions": ("--seq-len 400", "--seq-len 400, .* positions for 40 tokens"),
    "no room for a token": ("--seq-len 2", "--seq-len is 2; it must be from 3"),
    "heads of the student": ("--student-heads 5", "5 attention heads do not divide the width 32"),
    "width of the student": ("--student-hidden 99999999", "--student-hidden is 99999999"),
    "layers of the student": ("--student-layers 600", "num_hidden_layers is 600"),
    "more layers than the teacher": (
        "--student-layers 5 --student-ffn 64 --init uniform",
        "5 student layers, but the teacher has 3",
    ),
    "another width than copied": ("--init first --student-hidden 16", "copies teacher layers, but"),
    "a layer that is not there": ("--init 9 --student-ffn 64", "layer 9 is not one of .* 1 to 3"),
    "layers and their number": ("--init 1,2 --student-ffn 64", "lists 2 layers, .* student has 1"),
    "wider than the teacher": ("--init embeddings --student-hidden 64", "width 64 exceeds .* 32"),
    "no such student": ("--init ./nowhere", "./nowhere: no such folder"),
    "sizes of another student": (
        "--init {here}/teacher --student-layers 1",
        "--student-layers 1, but --init .* has 3",
    ),
    "a student that reads otherwise": ("--init {here}/roberta", "the tokenizers differ"),
    "teacher layer": ("--teacher-layer 9", "teacher layer 9 .* 1 to 3"),
    "relation heads": ("--relation-heads 5", "5 relation heads .* these do: 1, 2, 4, 8, 16, 32"),
    "no such teacher": ("--teacher ./nowhere", "./nowhere: no such folder"),
    "no such teacher on the hub": ("--teacher no-such/teacher-here", "the hub did not give it"),
    "revision of a folder": ("--revision v2", r"only a hub id has a revision \('v2'\)"),
    "no head to distil": ("--method od --teacher {here}/headless", "--method mlm --init"),
    "a run that exists": ("--out {here}/teacher", "exists; choose another name.*--resume"),
    "a run in a file": ("--out {here}/text.txt/run", "nothing can be made in"),
    "resume of what": ("--resume", "name it with --out"),
    "resume of nothing": ("--resume --out nowhere", "nowhere: no such run folder"),
    "resume of no run": ("--resume --out {here}/teacher", "has no start record"),
    "resume of another version": ("--resume --out {here}/old", "begun by another version"),
    "data is what": ("--data web", "unknown; give docs, NAME=path"),
    "no such file": ("--data web={here}/none.txt", "no file matches"),
    "no such kind of file": ("--data web={here}/text.doc", "is none of .txt, .jsonl, .parquet"),
    "two of one name": ("--data a={here}/text.txt --data a={here}/text.txt", "not all different"),
    "empty text": ("--data web={here}/empty.txt", "--data web: the text is empty"),
    "blank text": ("--data web={here}/blank.txt", "--data web: the text is empty"),
    "very little text": ("--data web={here}/short.txt", "2 tokens, but sequences of 16 take at"),
    "not UTF-8": ("--data web={here}/latin.txt", "latin.txt, near line 1: not UTF-8"),
    "not JSON": ("--data web={here}/bad.jsonl", "bad.jsonl, line 2: not JSON"),
    "no such column": ("--data web={here}/good.jsonl:body", "line 1: no column 'body'"),
    "not parquet": ("--data web={here}/bad.parquet", "not a readable parquet file"),
    "size in tokens": ("--data web={here}/text.txt@many", "@many is not a number of tokens"),
    "no such dataset": ("--data web=hub:no-such/dataset-here", "cannot open the hub dataset"),
    "no such column there": ("--data web=hub:{here}/dataset:::body", "no column 'body', but text"),
    "no such split there": ("--data web=hub:{here}/dataset::dev", "cannot open the hub dataset"),
    "a stream of little": ("--data web=hub:{here}/dataset", "the stream ends within 257 sequences"),
    "words the tokenizer lacks": (
        "--method mlm --data web={here}/unknown.txt",
        "nothing but special tokens",
    ),
}

EVALUATE = {
    "of what": ("", "the following arguments are required: RUN"),
    "no such run": ("./nowhere", "./nowhere: no such folder"),
    "an unfinished run": ("{here}/unfinished", "unfinished: python train.py --out .* --resume"),
    "no such task": ("{here}/teacher --tasks poetry", "--tasks poetry: neither a folder nor one"),
    "no such folder of data": (
        "{here}/teacher --tasks rte --data-dir nowhere",
        "--data-dir nowhere: no such folder",
    ),
    "not in that folder": ("{here}/teacher --tasks rte --data-dir {here}", "no folder rte or RTE"),
    "no seeds": ("{here}/teacher --seeds 0", "--seeds is 0"),
    "no rate": ("{here}/teacher --lrs 0", "--lrs 0.0 must be above 0"),
    "no such teacher": ("{here}/teacher --teacher ./nowhere", "./nowhere: no such folder"),
    "no dev": ("{here}/teacher --tasks {here}/task-no-dev", "no dev with one of .parquet, .jsonl"),
    "no rows": ("{here}/teacher --tasks {here}/task-empty", "no rows in it"),
    "no label": ("{here}/teacher --tasks {here}/task-no-label", "no column 'label'"),
    "a label of dev": (
        "{here}/teacher --tasks {here}/task-new-label",
        "dev.csv, line 3: label 'c' does not occur in train: a, b",
    ),
    "a line too long": (
        "{here}/teacher --tasks {here}/task-ragged",
        "train.csv, line 3: 3 cells, but the header has 2",
    ),
    "one class": ("{here}/teacher --tasks {here}/task-one-class", "every label of train is 'a'"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with good inputs and with everything that is wrong in the tables above."""
    folder = tmp_path_factory.mktemp("bad-input")
    make_inputs(folder)
    for name, encoder in (
        ("headless", tiny_encoder(mlm_head=False)),
        ("roberta", tiny_encoder(tiny_config("roberta"))),
    ):
        (folder / name).mkdir()
        save_pretrained(folder / name, encoder, tiny_tokenizer(encoder.config.model_type))
    (folder / "text.doc").write_text("text")
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text("\n \n\n")
    (folder / "short.txt").write_text("the")
    (folder / "latin.txt").write_bytes("für\n".encode("latin-1") * 1000)
    (folder / "unknown.txt").write_text("字 " * 1000)
    (folder / "good.jsonl").write_text('{"text": "the"}\n')
    (folder / "bad.jsonl").write_text('{"text": "the"}\n{"text": \n')
    (folder / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    (folder / "dataset").mkdir()
    (folder / "dataset" / "train.jsonl").write_text(json.dumps({"text": " ".join(WORDS)}) + "\n")
    for name, event in (
        ("old", {"settings": {"method": "mha"}}),
        ("unfinished", {"settings": {}, "teacher": None}),
    ):
        (folder / name).mkdir()
        (folder / name / "log.jsonl").write_text(json.dumps({"event": "start", **event}) + "\n")
    good = "text,label\none,a\ntwo,b\n"
    for name, train_file, dev_file in (
        ("no-dev", good, None),
        ("empty", "text,label\n", good),
        ("no-label", "text,class\none,a\n", good),
        ("new-label", good, good[:-2] + "c\n"),
        ("ragged", good[:-2] + "b,c\n", good),
        ("one-class", good[:-2] + "a\n", good),
    ):
        (folder / f"task-{name}").mkdir()
        for split, content in (("train", train_file), ("dev", dev_file)):
            if content is not None:
                (folder / f"task-{name}" / f"{split}.csv").write_text(content)
    return folder


@pytest.fixture
def says(here, tmp_path, monkeypatch, capfd):
    """says(program, argv): the one line that it ends with."""
    for name, value in environment(here).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(program, argv):
        monkeypatch.setattr("sys.argv", [f"{program.__name__}.py", *argv])
        left = {path for path in here.rglob("*") if "cache" not in path.parts}
        with pytest.raises(SystemExit) as ended:
            cli.run(program.main)
        complaint = capfd.readouterr().err
        assert ended.value.code == 2, complaint
        assert len(complaint.splitlines()) == 1
        assert complaint.startswith(f"{program.__name__}.py: ")
        assert list(tmp_path.iterdir()) == []  # no run folder, nothing of an attack
        assert {path for path in here.rglob("*") if "cache" not in path.parts} == left
        assert not list(here.glob("cache/**/*.tmp"))
        return complaint

    return run


def flags(here, given):
    words = given.format(here=here).split()
    usual = ["--teacher", f"{here}/teacher"]
    usual += [] if "--data" in words else ["--data", f"web={here}/text.txt"]
    # no --seq-len, --threads and so on, in which a table's own could only differ by order
    return [*usual, "--steps", "2", "--seq-len", "16", "--threads", "1", *words]


@pytest.mark.parametrize("what", TRAIN)
def test_train(what, here, says):
    given, message = TRAIN[what]
    argv = given.format(here=here).split() if "--resume" in given else flags(here, given)
    assert re.search(message, says(train, argv))


@pytest.mark.parametrize("what", TEACHERS)
def test_teachers(what, here, says, tmp_path_factory):
    broken, message = TEACHERS[what]
    teacher = tmp_path_factory.mktemp("broken") / "teacher"
    shutil.copytree(here / "teacher", teacher)
    broken(teacher)
    line = says(train, flags(here, f"--teacher {teacher}"))
    assert re.search(message, line)
    assert str(teacher) in line


@pytest.mark.parametrize("what", EVALUATE)
def test_evaluate(what, here, says):
    given, message = EVALUATE[what]
    argv = given.format(here=here).split()
    usual = ["--data", f"w={here}/text.txt", *([] if "--tasks" in argv else ["--tasks", "none"])]
    assert re.search(message, says(evaluate, argv and [*argv, *usual]))


def test_the_tables_are_as_long_as_promised():
    assert len(TRAIN) + len(TEACHERS) + len(EVALUATE) >= 100


def test_out_of_memory_and_ctrl_c_are_one_line_too(monkeypatch, capsys):
    def enough():
        return torch.empty(2**60)

    def interrupted():
        raise KeyboardInterrupt

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "loss.png")

    def unread():
        raise BrokenPipeError

    for main, status, message in ((enough, 2, "out of memory"), (interrupted, 130, "interrupted")):
        with pytest.raises(SystemExit) as ended:
            cli.run(main)
        complaint = capsys.readouterr().err
        assert (ended.value.code, complaint.count("\n")) == (status, 1)
        assert message in complaint
    monkeypatch.setattr("sys.stdout", sys.stdout)  # which it replaces, as nobody reads it
    with pytest.raises(SystemExit):
        cli.run(unread)
    assert "nobody reads the output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.run(full)
    assert capsys.readouterr().err.endswith(": loss.png: No space left on device\n")
    with pytest.raises(FileNotFoundError):
        cli.run(lambda: os.stat("nowhere"))
    with pytest.raises(ZeroDivisionError):  # a defect of ours keeps its traceback
        cli.run(lambda: 1 // 0)
