"""Fine-tuning: it learns, only its settings decide the result, and nothing is done twice."""

import copy
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import MODEL_TYPES, WORDS, same, tiny_config, tiny_encoder, tiny_tokenizer

from distill.evaluation.columns import Model
from distill.evaluation.finetune import (
    DISTINCT,
    Classifier,
    Examples,
    Recipe,
    Tuner,
    cache_file,
    fine_tune,
    read_hashed,
    write_hashed,
)
from distill.evaluation.tasks import Split, Task

RECIPE = Recipe(lr=1e-3, epochs=1, batch_size=8)


def make_task(size=64, pairs=False, numbers=False, seed=0):
    """Sentences of many lengths; the label says whether, or how often, `model` is in them."""

    def split(n, seed):
        chance = random.Random(seed)
        texts = [chance.choices([*WORDS[:8], "model"], k=chance.randint(1, 14)) for _ in range(n)]
        labels = [text.count("model") / 4 if numbers else int("model" in text) for text in texts]
        others = [" ".join(chance.choices(WORDS[:8], k=3)) for _ in texts] if pairs else None
        return Split([" ".join(text) for text in texts], others, labels)

    classes, metrics = ((), ("pearson",)) if numbers else (("no", "yes"), ("accuracy",))
    return Task("toy", split(size, seed), {"dev": split(40, seed + 1)}, classes, metrics)


def make_model(model_type="bert", seed=0):
    encoder = tiny_encoder(tiny_config(model_type), mlm_head=False, seed=seed)
    encoder.reset_parameters(torch.Generator().manual_seed(seed))
    return encoder, tiny_tokenizer(model_type)


pytestmark = pytest.mark.usefixtures("folder")  # results are kept in the cache there


def train(task, lr=1e-3, epochs=1, seed=0, recipe=RECIPE, model="bert"):
    """{metric: score} on dev."""
    recipe = replace(recipe, lr=lr, epochs=epochs)
    scores = Tuner(*make_model(model), task, recipe).train(seed)
    return {metric: by_split["dev"] for metric, by_split in scores.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "precision"), [("bert", "fp32"), ("roberta", "bf16"), ("xlm-roberta", "fp32")]
)
def test_it_learns_classes(model_type, precision):
    recipe, task = replace(RECIPE, precision=precision), make_task(200, precision == "fp32")
    scores = train(task, 3e-3, 4, recipe=recipe, model=model_type)
    assert scores["accuracy"] >= 0.8  # guessing: 0.55
    assert scores[DISTINCT] == 2


def test_it_learns_numbers_of_any_size():
    task = make_task(200, numbers=True)
    large = Split(task.train.texts, None, [1000 * n + 70_000 for n in task.train.labels])
    assert train(replace(task, train=large), 3e-3, 4)["pearson"] >= 0.9


def test_equal_labels_are_no_crash_and_answers_of_one_kind_are_counted():
    for numbers in (True, False):
        task = make_task(20, numbers=numbers)
        task = replace(task, train=Split(task.train.texts, None, [1] * 20))
        assert numbers or train(task, 1e-2, 3)[DISTINCT] == 1
        assert np.isfinite(train(task)[task.metrics[0]])


def test_all_layers_and_the_words_read_are_trained_in_a_copy():
    """A student of MHA has a last block that never learned; fine-tuning must reach it."""
    encoder, tokenizer = make_model()
    before = copy.deepcopy(encoder)
    tuner = Tuner(encoder.requires_grad_(False), tokenizer, make_task(8), RECIPE)
    tuner.train(0)
    assert same(encoder, before)
    model = Classifier(encoder, tuner.used_ids, 2, torch.Generator().manual_seed(0))
    tuner.outputs(model, "train", np.arange(8))[:, 0].square().sum().backward()
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
    split = tuner.task.train
    rows = tokenizer.encode_pairs(split.texts, split.text_pairs, max_tokens=40)
    with torch.inference_mode():
        found = tuner.outputs(model, "train", np.arange(30))
        for (ids, types), outputs in zip(rows, found, strict=True):
            hidden = encoder(torch.tensor([ids]), None, torch.tensor([types])).hidden[-1]
            mean = hidden[0].mean(dim=0)
            mean = (mean - mean.mean()) / (mean.var(correction=0) + 1e-5).sqrt()
            assert torch.allclose(outputs, model.head(mean), atol=1e-5)


