"""Weights between Hugging Face's names and ours: one visible table, read in both directions.

    blocks.0.query.weight   <->   bert.encoder.layer.0.attention.self.query.weight

Import is strict: a tensor of the encoder that is missing, unknown, or of the wrong shape or kind is
an error before anything is copied, so no weight stays random. Heads of tasks are dropped and named.
"""

import re

import torch
from torch import Tensor

from minitransformer.config import EncoderConfig
from minitransformer.files import UserError, shortened
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
# Ignored on import, and named in a note.
HEADS = {"pooler.dense": "the pooler", "cls.seq_relationship": "the next-sentence head"}
# Parts that DataParallel, torch.compile, FSDP, Lightning and sentence-transformers put into names
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "model", "auto_model"}


def family(config: EncoderConfig) -> tuple[str, dict[str, str]]:
    """Return the prefix of the encoder's names, and the table of the MLM head."""
    if config.model_type == "bert":
        return "bert.", BERT_HEAD
    return "roberta.", ROBERTA_HEAD


def name_table(encoder: Encoder) -> dict[str, str]:
    """Return {our name: Hugging Face's name without the prefix} for all tensors of this encoder."""
    modules = EMBEDDINGS | family(encoder.config)[1]
    for i in range(len(encoder.blocks)):
        for ours, theirs in BLOCK.items():
            modules[f"blocks.{i}.{ours}"] = f"encoder.layer.{i}.{theirs}"
    table = {}
    for name in encoder.state_dict():
        module, _, weight_or_bias = name.rpartition(".")
        table[name] = f"{modules[module]}.{weight_or_bias}"
    return table


def to_hugging_face(encoder: Encoder) -> dict[str, Tensor]:
    """Return all tensors of an encoder under Hugging Face's names, on the CPU.

    With an MLM head the encoder's names carry the prefix, as in a saved ...ForMaskedLM; without one
    they do not, as in a saved ...Model.
    """
    prefix = family(encoder.config)[0] if encoder.mlm_head is not None else ""
    state = encoder.state_dict()
    tensors = {}
    for ours, theirs in name_table(encoder).items():
        name = theirs if ours.startswith("mlm_head.") else prefix + theirs
        tensors[name] = state[ours].cpu().contiguous()
    return tensors


def from_hugging_face(
    tensors: dict[str, Tensor], config: EncoderConfig
) -> tuple[Encoder, list[str]]:
    """Return (Encoder, notes) of Hugging Face's tensors.

    Its weights are float32 in memory of their own, whatever the file held or shared. The notes say
    what was dropped or removed from names.
    Errors   UserError: tensors that are missing, unknown, twice there, of another shape or kind;
             all together, the cause first, three by name.
    """
    head = family(config)[1]["mlm_head"]
    found, problems, notes = current_names(tensors, config)
    difference = untied(found, head)
    if difference:
        notes.append(f"dropped the MLM head: its decoder is not tied, it differs from {difference}")
        found = {name: t for name, t in found.items() if not name.startswith(f"{head}.")}
    has_head = any(name.startswith(f"{head}.") for name in found)
    with torch.device("meta"):  # no time spent on a random start that is thrown away
        encoder = Encoder(config, mlm_head=has_head)

    state = encoder.state_dict()
    for ours, name in name_table(encoder).items():
        tensor, shape = found.pop(name, None), state[ours].shape
        if tensor is None:
            problems.append(f"missing {name}")
        elif tensor.shape != shape:
            other = str(list(tensor.shape))
            problems.append(f"{name} has shape {other:.60}, config.json says {list(shape)}")
        elif not plain(tensor):
            problems.append(f"{name} holds {tensor.dtype}, not plain floating point")
        else:
            state[ours] = tensor.to(torch.float32, copy=True).contiguous()
    problems += [f"unknown {name!r:.60}" for name in found]
    if problems:
        reasons = filter(None, [cause(tensors, config), listed(problems, "; ")])
        raise UserError(f"the weights do not fit: {'; '.join(reasons)}")
    encoder.load_state_dict(state, assign=True)
    return encoder, notes


def current_names(tensors, config):
    """Return (encoder and MLM head {name of today, without prefix: tensor}, problems, notes)."""
    prefix, head = family(config)
    own = ("embeddings.", "encoder.", "bert.", "roberta.", head["mlm_head"] + ".")
    renamed, problems, wrappers, dropped = {}, [], set(), set()
    for name, tensor in tensors.items():
        wrappers |= WRAPPERS.intersection(name.split("."))
        today = unwrapped(name)
        # What else is below the prefix, such as an adapter, may take part: it stays, as unknown.
        if today.startswith((f"{prefix}embeddings.", f"{prefix}encoder.", f"{prefix}pooler.")):
            today = today.removeprefix(prefix)
        today = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", today)  # TensorFlow's names
        today = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", today)
        if today in ("embeddings.position_ids", "embeddings.token_type_ids"):
            continue  # buffers
        if today in renamed:
            problems.append(f"{today!r:.60} is there twice")
        elif today.startswith(own):
            renamed[today] = tensor
        else:  # beside the encoder: a head of some task, which reads the encoder's output
            module = today.rpartition(".")[0] or today
            dropped.add(HEADS.get(module, f"{module!r:.60}"))
    notes = []
    if wrappers:
        notes.append(f"removed {listed(sorted(wrappers))} from the names of the tensors")
    if dropped:
        notes.append(f"dropped {listed(sorted(dropped))}, which no method here uses")
    return renamed, problems, notes


def unwrapped(name: str) -> str:
    """Return a tensor's name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def untied(tensors, head) -> str | None:
    """Take the decoder, a copy that some files hold, out; name the original that it differs from.

    A bias that stands only at the decoder becomes the original.
    """
    for name, copied in (("embeddings.word_embeddings.weight", "weight"), (f"{head}.bias", "bias")):
        copy = tensors.pop(f"{head}.decoder.{copied}", None)
        if copied == "bias" and copy is not None:
            tensors.setdefault(name, copy)
        original = tensors.get(name)
        if copy is None or original is None:
            continue
        if not plain(copy) or not plain(original) or not torch.equal(copy, original):
            return name
    return None


def plain(tensor: Tensor) -> bool:
    """Return whether these are floating-point numbers; a pickle can hold integer or sparse ones."""
    return tensor.is_floating_point() and tensor.layout == torch.strided


# ---- messages ------------------------------------------------------------------------------------


def cause(tensors, config) -> str:
    """Return in words what config.json says otherwise than the names, "" where they agree."""
    prefix, layers = family(config)[0], set()
    for name in map(unwrapped, tensors):
        start, end, _ = name.partition("embeddings.word_embeddings.weight")
        if end and start not in ("", prefix):
            start = shortened(repr(start)[1:-1], 60)
            return f"the file has {start}*, config.json says {config.model_type} ({prefix}*)"
        layers.update(re.findall(r"encoder\.layer\.(\d+)\.", name))
    if len(layers) == config.num_hidden_layers:
        return ""
    return f"config.json says {config.num_hidden_layers} layers, the file holds {len(layers)}"


def listed(texts: list[str], separator: str = ", ") -> str:
    """Return "a, b, c, and 4 more", in one line whatever a file holds."""
    more = f"{separator}and {len(texts) - 3} more" if len(texts) > 3 else ""
    return shortened(separator.join(texts[:3]), 200) + more
