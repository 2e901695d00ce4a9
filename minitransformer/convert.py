"""Weights between Hugging Face's names and ours: one visible table, read in both directions.

    blocks.0.query.weight   <->   bert.encoder.layer.0.attention.self.query.weight

Import is strict: tensors that are missing, unknown, of the wrong shape or of the wrong kind are all
reported together, in one line, before anything is copied. Nothing is silently left at random.
"""

import torch

from minitransformer.errors import UserError
from minitransformer.model import Encoder

# ours: Hugging Face's. Each stands for a weight and, where the module has one, a bias.
EMBEDDINGS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
# ours, after "blocks.<i>.": Hugging Face's, after "encoder.layer.<i>."
BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
# The MLM head is named by family; its last entry is the one bias over the vocabulary.
BERT_HEAD = {
    "mlm_head.dense": "cls.predictions.transform.dense",
    "mlm_head.norm": "cls.predictions.transform.LayerNorm",
    "mlm_head": "cls.predictions",
}
ROBERTA_HEAD = {
    "mlm_head.dense": "lm_head.dense",
    "mlm_head.norm": "lm_head.layer_norm",
    "mlm_head": "lm_head",
}
# Known, and not needed: what the one line about it says. Position ids say nothing that N does not.
DROPPED = {
    "embeddings.position_ids": None,
    "pooler.dense.weight": "the pooler",
    "pooler.dense.bias": "the pooler",
    "cls.seq_relationship.weight": "the next-sentence head",
    "cls.seq_relationship.bias": "the next-sentence head",
}


def family(config):
    """(prefix of the encoder's names, table of the MLM head, classes without and with the head)."""
    if config.model_type == "bert":
        return "bert.", BERT_HEAD, ("BertModel", "BertForMaskedLM")
    stem = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[config.model_type]
    return "roberta.", ROBERTA_HEAD, (f"{stem}Model", f"{stem}ForMaskedLM")


def name_table(encoder):
    """{our name: Hugging Face's name without the prefix} for every tensor of this encoder."""
    modules = EMBEDDINGS | family(encoder.config)[1]
    for i in range(len(encoder.blocks)):
        for ours, theirs in BLOCK.items():
            modules[f"blocks.{i}.{ours}"] = f"encoder.layer.{i}.{theirs}"
    table = {}
    for name in encoder.state_dict():
        module, _, weight_or_bias = name.rpartition(".")
        table[name] = f"{modules[module]}.{weight_or_bias}"
    return table


def to_hugging_face(encoder):
    """All tensors of an encoder under Hugging Face's names, on the CPU.

    With an MLM head the encoder's names carry the prefix, as in a saved ...ForMaskedLM; without one
    they do not, as in a saved ...Model.
    """
    prefix = family(encoder.config)[0] if encoder.mlm_head is not None else ""
    state = encoder.state_dict()
    return {
        theirs if ours.startswith("mlm_head.") else prefix + theirs: state[ours].cpu().contiguous()
        for ours, theirs in name_table(encoder).items()
    }


def from_hugging_face(tensors, config):
    """Hugging Face's tensors -> (our state dict, has an MLM head, what was dropped).

    The state dict is float32 in memory of its own, whatever the file held or shared.
    Errors   UserError: missing, unknown, twice, wrong shape, wrong kind, untied; all in one line.
    """
    tensors, problems = current_names(tensors, config)
    prefix = family(config)[1]["mlm_head"]
    # Copies of the word embeddings and of the head's bias, under which old files also store them.
    decoder = {
        "embeddings.word_embeddings.weight": tensors.pop(f"{prefix}.decoder.weight", None),
        f"{prefix}.bias": tensors.pop(f"{prefix}.decoder.bias", None),
    }
    if decoder[f"{prefix}.bias"] is not None:
        tensors.setdefault(f"{prefix}.bias", decoder[f"{prefix}.bias"])
    dropped = {DROPPED[name] for name in tensors.keys() & DROPPED.keys()} - {None}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in DROPPED}
    has_head = any(name.startswith(f"{prefix}.") for name in tensors)

    with torch.device("meta"):
        encoder = Encoder(config, mlm_head=has_head)
    table, state = name_table(encoder), encoder.state_dict()
    shapes = {theirs: list(state[ours].shape) for ours, theirs in table.items()}
    problems += [f"missing {name}" for name in shapes if name not in tensors]
    problems += [f"unknown {name!r}" for name in tensors if name not in shapes]
    for name in [name for name in shapes if name in tensors]:
        if list(tensors[name].shape) != shapes[name]:
            problems.append(
                f"{name} has shape {list(tensors[name].shape)}, the config says {shapes[name]}"
            )
        elif not plain(tensors[name]):
            problems.append(f"{name} holds {tensors[name].dtype}, not plain floating point")
    for name, copy in decoder.items():
        if copy is None or name not in tensors or not plain(tensors[name]):
            continue
        if not plain(copy) or not torch.equal(copy, tensors[name]):
            problems.append(f"the MLM decoder is not tied: it differs from {name}")
    if problems:
        raise UserError("the weights do not fit: " + "; ".join(problems))

    state = {ours: tensors[name].to(torch.float32, copy=True) for ours, name in table.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}, has_head, sorted(dropped)


def current_names(tensors, config):
    """({name of today, without prefix: tensor}, problems); LayerNorm.weight was once .gamma."""
    renamed, problems = {}, []
    for name, tensor in tensors.items():
        today = name.removeprefix(family(config)[0])
        for old_end, new_end in (("LayerNorm.gamma", ".weight"), ("LayerNorm.beta", ".bias")):
            if today.endswith(old_end):
                today = today.removesuffix(old_end) + "LayerNorm" + new_end
        if today in renamed:
            problems.append(f"{today} is there twice, once as {name!r}")
        renamed[today] = tensor
    return renamed, problems


def plain(tensor):
    """Numbers in memory: a pickle can also hold sparse, quantised, integer or meta tensors."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    in_memory = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return in_memory and tensor.dtype in floats
