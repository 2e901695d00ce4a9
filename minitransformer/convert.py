"""Weights between Hugging Face's names and ours: one visible table, read in both directions.

Import is strict. Tensors that are missing, unknown, of the wrong shape or of the wrong kind are all
reported together, in one line, before anything is copied; nothing is silently left at random.
"""

import torch

from minitransformer.config import UserError
from minitransformer.model import Encoder

# ours: Hugging Face's, for the three embeddings and the norm after them
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
# the MLM head and its copies of tensors that stand elsewhere, by model family
BERT_HEAD = {
    "mlm_head.dense": "cls.predictions.transform.dense",
    "mlm_head.norm": "cls.predictions.transform.LayerNorm",
    "mlm_head": "cls.predictions",  # only a bias
}
ROBERTA_HEAD = {
    "mlm_head.dense": "lm_head.dense",
    "mlm_head.norm": "lm_head.layer_norm",
    "mlm_head": "lm_head",
}
# known and not needed: (name, what to say). A position_ids buffer says nothing that the sizes do not.
DROPPED = {
    "embeddings.position_ids": None,
    "pooler.dense.weight": "the pooler",
    "pooler.dense.bias": "the pooler",
    "cls.seq_relationship.weight": "the next-sentence head",
    "cls.seq_relationship.bias": "the next-sentence head",
}


def family(config):
    """(prefix of the encoder's names, table of the MLM head, names of transformers' two classes)."""
    if config.model_type == "bert":
        return "bert.", BERT_HEAD, ("BertModel", "BertForMaskedLM")
    stem = "Roberta" if config.model_type == "roberta" else "XLMRoberta"
    return "roberta.", ROBERTA_HEAD, (f"{stem}Model", f"{stem}ForMaskedLM")


def name_table(encoder):
    """{our name: Hugging Face's name without prefix} for every tensor of this encoder."""
    modules = dict(EMBEDDINGS)
    for i in range(len(encoder.blocks)):
        for ours, theirs in BLOCK.items():
            modules[f"blocks.{i}.{ours}"] = f"encoder.layer.{i}.{theirs}"
    modules.update(family(encoder.config)[1])
    table = {}
    for ours in encoder.state_dict():
        module, _, kind = ours.rpartition(".")  # kind: weight or bias
        table[ours] = f"{modules[module]}.{kind}"
    return table


def to_hugging_face(encoder):
    """All tensors of an encoder under Hugging Face's names, on the CPU.

    With an MLM head the encoder's names carry the prefix (`bert.` or `roberta.`), as in a saved
    ...ForMaskedLM; without one they do not, as in a saved ...Model.
    """
    prefix = family(encoder.config)[0] if encoder.mlm_head is not None else ""
    table = name_table(encoder)
    return {
        theirs if ours.startswith("mlm_head") else prefix + theirs: tensor.detach().cpu().contiguous()
        for (ours, theirs), tensor in zip(table.items(), encoder.state_dict().values())
    }


def canonical(tensors, config):
    """The same tensors under today's names: without prefix, LayerNorm.weight for LayerNorm.gamma."""
    prefix = family(config)[0]
    renamed = {}
    for name, tensor in tensors.items():
        new = name.removeprefix(prefix)
        for old_end, new_end in ((".gamma", ".weight"), (".beta", ".bias")):
            if new.endswith("LayerNorm" + old_end):
                new = new.removesuffix(old_end) + new_end
        if new in renamed:
            raise UserError(f"weights: {new} is there twice, once as {name}")
        renamed[new] = tensor
    return renamed


def from_hugging_face(tensors, config):
    """Hugging Face's tensors -> (our state dict in float32, has an MLM head, what was dropped).

    Errors   UserError: all of missing, unknown, wrong shape, wrong kind, together; an untied decoder.
    """
    tensors = canonical(tensors, config)
    head = family(config)[1]["mlm_head"]
    decoder_weight = tensors.pop(f"{head}.decoder.weight", None)
    decoder_bias = tensors.pop(f"{head}.decoder.bias", None)
    if decoder_bias is not None:
        tensors.setdefault(f"{head}.bias", decoder_bias)
    notes = {DROPPED[name] for name in tensors if name in DROPPED} - {None}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in DROPPED}
    has_head = any(name.startswith(f"{head}.") for name in tensors)

    with torch.device("meta"):
        encoder = Encoder(config, mlm_head=has_head)
    shapes = {ours: tuple(tensor.shape) for ours, tensor in encoder.state_dict().items()}
    table = name_table(encoder)
    expected = {theirs: shapes[ours] for ours, theirs in table.items()}
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unknown {name!r}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        tensor = tensors[name]
        if tuple(tensor.shape) != expected[name]:
            problems.append(
                f"{name} has shape {list(tensor.shape)}, the config says {list(expected[name])}"
            )
        elif not usable(tensor):
            problems.append(f"{name} holds {tensor.dtype}, not plain floating-point numbers")
    if problems:
        raise UserError("weights do not fit the config: " + "; ".join(sorted(problems)))

    for copy, name in ((decoder_weight, "embeddings.word_embeddings.weight"), (decoder_bias, f"{head}.bias")):
        if copy is not None and not (usable(copy) and torch.equal(copy, tensors[name])):
            raise UserError(
                f"the MLM decoder is not tied: {head}.decoder differs from {name}; only tied ones are supported"
            )
    state = {ours: tensors[theirs].to(torch.float32).contiguous() for ours, theirs in table.items()}
    return state, has_head, sorted(notes)


def usable(tensor):
    """Plain numbers in memory: a pickle can also hold sparse, quantised or meta tensors."""
    strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return strided and tensor.is_floating_point()
