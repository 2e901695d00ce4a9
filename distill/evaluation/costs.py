"""What each model costs; whatever is timed, the models take turns."""

import numpy as np

from distill.evaluation.columns import Model
from distill.training import cost

LENGTH = 128  # tokens, of the latencies


def measure_costs(models: dict[str, Model]) -> dict[str, dict]:
    """Return parameters, megabytes, arithmetic and latencies of each model.

    An untrained start has the shape of its student and is not measured again.
    """
    starts = {model.start.name for model in models.values() if model.start}
    encoders = {name: model.encoder for name, model in models.items() if name not in starts}
    length = min(LENGTH, *(encoder.config.max_tokens for encoder in encoders.values()))
    costs = {}
    for name, encoder in encoders.items():
        total, embeddings = cost.parameter_counts(encoder)
        costs[name] = {
            "layers": encoder.config.num_hidden_layers,
            "hidden": encoder.config.hidden_size,
            "parameters": total,
            "parameters_without_embeddings": total - embeddings,
            "megabytes": 4 * total / 1e6,  # as float32
            "flops_per_token": cost.flops_per_token(encoder, length),
            "latency_ms": {},
        }
    for batch in (1, 32):
        seconds = cost.latencies(list(encoders.values()), batch, length)
        for row, times in zip(costs.values(), seconds, strict=True):
            median, p95 = 1e3 * np.quantile(times, [0.5, 0.95])
            row["latency_ms"][f"{batch} x {length}"] = {"median": median, "p95": p95}
    for name, model in models.items():
        if model.start:
            costs[model.start.name] = costs[name]
    return costs
