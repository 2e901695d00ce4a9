"""Cost: what an encoder takes in parameters, megabytes, arithmetic and time.

multiplications and additions a token, forward, N tokens in a sequence:
    2 * (weights of all matrices that the token passes through)  +  4 * N * D * L  (Q K^T and A V)
"""

import statistics
import time

import torch

from distill.evaluation.columns import Model
from minitransformer.model import Encoder


def measure_costs(models: dict[str, Model]) -> dict[str, dict]:
    """Return what each model costs, without MLM heads; a baseline costs what its student does."""
    same = {base.name: name for name, model in models.items() for base in model.baselines}
    encoders = {name: model.encoder for name, model in models.items() if name not in same}
    length = min(128, *(encoder.config.max_tokens for encoder in encoders.values()))
    costs = {}
    for name, encoder in encoders.items():
        layers, width = encoder.config.num_hidden_layers, encoder.config.hidden_size
        matrices = sum(p.numel() for p in encoder.blocks.parameters() if p.dim() == 2)
        costs[name] = {
            "layers x width": f"{layers} x {width}",
            "parameters": None,  # below: a baseline may have more words and positions
            "FLOPs a token": 2 * matrices + 4 * length * width * layers,
        }
    for batch in (1, 32):
        seconds = latencies(list(encoders.values()), batch, length)
        for row, times in zip(costs.values(), seconds, strict=True):
            row[f"latency {batch} x {length}, ms"] = 1e3 * statistics.median(times)
    found = {name: dict(costs[same.get(name, name)]) for name in models}
    for name, model in models.items():
        parts = model.encoder.embeddings, model.encoder.blocks
        found[name]["parameters"] = sum(p.numel() for part in parts for p in part.parameters())
    return found


@torch.inference_mode()
def latencies(encoders: list[Encoder], batch: int, length: int) -> list[list[float]]:
    """Return seconds of forward passes (batch, length) for each encoder, without padding.

    The encoders take turns, so that a machine that slows down slows all of them alike. Two rounds
    are not counted; then 5 to 30 are, as many as fit into three seconds.
    """
    device = encoders[0].embeddings.word.weight.device
    wait = (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize
    words = min(encoder.config.vocab_size for encoder in encoders)
    # ids from 10 on are no special tokens; RoBERTa would not count its padding as a position
    ids = 10 + torch.arange(batch * length, device=device).view(batch, length) % (words - 10)
    seconds = [[] for _ in encoders]
    began = time.perf_counter()
    for turn in range(32):
        if turn >= 7 and time.perf_counter() - began > 3:
            break
        for encoder, row in zip(encoders, seconds, strict=True):
            wait()
            start = time.perf_counter()
            encoder(ids, keep="last")
            wait()
            if turn >= 2:
                row.append(time.perf_counter() - start)
    return seconds
