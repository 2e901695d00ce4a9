"""What can be said of a model on text that no run trained on, without any task.

loss         the run's own distillation loss, of its start and of its student
perplexity   of the words that are masked, where there is an MLM head
agreement    share of the masked places at which teacher and student guess the same word
sentences    how far a sentence's vector, the mean of the last layer over its tokens, is the
             teacher's
"""

import math
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.batches import Text
from distill.evaluation.columns import Model
from distill.evaluation.finetune import Examples, mean_over_tokens
from distill.evaluation.tasks import Split
from distill.method import Batch, Method
from distill.mlm import MLM
from distill.student import method_of
from distill.training.validation import held_out_loss
from minitransformer.files import UserError
from minitransformer.model import Encoder
from minitransformer.pretrained import read_weight_file

SENTENCES, SENTENCE_TOKENS = 1000, 128  # at most


def held_out_batches(
    models: dict[str, Model], data: list[str] | None, device: torch.device
) -> dict[str, list[Batch]]:
    """Return for each model the text that its run kept from training, or that of `data`. Models
    that no run made use the first run's text.
    """
    usual = {"data": ["docs"], "seq_len": 128, "alpha": 0.3}
    usual = next((model.settings for model in models.values() if model.settings), usual)
    texts, batches = {}, {}
    for model in models.values():
        settings, tokenizer = model.settings or usual, model.tokenizer
        names, alpha = data or settings["data"], settings["alpha"]
        length = min(settings["seq_len"], model.encoder.config.max_tokens)
        key = (*names, length, alpha, tokenizer.hash)
        if key not in texts:
            text = Text(names, tokenizer, length, alpha=alpha)
            masked = tokenizer.mask_id is not None
            texts[key] = [batch.to(device) for batch in text.held_out(16, masked=masked)]
        batches[model.name] = texts[key]
    return batches


def on_held_out_text(model: Model, batches: list[Batch], autocast: AbstractContextManager) -> dict:
    """Return what can be said of this model: its own losses, perplexity, agreement."""
    teacher = model.teacher.encoder if model.reads_like_teacher else None
    facts = {}

    def loss(method: Method, student: Encoder) -> float:
        method.to(batches[0].ids.device)
        return held_out_loss(partial(method, student), teacher, batches, autocast)

    settings = model.settings
    if model.trained and (teacher or settings["method"] == "mlm"):
        method = method_of(settings, model.encoder.config, teacher and teacher.config)
        method.check_models(model.encoder, teacher)
        if model.start:
            facts["start_loss"] = loss(method, model.start.encoder)
        load_maps(method, model.name)
        facts |= {"method": settings["method"], "loss": loss(method, model.encoder)}
    if model.encoder.mlm_head is not None and batches[0].masked_ids is not None:
        mean = loss(MLM(model.encoder.config), model.encoder)
        facts["perplexity"] = math.exp(mean) if mean < 700 else math.nan  # beyond float64's range
        if teacher and teacher.mlm_head is not None:
            facts["agreement"] = agreement(model.encoder, teacher, batches, autocast)
    # a text without a word that counts has no loss
    return {name: value for name, value in facts.items() if value == value}


def load_maps(method: Method, run: str) -> None:
    """Load the maps that a run learned, where its method has any."""
    file = Path(run, "projections.safetensors")
    if file.exists():
        try:
            method.load_state_dict(read_weight_file(file))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{run}: its maps do not fit this teacher: {reason}") from None


@torch.inference_mode()
def agreement(
    student: Encoder, teacher: Encoder, batches: list[Batch], autocast: AbstractContextManager
) -> float:
    """Return the share of masked places at which both give the same word the highest score."""
    same = count = 0
    for batch in batches:
        with autocast:
            alike = guesses(student, batch) == guesses(teacher, batch)
        same += int(alike.sum())
        count += len(alike)
    return same / count if count else math.nan


def guesses(encoder: Encoder, batch: Batch) -> Tensor:
    """Return the word (M,) that gets the highest score at each masked place."""
    hidden = encoder(batch.masked_ids, batch.mask, keep="last").hidden[-1]  # (B, N, D)
    return encoder.mlm_logits(hidden.flatten(0, 1)[batch.positions]).argmax(dim=-1)


def on_sentences(
    models: dict[str, Model], texts: list[str], device: torch.device
) -> dict[str, dict]:
    """Return for each model that has a teacher how far its sentence vectors are the teacher's."""
    sentences = list(dict.fromkeys(texts))[:SENTENCES]
    vectors = {name: sentence_vectors(model, sentences, device) for name, model in models.items()}
    facts = {}
    for name, model in models.items():
        if model.teacher:
            facts[name] = compare_vectors(vectors[name], vectors[model.teacher.name])
    return facts


@torch.inference_mode()
def sentence_vectors(model: Model, sentences: list[str], device: torch.device) -> Tensor:
    """Return (M, D) vectors of length 1, as sentence-transformers makes them, in float32."""
    split = Split(sentences, None, [0] * len(sentences))
    examples = Examples(split, model.tokenizer, model.encoder.config, SENTENCE_TOKENS)
    vectors = torch.empty(len(sentences), model.encoder.config.hidden_size)
    for rows in examples.by_length(64):
        ids, mask, types = (tensor.to(device) for tensor in examples.batch(rows))
        hidden = model.encoder(ids, mask, types, keep="last").hidden[-1]
        vectors[rows] = mean_over_tokens(hidden, mask).float().cpu()
    return F.normalize(vectors)


def compare_vectors(student: Tensor, teacher: Tensor) -> dict:
    """Compare the vectors (M, D_s) and (M, D_t) of the same sentences.

    Returns the mean cosine (only where the widths agree), and the share of sentences whose nearest
    other one by the teacher is also the nearest by the student.
    """
    nearest = [(v @ v.T).fill_diagonal_(-2.0).argmax(dim=-1) for v in (student, teacher)]
    facts = {"neighbour_kept": float((nearest[0] == nearest[1]).float().mean())}
    if student.shape == teacher.shape:
        facts["sentence_cosine"] = float((student * teacher).sum(dim=-1).mean())
    return facts
