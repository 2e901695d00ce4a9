"""Cost: what an encoder takes in parameters, megabytes, arithmetic and time.

multiplications and additions a token, forward, N tokens in a sequence:
    2 * (weights of all matrices that the token passes through)  +  4 * N * D * L  (Q K^T and A V)
"""

import torch
from torch.utils.benchmark import Timer

from distill.evaluation.columns import Model
from minitransformer.model import Encoder


def measure_costs(models: dict[str, Model]) -> dict[str, dict]:
    """Return what each model costs, without MLM heads; a baseline takes its student's time."""
    same = {base.name: name for name, model in models.items() for base in model.baselines}
    length = min(128, *(model.encoder.config.max_tokens for model in models.values()))
    costs, times = {}, {}
    for name, model in models.items():
        config, parts = model.encoder.config, (model.encoder.embeddings, model.encoder.blocks)
        layers, width, shape = config.num_hidden_layers, config.hidden_size, same.get(name, name)
        matrices = sum(p.numel() for p in parts[1].parameters() if p.dim() == 2)
        if shape not in times:
            times[shape] = {
                f"latency {batch} x {length}, ms": latency(models[shape].encoder, batch, length)
                for batch in (1, 32)
            }
        costs[name] = {
            "layers x width": f"{layers} x {width}",
            "parameters": sum(p.numel() for part in parts for p in part.parameters()),
            "FLOPs per token": 2 * matrices + 4 * length * width * layers,
            **times[shape],
        }
    return costs


@torch.inference_mode()
def latency(encoder: Encoder, batch: int, length: int) -> float:
    """Return the median milliseconds of a forward pass (batch, length), without padding."""
    # ids from 10 on are no special tokens; RoBERTa would not count its padding as a position
    ids = 10 + torch.arange(batch * length) % (encoder.config.vocab_size - 10)
    ids = ids.view(batch, length).to(encoder.embeddings.word.weight.device)
    names, threads = {"encoder": encoder, "ids": ids}, torch.get_num_threads()
    forward = "encoder(ids, keep='last').hidden[-1][0, 0, 0].item()"  # waits for a GPU
    timer = Timer(forward, globals=names, num_threads=threads)
    return 1e3 * timer.blocked_autorange(min_run_time=1).median
