"""train.py from the words on the command line to the folder it leaves, on tiny models."""

import os
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import save_tiny, tiny_encoder
from helpers import make_inputs, records

import train
from distill import METHODS
from distill.training.report import plot_loss, write_card
from distill.training.setup import learning_rate, make_optimizer
from minitransformer import UserError, load_pretrained


@pytest.fixture(scope="module")
def run(home):
    """run(flags): train; returns the run folder and its log. `headless` has no MLM head."""
    inputs = [*make_inputs(home, num_hidden_layers=4), "--batch-size", "8", "--lr", "3e-3"]
    save_tiny(home / "headless", mlm_head=False)

    def run(*flags):
        out = home / f"run{len(list(home.glob('run*')))}"
        assert train.main([*inputs, *map(str, flags), "--out", str(out)]) == 0
        return out, records(out)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_leaves(run, method):
    out, log = run("--method", method, "--steps", 3, "--save-every", 1, "--plain")
    events = ["start", "eval", "step", "step", "step", "eval", "summary"]
    assert [r["event"] for r in log] == events
    assert log[0]["settings"]["plain"] is True
    read = {"mha": 3, "direct-minilm": 3}.get(method, 4)  # the highest layer that the method reads
    assert log[0]["start"]["layers"][-1] == read
    files = "README.md config.json log.jsonl model.safetensors tokenizer.json tokenizer_config.json"
    left = {path.name for path in out.iterdir()} - {"modules.json", "1_Pooling"}
    maps = {"projections.safetensors"} if method == "direct-minilm" else set()
    assert left == {*files.split()} | maps
    assert (load_pretrained(out)[0].mlm_head is not None) == (method in ("od", "mlm"))


def test_no_steps_export_the_untrained_student(run):
    out, log = run("--steps", 0, "--init", "1,3")
    (out / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    again, _ = run("--steps", 0, "--init", out)  # the pooling is its teacher's
    assert load_pretrained(again)[1].pooling == "mean"
    assert [r["event"] for r in log] == ["start", "eval", "summary"]
    student, teacher = load_pretrained(out)[0], load_pretrained("teacher")[0]
    for copy, block in zip(student.blocks, (teacher.blocks[0], teacher.blocks[2]), strict=True):
        assert all(map(torch.equal, copy.state_dict().values(), block.state_dict().values()))


def test_a_hub_dataset_of_unknown_size_and_a_teacher_that_mlm_does_not_read(run, home, capsys):
    (home / "set").mkdir()
    shutil.copy(home / "text.txt", home / "set" / "a.txt")
    flags = "--data a=hub:set --steps 1 --seq-len 16 --method mlm --init headless --teacher x"
    assert train.main([*flags.split(), "--out", "hubbed"]) == 0
    assert "WARNING: --teacher and --revision are not read" in capsys.readouterr().out


def test_a_method_is_checked_in_the_precision_of_the_run(run, monkeypatch):
    method = METHODS["mha"]  # whose sum would be a bfloat16 under autocast
    monkeypatch.setattr(method, "compare", lambda self, name, s, t, batch: ((s @ t.mT).sum(), 1))
    with pytest.raises(UserError, match=r"^MHA: .* \['torch.bfloat16 \(\)', 'int'\]"):
        run("--method", "mha", "--precision", "bf16")


@pytest.mark.slow
def test_what_a_run_prints(run, monkeypatch, capsys):
    monkeypatch.setattr("distill.training.report.plot_loss", plot_loss)
    layers = "--student-layers", 3, "--teacher-layer", 3
    out, _ = run("--method", "mha", "--steps", 1, *layers, "--eval-every", 1, "--lr", 10)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for line in (
        r"student: 3 layers x 32, 4 heads, FFN 64, 36\.\d k parameters, mean pooling; "
        r"--init uniform from layers 1, 2, 3",
        r"frozen, .*: blocks\.2\.output, blocks\.2\.attention_norm, .*",
        r"note: positions 17 to 40 are not trained, they stay as copied",
        r"WARNING: the student copies teacher layers 1 to 3, .*",
        r"step +1/1  held-out loss \d\.\d{4}",
        r"WARNING: the held-out loss rose; .*",
    ):
        assert re.search(f"^{line}$", printed, re.M), line


@pytest.mark.parametrize(
    ("method", "task", "source"),
    [("mha", "feature-extraction", "./teacher"), ("mlm", "fill-mask", "./headless")],
)
def test_the_model_card(run, method, task, source, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--method", method, "--data", "a b"])
    init = ["--teacher", source] if method == "mha" else ["--init", source]
    out, log = run("--method", method, "--steps", 2, *init)
    _, metadata, text = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(metadata) == {  # no base_model: it is local
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["distillation", method, "sentence-transformers"],
    }
    evals = {r["step"]: r["loss"] for r in log if r["event"] == "eval"}
    for words in (
        f"from `{source}`",
        f"Held-out loss {evals[0]:.4f} -> {evals[2]:.4f} in 2 steps on sequences of 16 tokens",
        "- web: 100.0% of the sequences",
        f"python train.py --method {method} --data 'a b'",
    ):
        assert words in text
    log[0]["settings"] |= {"teacher": "minilm", "init": "an/encoder", "text": "a setting"}
    write_card(out, log[0], SimpleNamespace(student=tiny_encoder()), "")
    base = "an/encoder" if method == "mlm" else "sentence-transformers/all-MiniLM-L6-v2"
    assert f'base_model: "{base}"\n' in (out / "README.md").read_text()


def test_weight_decay_acts_on_layers_and_maps_alone():
    model = torch.nn.ModuleDict({"encoder": tiny_encoder(), "map": torch.nn.Linear(2, 2)})
    model["map"].bias.requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, kept = (group["params"] for group in make_optimizer(model, 1e-3, 0.1).param_groups)
    assert {names[p].rpartition(".")[2] for p in decayed} == {"weight"}
    assert not [names[p] for p in decayed if "embeddings" in names[p] or "norm" in names[p]]
    assert {names[p] for p in kept} >= {"encoder.embeddings.word.weight", "encoder.mlm_head.bias"}
    assert {names[p] for p in [*decayed, *kept]} == {*names.values()} - {"map.bias"}
    assert len(decayed) + len(kept) == len(names) - 1


def test_settings_from_the_command_line():
    config = train.parse_config("--data docs --data w=x.txt --out=~/run --init=~/other".split())
    assert config.data == ["docs", "w=x.txt"]
    assert (config.out, config.init) == tuple(map(os.path.expanduser, ("~/run", "~/other")))


def test_learning_rate_rises_and_falls_in_a_line():
    rates = [learning_rate(step, 10, 1.0, 0.2) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