def test_batches_hold_every_row_once_and_like_lengths():
    examples = Examples(make_task(500).train.texts, None, tiny_tokenizer(), tiny_config(), 40)
    batches = examples.shuffled(16, torch.Generator().manual_seed(0))
    assert sorted(np.concatenate(batches)) == list(range(500))
    padded = sum(len(rows) * examples.lengths[rows].max() for rows in batches)
    assert padded <= 1.1 * examples.lengths.sum()


def test_inputs_and_token_types_are_cut_to_what_fits():
    for most, expected in ((128, 40), (30, 30)):  # the tiny encoder has 40 positions
        examples = Examples([" ".join(WORDS * 9)], None, tiny_tokenizer(), tiny_config(), most)
        assert examples.lengths == expected
    for types, expected in ((1, {0}), (2, {0, 1})):  # RoBERTa's body has one, many pairs have two
        config = tiny_config(type_vocab_size=types)
        examples = Examples(["a"], ["the"], tiny_tokenizer(), config, 40)
        assert set(examples.types[0]) == expected


def test_killed_results_are_kept_and_nothing_is_computed_twice(monkeypatch):
    model, task, trained = Model("m", *make_model()), make_task(16), []
    train = Tuner.train

    def killed(tuner, seed):
        trained.append(seed)
        if trained == [0, 1]:
            raise KeyboardInterrupt
        return train(tuner, seed)

    monkeypatch.setattr(Tuner, "train", killed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        fine_tune([model], task, RECIPE, 3)
    results = fine_tune([model], task, RECIPE, 3)
    assert sorted(trained) == [0, 1, 1, 2]
    monkeypatch.setattr(Tuner, "train", None)  # whoever calls it fails
    assert fine_tune([Model("m", *make_model())], make_task(16), RECIPE, 3) == results


def test_each_model_of_a_call_gets_its_scores_and_equal_ones_share_a_fine_tuning(monkeypatch):
    models = [Model(f"m{n}", *make_model(seed=n % 2)) for n in range(3)]
    task = make_task(numbers=True)
    tuners = [Tuner(m.encoder, m.tokenizer, task, RECIPE) for m in models]
    expected, trained, really = [[t.train(0)] for t in tuners], [], Tuner.train
    monkeypatch.setattr(Tuner, "train", lambda self, n: trained.append(n) or really(self, n))
    assert fine_tune(models, task, RECIPE, 1) == expected
    assert expected[0] == expected[2] != expected[1]
    assert trained == [0, 0]


def test_a_result_that_was_changed_or_cut_off_is_computed_again(folder):
    file, result = cache_file(what="this"), {"accuracy": {"dev": 0.8125}}
    write_hashed(file, result)
    whole = file.read_bytes()
    assert read_hashed(file) == result
    for place in range(len(whole)):
        for rest in (b"", bytes([whole[place] ^ 1]) + whole[place + 1 :], b"\xff"):
            file.write_bytes(whole[:place] + rest)
            assert read_hashed(file) is None


def test_whatever_a_score_depends_on_has_another_file(monkeypatch):
    model, task = make_model(), make_task(16)
    monkeypatch.setattr(Tuner, "train", lambda *_: {})
    cache = cache_file(any="thing").parent
    heads = copy.deepcopy(model[0])
    heads.config = tiny_config(num_attention_heads=2)  # the same weights, read otherwise
    used = {"model": model, "task": task, "recipe": RECIPE, "seeds": 1}
    changes = [
        {},
        *({"model": m} for m in (make_model(seed=1), (heads, model[1]))),
        {"model": (model[0], tiny_tokenizer("roberta"))},
        *({"task": t} for t in (make_task(16, seed=5), replace(task, metrics=("f1",)))),
        {"seeds": 2},
    ]
    for name, value in asdict(RECIPE).items():
        other = {str: "cpu:0" if name == "device" else "bf16", int: 9, float: 0.5}[type(value)]
        changes.append({"recipe": replace(RECIPE, **{name: other})})
    for number, change in enumerate(changes, 1):
        case = used | change
        fine_tune([Model("m", *case["model"])], case["task"], case["recipe"], case["seeds"])
        assert len(list(cache.iterdir())) == number, change


def test_a_rate_that_diverges_has_no_score():
    assert train(make_task(16), lr=1e30, epochs=2) == {"accuracy": None}
