"""Weights between Hugging Face's names and ours: one visible table, read in both directions.

    blocks.0.query.weight   <->   bert.encoder.layer.0.attention.self.query.weight

A tensor of the encoder that is missing, unexpected, or of another shape or kind is an error, so no
weight stays random. Heads of tasks, which read the encoder's output, are dropped and named.
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
WRAPPERS = r"\b(module|_orig_mod|_fsdp_wrapped_module)\."  # of DDP, torch.compile, FSDP


def family(config: EncoderConfig) -> tuple[str, dict[str, str]]:
    """Return the prefix of the encoder's names, and the table of the MLM head."""
    return ("bert.", BERT_HEAD) if config.model_type == "bert" else ("roberta.", ROBERTA_HEAD)


def name_table(encoder: Encoder) -> dict[str, str]:
    """Return {our name: Hugging Face's name without the prefix} for all tensors of this encoder."""
    modules = EMBEDDINGS | family(encoder.config)[1]
    for i in range(len(encoder.blocks)):
        for ours, theirs in BLOCK.items():
            modules[f"blocks.{i}.{ours}"] = f"encoder.layer.{i}.{theirs}"
    split = {name: name.rpartition(".") for name in encoder.state_dict()}
    return {name: f"{modules[module]}.{kind}" for name, (module, _, kind) in split.items()}


def to_hugging_face(encoder: Encoder) -> dict[str, Tensor]:
    """Return all tensors of an encoder under Hugging Face's names, on the CPU."""
    # A saved ...ForMaskedLM has the prefix, a saved ...Model has not.
    prefix = family(encoder.config)[0] if encoder.mlm_head is not None else ""
    state, tensors = encoder.state_dict(), {}
    for ours, theirs in name_table(encoder).items():
        name = theirs if ours.startswith("mlm_head.") else prefix + theirs
        tensors[name] = state[ours].cpu().contiguous()
    return tensors


def from_hugging_face(
    tensors: dict[str, Tensor], config: EncoderConfig
) -> tuple[Encoder, list[str]]:
    """Return (Encoder in float32, in memory of its own; notes of what was dropped)."""
    head = family(config)[1]["mlm_head"]
    found, dropped, wrong = current_names(tensors, config)
    modules = sorted({name.rpartition(".")[0] or name for name in dropped})
    notes = [f"dropped {listed(modules)}, which no method here uses"] if modules else []
    if any(re.search(WRAPPERS, name) for name in tensors):
        notes.append("removed what a wrapper like _orig_mod put into the names of the tensors")
    # Some files hold the decoder, a copy of the word embeddings, or its bias alone.
    copies = {f"{head}.decoder.weight": WORDS, f"{head}.weight": WORDS}
    copies[f"{head}.decoder.bias"] = f"{head}.bias"
    for name, original in copies.items():
        copy = found.pop(name, None)
        if copy is None:
            continue
        found.setdefault(original, copy)
        if not torch.equal(copy, found[original]):
            notes.append(f"dropped the MLM head: its decoder differs from {original}")
            found = {other: t for other, t in found.items() if not other.startswith(f"{head}.")}
    with torch.device("meta"):  # no time spent on a random start that is thrown away
        encoder = Encoder(config, mlm_head=any(name.startswith(f"{head}.") for name in found))

    state, missing = encoder.state_dict(), []
    for ours, name in name_table(encoder).items():
        tensor, shape = found.pop(name, None), state[ours].shape
        if tensor is None:
            missing.append(name)
        elif tensor.shape != shape:
            wrong.append(f"{name} is {list(tensor.shape)}, config.json says {list(shape)}")
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
    """Return {current name without prefix: tensor}, the names that are dropped, and problems."""
    prefix, head = family(config)
    own = ("embeddings.", "encoder.", "bert.", "roberta.", head["mlm_head"] + ".")
    found, dropped, wrong = {}, [], []
    for name, tensor in tensors.items():
        today = re.sub(WRAPPERS, "", name)
        # Other tensors below the prefix, such as an adapter's, may change the output: they keep
        # it and are reported as unexpected.
        today = re.sub(rf"^{prefix}(?=(embeddings|encoder|pooler)\.)", "", today)
        today = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", today)  # TensorFlow's names
        today = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", today)
        if today in ("embeddings.position_ids", "embeddings.token_type_ids"):
            continue  # buffers
        if not today.startswith(own):
            dropped.append(today)
        elif today in found:
            wrong.append(f"{today} is there twice")
        elif not tensor.is_floating_point() or tensor.layout != torch.strided:
            wrong.append(f"{today} holds {tensor.dtype}, not plain floating point")
        else:
            found[today] = tensor
    return found, dropped, wrong


def listed(names: list[str]) -> str:
    """Return "a, b, and 4 more", in one line whatever a file holds."""
    more = f", and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(shortened(name, 110) for name in names[:2]) + more
