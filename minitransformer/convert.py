"""Weights between Hugging Face's names and ours: one visible table, read in both directions.

    blocks.0.query.weight   <->   bert.encoder.layer.0.attention.self.query.weight

Import is strict: a tensor of the encoder that is missing, unknown, or of the wrong shape or kind is
an error before anything is copied, so no weight stays random. Heads of tasks are dropped and named.
"""

import re

import torch
from torch import Tensor

from minitransformer.config import MODEL_TYPES, EncoderConfig, families
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
# Ignored on import. The texts are printed once; buffers say nothing that the sizes do not.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
HEADS = {"pooler.": "the pooler", "cls.seq_relationship.": "the next-sentence head"}
# Parts that DataParallel, torch.compile, FSDP, Lightning and sentence-transformers put into names
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "model", "auto_model"}
# The sizes that one tensor shows: (name, dimension)
SHOWN_BY = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "hidden_size": ("embeddings.word_embeddings.weight", 1),
    "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}


def family(config: EncoderConfig) -> tuple[str, dict[str, str], tuple[str, str]]:
    """Return prefix of the encoder's names, table of the MLM head, classes without and with it."""
    stem = MODEL_TYPES[config.model_type]
    classes = (f"{stem}Model", f"{stem}ForMaskedLM")
    if config.model_type == "bert":
        return "bert.", BERT_HEAD, classes
    return "roberta.", ROBERTA_HEAD, classes


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
) -> tuple[dict[str, Tensor], bool, list[str]]:
    """Convert Hugging Face's tensors: return (our state dict, has an MLM head, notes).

    The state dict is float32 in memory of its own, whatever the file held or shared. The notes say
    what was dropped or removed from names.
    Errors   UserError: tensors that are missing, unknown, twice there, of another shape or kind;
             all together, the cause first, three by name.
    """
    head = family(config)[1]["mlm_head"]
    causes = wrong_family(tensors, config)
    tensors, problems, notes = current_names(tensors, config)
    tensors, dropped = drop_heads(tensors, head)
    if dropped:
        notes.append(f"dropped {listed(dropped)}, which no method here uses")
    tensors, untied = separate_decoder(tensors, head)
    if untied:
        notes.append(f"dropped the MLM head: its decoder is not tied ({untied})")
    has_head = any(name.startswith(f"{head}.") for name in tensors)

    with torch.device("meta"):
        encoder = Encoder(config, mlm_head=has_head)
    table = name_table(encoder)
    state = encoder.state_dict()
    shapes = {theirs: state[ours].shape for ours, theirs in table.items()}
    problems += [f"missing {name}" for name in shapes if name not in tensors]
    problems += [f"unknown {short(name)}" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        if tensors[name].shape != shapes[name]:
            found = short(list(tensors[name].shape), 30)
            problems.append(f"{name} is {found}, not {list(shapes[name])}")
        elif not plain(tensors[name]):
            problems.append(f"{name} holds {tensors[name].dtype}, not plain floating point")
    if problems:
        raise UserError(refusal(causes or wrong_sizes(tensors, config), problems))

    state = {ours: tensors[name].to(torch.float32, copy=True) for ours, name in table.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}, has_head, notes


def current_names(tensors, config):
    """Return ({name of today without prefix: tensor}, problems, notes)."""
    prefix = family(config)[0]
    renamed, problems, wrappers = {}, [], []
    for name, tensor in tensors.items():
        parts = name.split(".")
        wrappers += [part for part in parts if part in WRAPPERS and part not in wrappers]
        today = ".".join(part for part in parts if part not in WRAPPERS)
        # Anything else below the prefix, as an adapter, may take part in the arithmetic: unknown.
        inner = today.removeprefix(prefix)
        if inner.startswith(("embeddings.", "encoder.", "pooler.")):
            today = inner
        today = re.sub(r"(LayerNorm\.)gamma$", r"\1weight", today)  # TensorFlow's names
        today = re.sub(r"(LayerNorm\.)beta$", r"\1bias", today)
        if today in renamed:
            problems.append(f"{short(today)} is there twice")
        renamed[today] = tensor
    notes = [f"removed {listed(wrappers)} from the names of the tensors"] if wrappers else []
    return renamed, problems, notes


def drop_heads(tensors, head):
    """Return (tensors of the encoder and its MLM head, names of the parts that were dropped)."""
    kept, dropped = {}, []
    for name, tensor in tensors.items():
        if name in BUFFERS:
            continue
        if name.startswith(("embeddings.", "encoder.", "bert.", "roberta.", f"{head}.")):
            kept[name] = tensor
            continue
        # Whatever stands beside the encoder reads its output: a head of some task.
        known = [text for start, text in HEADS.items() if name.startswith(start)]
        text = known[0] if known else short(name.split(".")[0], 40)
        if text not in dropped:
            dropped.append(text)
    return kept, sorted(dropped)


def separate_decoder(tensors, head):
    """Return (tensors without the decoder, "" or why it is not tied, and then without the head).

    Files may hold the decoder under a name of its own, but it must equal the word embeddings.
    """
    tensors = dict(tensors)
    weight = tensors.pop(f"{head}.decoder.weight", None)
    bias = tensors.pop(f"{head}.decoder.bias", None)
    if bias is not None:
        tensors.setdefault(f"{head}.bias", bias)  # some files hold it only there
    pairs = {"embeddings.word_embeddings.weight": weight, f"{head}.bias": bias}
    for name, copy in pairs.items():
        if copy is None or name not in tensors or not plain(tensors[name]):
            continue
        original = tensors[name]
        if not plain(copy) or not torch.equal(copy.to(original.dtype), original):
            kept = {key: t for key, t in tensors.items() if not key.startswith(f"{head}.")}
            return kept, f"it differs from {name}"
    return tensors, ""


def plain(tensor: Tensor) -> bool:
    """Numbers in memory: a pickle can also hold sparse, quantised, integer or meta tensors."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    in_memory = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return in_memory and tensor.dtype in floats


# ---- messages: a file may hold thousands of names, of thousands of characters --------------------


def wrong_family(tensors, config) -> list[str]:
    """Return the cause when the names are those of another family or begin otherwise."""
    prefix = family(config)[0]
    found = families(tensors)
    if found and prefix.removesuffix(".") not in found:
        other = next(iter(found.values()))
        return [f"the file has {other}*, config.json says {config.model_type}"]
    end = "embeddings.word_embeddings.weight"
    for name in tensors:
        start = ".".join(p for p in name.removesuffix(end).split(".") if p not in WRAPPERS)
        if name.endswith(end) and start not in ("", prefix):
            return [f"the names begin with {short(start)}, not with {prefix!r}"]
    return []


def wrong_sizes(tensors, config) -> list[str]:
    """Return the sizes that config.json and the file give otherwise, in words."""
    numbers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    causes = []
    if len(numbers) != config.num_hidden_layers:
        causes.append(
            f"config.json says {config.num_hidden_layers} layers, the file holds {len(numbers)}"
        )
    for size, (name, dimension) in SHOWN_BY.items():
        expected = getattr(config, size)
        if name in tensors and tensors[name].dim() == 2:
            found = tensors[name].shape[dimension]
            if found != expected:
                causes.append(f"config.json says {size} {expected}, the file holds {found}")
    return causes[:2]


def refusal(causes: list[str], problems: list[str]) -> str:
    """Return the one line: causes, three problems at most, and how many more there are."""
    shown = []
    for problem in problems[:3]:
        if len("".join(shown) + problem) < 220:
            shown.append(problem)
    more = len(problems) - len(shown)
    rest = [f"and {more} more"] if more else []
    return "the weights do not fit: " + "; ".join([*causes, *shown, *rest])


def listed(names: list[str]) -> str:
    """Return "a, b, c and 4 more"."""
    if len(names) > 3:
        names = [*names[:3], f"{len(names) - 3} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if names[1:] else names[0]


def short(value: object, length: int = 60) -> str:
    """Return the value in one line of at most `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
