"""What each model costs; whatever is timed, the models take turns."""

import statistics
import time

import torch

from distill.evaluation.finetune import Examples
from distill.evaluation.models import Model
from distill.evaluation.tasks import Split, Task
from distill.program import cost

LENGTH = 128  # tokens, of the latencies
INPUTS, ROUNDS = 320, 3  # of a task, whose inputs a second are counted


def measure_costs(
    models: dict[str, Model], tasks: list[Task], device: torch.device
) -> dict[str, dict]:
    """Return parameters, megabytes, arithmetic, latencies, inputs/s of each model.

    An untrained start has the shape of its student and is not measured again.
    """
    measured = {name: model for name, model in models.items() if not is_start(model)}
    encoders = [model.encoder for model in measured.values()]
    length = min(LENGTH, *(encoder.config.max_tokens for encoder in encoders))
    facts = []
    for encoder in encoders:
        total, embeddings = cost.parameter_counts(encoder)
        facts.append(
            {
                "layers": encoder.config.num_hidden_layers,
                "hidden": encoder.config.hidden_size,
                "parameters": total,
                "parameters_without_embeddings": total - embeddings,
                "megabytes": cost.megabytes(encoder),
                "flops_per_token": cost.flops_per_token(encoder, length),
                "latency_ms": {},
            }
        )
    for batch in (1, 32):
        for row, seconds in zip(facts, cost.latencies(encoders, batch, length), strict=True):
            row["latency_ms"][f"{batch} x {length}"] = {
                "median": 1e3 * statistics.median(seconds),
                "p95": 1e3 * cost.percentile(seconds, 0.95),
            }
    if tasks:
        rates = inputs_per_second(list(measured.values()), tasks[0], device)
        for row, rate in zip(facts, rates, strict=True):
            row["inputs_per_s"] = rate
    costs = dict(zip(measured, facts, strict=True))
    for model in measured.values():
        if model.start:
            costs.setdefault(model.start.name, costs[model.name])
    return costs


def is_start(model: Model) -> bool:
    return model.settings is not None and not model.trained


@torch.inference_mode()
def inputs_per_second(models: list[Model], task: Task, device: torch.device) -> list[float]:
    """Inputs/s of the task's scored split, 32 of like length at a time; tokenising not counted."""
    whole = next(iter(task.scored.values()))
    pairs = whole.text_pairs and whole.text_pairs[:INPUTS]
    split = Split(whole.texts[:INPUTS], pairs, whole.labels[:INPUTS])
    examples = []
    for model in models:
        config = model.encoder.config
        examples.append(Examples(split, model.tokenizer, config, config.max_tokens))
    seconds = [[] for _ in models]
    for turn in range(ROUNDS + 1):
        for model, inputs, times in zip(models, examples, seconds, strict=True):
            start = time.perf_counter()
            for rows in inputs.by_length(32):
                ids, mask, types = (tensor.to(device) for tensor in inputs.batch(rows))
                model.encoder(ids, mask, types, keep="last").hidden[-1].cpu()
            if turn > 0:  # the first round warms up
                times.append(time.perf_counter() - start)
    return [len(split.texts) / statistics.median(times) for times in seconds]
