"""Fine-tuning: it learns, only its settings decide the result, and nothing is done twice."""

import copy
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import MODEL_TYPES, WORDS, tiny_config, tiny_encoder, tiny_tokenizer

from distill.evaluation import finetune
from distill.evaluation.columns import Model
from distill.evaluation.finetune import DISTINCT, Cell, Classifier, Examples, Grid, Recipe, Tuner
from distill.evaluation.tasks import Split, Task

RECIPE = Recipe(batch_size=8)


def make_task(size=64, pairs=False, numbers=False, seed=0, **changes):
    """Sentences of many lengths; the label says whether, or how often, `model` is in them."""

    def split(n, seed):
        chance = random.Random(seed)
        texts = [chance.choices([*WORDS[:8], "model"], k=chance.randint(1, 14)) for _ in range(n)]
        labels = [text.count("model") / 4 if numbers else int("model" in text) for text in texts]
        others = [" ".join(chance.choices(WORDS[:8], k=3)) for _ in texts] if pairs else None
        return Split([" ".join(text) for text in texts], others, labels)

    classes, metrics = ((), ("pearson",)) if numbers else (("no", "yes"), ("accuracy",))
    task = Task("toy", split(size, seed), {"dev": split(40, seed + 1)}, classes, metrics)
    return replace(task, **changes)


def make_model(model_type="bert", seed=0):
    encoder = tiny_encoder(tiny_config(model_type), mlm_head=False, seed=seed)
    encoder.reset_parameters(torch.Generator().manual_seed(seed))
    return encoder, tiny_tokenizer(model_type)


def grid(model, task, lrs=(1e-3,), epochs=(1,), seeds=2, recipe=RECIPE):
    return Grid(Model("m", *model), task, recipe, lrs, epochs, seeds)


pytestmark = pytest.mark.usefixtures("folder")  # results are kept in the cache there


def train(task, lr=1e-3, epochs=1, seed=0, recipe=RECIPE, model="bert"):
    return Tuner(*make_model(model), task, recipe).train(lr, epochs, seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "precision"), [("bert", "fp32"), ("roberta", "bf16"), ("xlm-roberta", "fp32")]
)
def test_it_learns_classes(model_type, precision):
    recipe, task = replace(RECIPE, precision=precision), make_task(200, precision == "fp32")
    scores = train(task, 3e-3, 4, recipe=recipe, model=model_type)["dev"]
    assert scores["accuracy"] >= 0.8  # guessing: 0.55
    assert scores[DISTINCT] == 2


@pytest.mark.slow
def test_it_learns_numbers_of_any_size():
    task = make_task(200, numbers=True)
    large = Split(task.train.texts, None, [1000 * n + 70_000 for n in task.train.labels])
    for split in (task.train, large):  # labels are scaled, so their unit is irrelevant
        assert train(replace(task, train=split), 3e-3, 4)["dev"]["pearson"] >= 0.9


def test_equal_labels_are_no_crash_and_answers_of_one_kind_are_counted():
    numbers, classes = make_task(20, numbers=True), make_task(20)
    same = Split(numbers.train.texts, None, [2.5] * 20)
    assert np.isfinite(train(replace(numbers, train=same))["dev"]["pearson"])
    same = Split(classes.train.texts, None, [1] * 20)
    assert train(replace(classes, train=same), 1e-2, 3)["dev"][DISTINCT] == 1


def test_all_layers_and_the_words_read_are_trained():
    """A student of MHA has a last block that never learned; fine-tuning must reach it."""
    encoder, tokenizer = make_model()
    before = copy.deepcopy(encoder.state_dict())
    Tuner(encoder, tokenizer, make_task(), RECIPE).train(1e-2, 1, 0)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    encoder.requires_grad_(False)  # as train.py leaves what its method does not reach
    tuner = Tuner(encoder, tokenizer, make_task(8), RECIPE)
    model = Classifier(encoder, tuner.used_ids, 2, torch.Generator().manual_seed(0))
    tuner.loss(model, np.arange(8)).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without <= {f"encoder.blocks.{i}.key.bias" for i in range(3)}  # softmax cancels it


def test_the_seed_alone_decides_bit_for_bit():
    task = make_task(numbers=True)  # a correlation shows the least difference
    first = train(task)
    torch.rand(7)  # the global generator is nobody's
    assert train(task) == first != train(task, seed=1)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_vector_is_the_mean_over_real_tokens(model_type):
    """Whatever a row is padded with and whatever words the copy knows."""
    encoder, tokenizer = make_model(model_type)
    tuner = Tuner(encoder, tokenizer, make_task(30, pairs=model_type == "bert"), RECIPE)
    model = Classifier(encoder, tuner.used_ids, 2, torch.Generator().manual_seed(0)).eval()
    split, examples = tuner.task.train, tuner.splits["train"]
    rows = tokenizer.encode_pairs(split.texts, split.text_pairs, max_tokens=40)
    assert len(set(examples.lengths)) > 5
    with torch.inference_mode():
        found = tuner.outputs(model, examples, np.arange(30))
        for (ids, types), outputs in zip(rows, found, strict=True):
            hidden = encoder(torch.tensor([ids]), None, torch.tensor([types])).hidden[-1]
            assert torch.allclose(outputs, model.head(hidden.mean(dim=1))[0], atol=1e-5)


def test_batches_hold_every_row_once_and_like_lengths():
    examples = Examples(make_task(500).train, tiny_tokenizer(), tiny_config(), 40)
    batches = examples.shuffled(16, torch.Generator().manual_seed(0))
    assert sorted(np.concatenate(batches)) == list(range(500))
    padded = sum(len(rows) * examples.lengths[rows].max() for rows in batches)
    assert padded <= 1.1 * examples.lengths.sum()


