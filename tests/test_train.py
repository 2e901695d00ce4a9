"""train.py from the words on the command line to the folder it leaves, on tiny models."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import train
from distill import METHODS, build_method
from distill.data.batches import Text
from distill.student import freeze_unreached
from minitransformer import Encoder, EncoderConfig, load_pretrained, save_pretrained, weights_hash
from minitransformer.errors import UserError
from minitransformer.tokenizer import load_tokenizer

SENTENCE = "the cat dog bird sees hears likes a red green small old tree house and or then"
WORDS = SENTENCE.split()
FAST = [
    "--seq-len",
    "16",
    "--batch-size",
    "8",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--lr",
    "3e-3",
    "--precision",
    "fp32",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a teacher (4 layers x 32, with an MLM head), the same without, and a text."""
    folder = tmp_path_factory.mktemp("train")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.chdir(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = EncoderConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    tokenizer = load_tokenizer(folder, config)
    for name, head in (("teacher", True), ("headless", False)):
        encoder = Encoder(config, mlm_head=head).reset_parameters(torch.Generator().manual_seed(5))
        save_pretrained(folder / name, encoder, tokenizer)
    # sentences with a rule in them, so that words can be guessed: each is followed by the next
    lines = [
        " ".join(WORDS[(s + i * (1 + s % 3)) % len(WORDS)] for i in range(40)) for s in range(150)
    ]
    (folder / "text.txt").write_text("\n\n".join(lines))
    yield folder
    patch.undo()


def run(folder, *flags, teacher="teacher"):
    out = folder / f"run{len(list(folder.glob('run*')))}"
    status = train.main(
        [
            "--teacher",
            str(folder / teacher),
            "--data",
            f"t={folder}/text.txt",
            "--out",
            str(out),
            *FAST,
            *map(str, flags),
        ]
    )
    assert status == 0
    return out, [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def evals(log):
    return {r["step"]: r["loss"] for r in log if r["event"] == "eval"}


@pytest.mark.parametrize("init", ["2,4", "random"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_from_each_start(here, method, init):
    """200 steps bring the method's own loss on unseen text down; the teacher stays as it is."""
    before = weights_hash(here / "teacher")
    flags = ["--student-ffn", 64, "--init", init, "--eval-every", 200, "--save-every", 80]
    out, log = run(here, "--method", method, "--steps", 200, *flags)
    losses = evals(log)
    assert sorted(losses) == [0, 200]
    assert losses[200] < 0.9 * losses[0]
    assert weights_hash(here / "teacher") == before
    steps = [r for r in log if r["event"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 201))
    assert all(r["loss"] >= 0 and r["lr"] > 0 and r["tokens_per_s"] > 0 for r in steps)
    assert log[0]["event"] == "start"
    assert log[-1]["event"] == "summary"
    left = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "log.jsonl", "loss.png"} <= left
    assert ("projections.safetensors" in left) == (method == "direct-minilm")
    assert not [name for name in left if name.startswith("checkpoint")]
    student, _ = load_pretrained(out)
    assert (student.mlm_head is not None) == (method in ("od", "mlm"))


@pytest.mark.parametrize("method", METHODS)
def test_the_student_overfits_one_batch(here, method):
    """On one batch the loss goes (nearly) to its floor: 0, or for MLM the best guess' entropy."""
    teacher, tokenizer = load_pretrained(here / "teacher")
    before = weights_hash(teacher)
    student = Encoder(teacher.config).reset_parameters(torch.Generator().manual_seed(1))
    chosen = build_method(method, student.config, teacher.config)
    text = Text([f"t={here}/text.txt"], tokenizer, 16, seed=0)
    (batch,) = text.step(4, 1, masked=chosen.masked_text)
    freeze_unreached(student, chosen, teacher, batch)
    transfer = train.Transfer(student, chosen)
    config = SimpleNamespace(lr=3e-3, weight_decay=0.0, clip=1.0)
    optimizer = train.make_optimizer(config, transfer)
    losses = [
        train.train_step(
            config,
            transfer,
            teacher,
            optimizer,
            [batch],
            lambda: torch.autocast("cpu", enabled=False),
            0,
        )[0]
        for _ in range(400)
    ]
    assert losses[-1] < 0.1 * losses[0]
    assert weights_hash(teacher) == before


def test_od_needs_a_head_and_the_named_command_gives_one(here):
    with pytest.raises(UserError, match="--method mlm --init"):
        run(here, "--method", "od", "--steps", 2, teacher="headless")
    headed, _ = run(here, "--method", "mlm", "--init", here / "headless", "--steps", 2)
    assert load_pretrained(headed)[0].config.num_hidden_layers == 4
    flags = ["--method", "od", "--steps", 2, "--student-ffn", 64]
    _, log = run(here, *flags, teacher=headed.name)
    assert evals(log)[2] > 0


def test_od_from_an_hs_student(here):
    """As the study starts OD: the HS student's sizes hold, and its head is the teacher's."""
    student, _ = run(here, "--method", "hs", "--steps", 3, "--student-ffn", 64)
    _, log = run(here, "--method", "od", "--steps", 3, "--init", student)
    assert log[0]["settings"]["student_layers"] == 2
    with pytest.raises(UserError, match=r"--student-layers 3, but --init .* has 2"):
        run(here, "--method", "od", "--init", student, "--student-layers", 3)


def test_narrow_hs_student_keeps_its_maps_out_of_the_export(here):
    out, _ = run(here, "--method", "hs", "--steps", 3, "--student-hidden", 16)
    student, _ = load_pretrained(out)
    assert student.config.hidden_size == 16
    assert (out / "projections.safetensors").exists()


def test_settings_are_declared_once_and_each_has_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.parse_config(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for f in train.fields(train.TrainConfig):
        assert f"--{f.name.replace('_', '-')} " in shown
        assert f.metadata["help"]


def test_learning_rate_rises_and_falls_in_a_line():
    config = SimpleNamespace(lr=1.0, warmup=0.2, steps=10)
    rates = [train.learning_rate(config, step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_no_transformers_at_run_time(here):
    """Both programs import and train without the package that only tests may use."""
    code = f"""
import sys
sys.modules["transformers"] = sys.modules["sentence_transformers"] = None
import evaluate, train
train.main({
        [
            "--teacher",
            str(here / "teacher"),
            "--data",
            f"t={here}/text.txt",
            "--steps",
            "1",
            "--out",
            str(here / "bare"),
            *FAST,
        ]
    })
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=train.__file__.rpartition("/")[0],
        stdout=subprocess.DEVNULL,
    )
