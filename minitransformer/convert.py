"""Weights between Hugging Face's names and ours: one visible table, read in both directions.

    blocks.0.query.weight   <->   bert.encoder.layer.0.attention.self.query.weight

A tensor of the encoder that is missing, unexpected, or of another shape or kind is an error, so no
weight stays random. Heads of tasks are dropped and named.
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
WORDS = "embeddings.word_embeddings.weight"
# Parts that DataParallel, torch.compile, FSDP, Lightning and sentence-transformers put into names
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
WRAPPERS |= {"model", "auto_model"}


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
    Errors   UserError: tensors that are missing, unexpected, twice there, of another shape or kind
    """
    head = family(config)[1]["mlm_head"]
    found, dropped, wrong, notes = current_names(tensors, config)
    original = untied_from(found, head)
    if original:
        notes.append(f"dropped the MLM head: its decoder is not tied, it differs from {original}")
        found = {name: t for name, t in found.items() if not name.startswith(f"{head}.")}
    has_head = any(name.startswith(f"{head}.") for name in found)
    with torch.device("meta"):  # no time spent on a random start that is thrown away
        encoder = Encoder(config, mlm_head=has_head)

    state, missing = encoder.state_dict(), []
    for ours, name in name_table(encoder).items():
        tensor, shape = found.pop(name, None), state[ours].shape
        if tensor is None:
            missing.append(name)
        elif tensor.shape != shape:
            wrong.append(f"{name} is {list(tensor.shape)}, config.json says {list(shape)}")
        elif not plain(tensor):
            wrong.append(f"{name} holds {tensor.dtype}, not plain floating point")
        else:
            state[ours] = tensor.to(torch.float32, copy=True).contiguous()
    if missing or found or wrong:
        unexpected = [*found, *dropped] if WORDS in missing else [*found]
        layers = len(set(re.findall(r"encoder\.layer\.(\d+)\.", "\n".join(tensors))))
        says = f"config.json says {config.num_hidden_layers} layers, the file holds {layers}"
        problems = [says] if layers != config.num_hidden_layers else []
        for kind, names in (("missing ", missing), ("unexpected ", unexpected), ("", wrong)):
            problems += [kind + listed(names)] if names else []
        raise UserError(f"the weights do not fit: {'; '.join(problems)}")
    encoder.load_state_dict(state, assign=True)
    return encoder, notes


def current_names(tensors, config):
    """Return (encoder and MLM head {name of today, without prefix: tensor}, dropped, wrong, notes).

    Dropped are the heads of tasks, which stand beside the encoder and read its output.
    """
    prefix, head = family(config)
    own = ("embeddings.", "encoder.", "bert.", "roberta.", head["mlm_head"] + ".")
    found, dropped, wrong, wrappers = {}, [], [], set()
    for name, tensor in tensors.items():
        parts = name.split(".")
        wrappers |= WRAPPERS.intersection(parts)
        today = ".".join(part for part in parts if part not in WRAPPERS)
        # What else is below the prefix, such as an adapter, may take part: it stays, as unexpected.
        if today.startswith((f"{prefix}embeddings.", f"{prefix}encoder.", f"{prefix}pooler.")):
            today = today.removeprefix(prefix)
        today = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", today)  # TensorFlow's names
        today = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", today)
        if today in ("embeddings.position_ids", "embeddings.token_type_ids"):
            continue  # buffers
        if today in found:
            wrong.append(f"{today} is there twice")
        elif today.startswith(own):
            found[today] = tensor
        else:
            dropped.append(today)
    notes = []
    if wrappers:
        notes.append(f"removed {listed(sorted(wrappers))} from the names of the tensors")
    if dropped:
        modules = sorted({name.rpartition(".")[0] or name for name in dropped})
        notes.append(f"dropped {listed(modules)}, which no method here uses")
    return found, dropped, wrong, notes


def untied_from(tensors, head) -> str | None:
    """Take the decoder, a copy that some files hold, out; name the original that it differs from.

    A bias that stands only at the decoder becomes the original.
    """
    bias = f"{head}.bias"
    originals = {f"{head}.decoder.weight": WORDS, f"{head}.weight": WORDS}
    originals[f"{head}.decoder.bias"] = bias
    for name, original in originals.items():
        copy = tensors.pop(name, None)
        if copy is not None and original == bias:
            tensors.setdefault(bias, copy)
        if copy is None or original not in tensors:
            continue
        pair = copy, tensors[original]
        if not all(map(plain, pair)) or not torch.equal(*pair):
            return original
    return None


def plain(tensor: Tensor) -> bool:
    """Return whether these are floating-point numbers; a pickle can hold integer or sparse ones."""
    return tensor.is_floating_point() and tensor.layout == torch.strided


def listed(names: list[str]) -> str:
    """Return "a, b, and 4 more", in one line whatever a file holds."""
    more = f", and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(shortened(name, 110) for name in names[:2]) + more