def test_inputs_are_cut_to_what_fits_and_counted():
    task = make_task(8)
    texts = [" ".join(WORDS * 9)] * 3 + ["the " * 38] + task.train.texts[4:]  # 38 just fit in 40
    long = Split(texts, None, task.train.labels)
    for most, expected, cut in ((128, 40, 3), (30, 30, 4)):  # the tiny encoder has 40 positions
        tuner = Tuner(*make_model(), replace(task, train=long), replace(RECIPE, max_tokens=most))
        examples = tuner.splits["train"]
        assert set(examples.lengths[:3]) == {expected}
        assert tuner.cut == cut
        ids, _ = tiny_tokenizer().encode_pairs(long.texts, max_tokens=expected)[0]
        assert list(tuner.used_ids[examples.ids[0]]) == ids
    for types, expected in ((1, {0}), (2, {0, 1})):  # RoBERTa's body has one, many pairs have two
        config, split = tiny_config(type_vocab_size=types), make_task(4, pairs=True).train
        examples = Examples(split, tiny_tokenizer("bert"), config, 40)
        assert set(np.concatenate(examples.types)) == expected


def test_a_killed_grid_goes_on_and_nothing_is_computed_twice(tmp_path, monkeypatch):
    model, task, steps = make_model(), make_task(16), []
    whole = grid(model, task, lrs=(1e-3, 1e-2))
    whole.compute()
    scores = whole.cells()

    def killed():
        steps.append(1)
        if len(steps) == 3:  # in the middle of the second fine-tuning
            raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "killed"))
    part = grid(model, task, lrs=(1e-3, 1e-2))
    assert part.steps() == 4 * 2
    with pytest.raises(KeyboardInterrupt):
        part.compute(killed)
    assert part.missing() == [(1e-2, 1, 0), (1e-3, 1, 1), (1e-2, 1, 1)]
    part.compute()
    assert part.cells() == scores

    monkeypatch.setattr(Tuner, "train", None)  # whoever calls it fails
    again = grid(make_model(), make_task(16), lrs=(1e-2, 1e-3, 1e-2))
    again.compute()
    assert again.cells() == scores[::-1]  # the order of the points is irrelevant
    assert (again.missing(), again.steps(), again.cut()) == ([], 0, 0)


def test_whatever_a_score_depends_on_has_another_file():
    model, task = make_model(), make_task(16)

    def file(model=model, task=task, recipe=RECIPE, point=(1e-3, 1, 0)):
        return grid(model, task, recipe=recipe).file(*point)

    heads = copy.deepcopy(model[0])
    heads.config = tiny_config(num_attention_heads=2)  # the same weights, read otherwise
    files = [
        file(),
        file(model=make_model(seed=1)),
        file(model=(heads, model[1])),
        file(model=(model[0], tiny_tokenizer("roberta"))),
        file(task=make_task(16, seed=5)),
        file(task=replace(task, metrics=("matthews",))),
        *(file(point=point) for point in ((2e-3, 1, 0), (1e-3, 2, 0), (1e-3, 1, 1))),
    ]
    for name in asdict(RECIPE):
        files.append(file(recipe=replace(RECIPE, **{name: "another"})))
    assert len(set(files)) == len(files)
    assert file() == file(model=make_model(), task=make_task(16))


def grid_with(monkeypatch, scores, **changes):
    """A grid whose cells have these scores: {lr: [{split: score} for each seed]}."""
    made = grid(make_model(), make_task(8, **changes), lrs=list(scores))
    cells = []
    for lr, seeds in scores.items():
        rows = [seed and {split: {"accuracy": v} for split, v in seed.items()} for seed in seeds]
        cells.append(Cell(lr, 1, rows))
    monkeypatch.setattr(made, "cells", lambda: cells)
    return made


def test_best_is_the_mean_over_seeds_and_splits(monkeypatch):
    dev = make_task(8).scored["dev"]
    scores = {
        1.0: [{"m": 0.9, "mm": 0.1}, {"m": 0.5, "mm": 0.5}],
        2.0: [{"m": 0.5, "mm": 0.6}, {"m": 0.5, "mm": 0.5}],
        3.0: [{"m": 1.0, "mm": 1.0}, None],  # a seed that diverged
        4.0: [{"m": 1.0, "mm": 1.0}, {"m": 1.0, "mm": None}],  # an undefined score
        5.0: [{"m": 0.5, "mm": 0.6}, {"m": 0.5, "mm": 0.5}],  # the first of equals is taken
    }
    best = grid_with(monkeypatch, scores, scored={"m": dev, "mm": dev}).best()
    assert best.lr == 2.0
    assert best.values("accuracy", ["m", "mm"]) == pytest.approx([0.55, 0.5])


def test_xnli_chooses_on_english_which_is_scored_but_never_trained_on(monkeypatch):
    chosen = finetune.CHOOSE
    scores = {1.0: [{"sw": 0.9, chosen: 0.1}], 2.0: [{"sw": 0.2, chosen: 0.3}]}
    task = make_task(16)
    changes = {"scored": {"sw": task.scored["dev"]}, "chosen_on": make_task(30, seed=9).train}
    assert grid_with(monkeypatch, scores, **changes).best().lr == 2.0
    assert set(train(replace(task, **changes))) == {"sw", chosen}


def test_a_rate_that_diverges_is_kept_and_never_the_best():
    both = grid(make_model(), make_task(16), lrs=(1e30, 1e-3), epochs=(2,), seeds=1)
    both.compute()
    assert (both.cells()[0].scores, both.missing(), both.best().lr) == ([None], [], 1e-3)
