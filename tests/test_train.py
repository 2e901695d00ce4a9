"""train.py from the words on the command line to the folder it leaves, on tiny models."""

import os
import sys

import pytest
import torch
import yaml
from helpers import records, without_figures

import train
from distill import METHODS
from distill.program.machine import autocast, can_compile, choose_precision, machine
from distill.training.card import hub_id
from distill.training.optimizer import learning_rate
from distill.training.report import describe_size
from minitransformer import Encoder, EncoderConfig, load_pretrained, save_pretrained, weights_hash
from minitransformer.errors import UserError
from minitransformer.tokenizer_files import load_tokenizer

WORDS = "the cat dog bird sees hears likes a red green small old tree house and or then".split()
FAST = "--seq-len 16 --batch-size 8 --threads 1 --device cpu --lr 3e-3 --precision fp32".split()


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
    lines = []
    for s in range(150):  # a rule that makes words guessable: the next one is 1, 2 or 3 further on
        lines.append(" ".join(WORDS[(s + i * (1 + s % 3)) % len(WORDS)] for i in range(40)))
    (folder / "text.txt").write_text("\n\n".join(lines))
    yield folder
    patch.undo()


def run(folder, *flags, teacher="teacher"):
    """Train and return the run folder and its log; without the slow figures of the end."""
    out = folder / f"run{len(list(folder.glob('run*')))}"
    argv = ["--teacher", folder / teacher, "--data", f"t={folder}/text.txt", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        assert train.main([str(word) for word in (*argv, *FAST, *flags)]) == 0
    return out, records(out)


def evals(log):
    return {r["step"]: r["loss"] for r in log if r["event"] == "eval"}


@pytest.mark.slow
@pytest.mark.parametrize("init", ["2,4", "random"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_from_each_start(here, method, init):
    """200 steps bring the method's own loss on unseen text down; the teacher stays as it is."""
    before = weights_hash(load_pretrained(here / "teacher")[0])
    flags = ["--init", init, "--eval-every", 200, "--save-every", 80, "--steps", 200]
    _, log = run(here, "--method", method, *flags)
    losses = evals(log)
    assert sorted(losses) == [0, 200]
    assert losses[200] < 0.9 * losses[0]
    assert weights_hash(load_pretrained(here / "teacher")[0]) == before


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_leaves(here, method):
    out, log = run(here, "--method", method, "--steps", 3, "--save-every", 1, "--plain")
    steps = [r for r in log if r["event"] == "step"]
    assert [r["step"] for r in steps] == [1, 2, 3]
    assert all(r["loss"] >= 0 and r["lr"] > 0 and r["tokens_per_s"] > 0 for r in steps)
    assert [r["event"] for r in log[:2]] == ["start", "eval"]
    assert log[-1]["event"] == "summary"
    assert log[0]["settings"]["plain"] is True
    read = {"mha": 3, "direct-minilm": 3}.get(method, 4)  # the highest layer that the method reads
    assert log[0]["start"]["layers"][-1] == read
    left = {path.name for path in out.iterdir()}
    files = {"config.json", "model.safetensors", "tokenizer.json", "log.jsonl", "README.md"}
    assert files <= left
    assert ("projections.safetensors" in left) == (method == "direct-minilm")
    assert not [name for name in left if name.startswith(("checkpoint", "."))]
    student, _ = load_pretrained(out)
    assert (student.mlm_head is not None) == (method in ("od", "mlm"))


@pytest.mark.slow
def test_the_figures_of_a_run(here, capsys):
    """Without the shortcut of the other tests: loss.png is real."""
    argv = ["--teacher", str(here / "teacher"), "--data", f"t={here}/text.txt", "--steps", "1"]
    assert train.main([*argv, *FAST, "--out", str(here / "figures")]) == 0
    assert (here / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "starts from teacher layers 2, 3 (uniform)" in printed
    assert "next:\n  python evaluate.py" in printed


@pytest.mark.parametrize("method", ["mha", "mlm"])
def test_the_model_card(here, method, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--method", method, "--data", "a b"])
    flags = ["--method", method, "--steps", 2]
    if method == "mlm":
        flags += ["--init", here / "headless"]
    out, log = run(here, *flags)
    _, metadata, text = (out / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(metadata)
    assert metadata["library_name"] == "transformers"
    kind = "fill-mask" if method == "mlm" else "feature-extraction"
    assert metadata["pipeline_tag"] == kind
    assert {"distillation", method} <= set(metadata["tags"])
    assert "base_model" not in metadata  # the teacher is a local folder
    assert "datasets" not in metadata
    assert ("**Fine-tune this model.**" in text) == (method == "mha")
    source = "headless" if method == "mlm" else "teacher"
    assert f"from `{here / source}`" in text
    before, after = evals(log)[0], evals(log)[2]
    assert f"held-out loss {before:.4f} -> {after:.4f} in 2 steps" in text
    assert f"- t: 100.0% of the sequences, {log[0]['text'][0]['tokens']:,} tokens" in text
    assert f"python train.py --method {method} --data 'a b'" in text
    ids = [hub_id(name) for name in ("embedded", "google-bert/bert-base-uncased", str(here))]
    assert ids == ["sentence-transformers/all-MiniLM-L6-v2", "google-bert/bert-base-uncased", None]


def test_od_needs_a_head_and_the_named_command_gives_one(here):
    with pytest.raises(UserError, match="--method mlm --init"):
        run(here, "--method", "od", "--steps", 2, teacher="headless")
    headed, _ = run(here, "--method", "mlm", "--init", here / "headless", "--steps", 2)
    assert load_pretrained(headed)[0].config.num_hidden_layers == 4
    _, log = run(here, "--method", "od", "--steps", 2, teacher=headed.name)
    assert evals(log)[2] > 0


def test_od_from_an_hs_student(here):
    """As the study starts OD: the HS student's sizes hold, and its head is the teacher's."""
    student, _ = run(here, "--method", "hs", "--steps", 3)
    _, log = run(here, "--method", "od", "--steps", 3, "--init", student)
    assert log[0]["settings"]["student_layers"] == 2
    with pytest.raises(UserError, match=r"--student-layers 3, but --init .* has 2"):
        run(here, "--method", "od", "--init", student, "--student-layers", 3)


def test_settings_from_the_command_line():
    config = train.parse_config(["--method", "hs", "--data", "docs", "--data", "web=x.txt"])
    assert config.data == ["docs", "web=x.txt"]
    assert config.lr == train.PEAK_LR["hs"]


def test_learning_rate_rises_and_falls_in_a_line():
    rates = [learning_rate(step, 10, 1.0, 0.2) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_small_prints(monkeypatch):
    assert describe_size([{"tokens": 1200}, {"tokens": 34}]) == "1,234 tokens"
    assert describe_size([{"tokens": 1200}, {"tokens": None}]) == "size unknown"
    assert "GiB" in machine()
    monkeypatch.delattr(os, "sysconf_names")  # as on Windows
    assert "GiB" not in machine()


def test_precision():
    cpu, mps = torch.device("cpu"), torch.device("mps")
    assert choose_precision("auto", mps) == "fp32"
    assert choose_precision("bf16", cpu) == "bf16"
    context, one = autocast(cpu, "bf16"), torch.ones(2, 2)
    for _ in range(2):  # it may be entered again
        with context:
            assert (one @ one).dtype == torch.bfloat16
    with autocast(cpu, "fp32"):
        assert (one @ one).dtype == torch.float32


def test_without_a_compiler_it_trains_without_compile(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not can_compile(torch.device("cpu"))
    assert "no C++ compiler (no-such-compiler)" in capsys.readouterr().out
