"""Weights between Hugging Face's names and ours: one visible table, read in both directions.

    blocks.0.query.weight   <->   bert.encoder.layer.0.attention.self.query.weight

Import is strict: a tensor of the encoder that is missing, unknown, or of the wrong shape or kind is
an error before anything is copied, so no weight stays random. Heads of tasks are dropped and named.
"""

import re

import torch
from torch import Tensor

from minitransformer.config import EncoderConfig
from minitransformer.errors import UserError
from minitransformer.model import Encoder
from minitransformer.model_types import MODEL_TYPES, families

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
HEADS = {"pooler.dense": "the pooler", "cls.seq_relationship": "the next-sentence head"}
# Parts that DataParallel, torch.compile, FSDP, Lightning and sentence-transformers put into names
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "model", "auto_model"}


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
    cause = wrong_family(tensors, config)
    tensors, problems, notes = current_names(tensors, config)
    if config.inferred:
        notes.append(f"config.json has no model_type, read as {config.model_type}")
    decoder = separate_decoder(tensors, head)
    has_head = any(name.startswith(f"{head}.") for name in tensors)
    with torch.device("meta"):
        encoder = Encoder(config, mlm_head=has_head)
    table = name_table(encoder)
    state = encoder.state_dict()
    shapes = {theirs: state[ours].shape for ours, theirs in table.items()}
    difference = untied(decoder, tensors, shapes)
    if has_head and difference:
        notes.append(f"dropped the MLM head: its decoder is not tied, it differs from {difference}")
        has_head = False
        table = {ours: name for ours, name in table.items() if not ours.startswith("mlm_head.")}
        tensors = {name: t for name, t in tensors.items() if not name.startswith(f"{head}.")}
        shapes = {name: shapes[name] for name in table.values()}

    problems += [f"missing {name}" for name in shapes if name not in tensors]
    problems += [f"unknown {short(name)}" for name in tensors if name not in shapes]
    for name, shape in shapes.items():
        if name not in tensors:
            continue
        if tensors[name].shape != shape:
            found = short(list(tensors[name].shape))
            problems.append(f"{name} has shape {found}, config.json says {list(shape)}")
        elif not plain(tensors[name]):
            problems.append(f"{name} holds {tensors[name].dtype}, not plain floating point")
    if problems:
        raise UserError(refusal(cause or wrong_depth(tensors, config), problems))

    state = {ours: tensors[name].to(torch.float32, copy=True) for ours, name in table.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}, has_head, notes


def current_names(tensors, config):
    """Return (encoder and MLM head {name of today, without prefix: tensor}, problems, notes)."""
    prefix, head, _ = family(config)
    own = ("embeddings.", "encoder.", "bert.", "roberta.", head["mlm_head"] + ".")
    renamed, problems, wrappers, dropped = {}, [], set(), set()
    for name, tensor in tensors.items():
        parts = name.split(".")
        wrappers.update(WRAPPERS.intersection(parts))
        today = ".".join(part for part in parts if part not in WRAPPERS)
        # What else is below the prefix, such as an adapter, may take part: it stays, as unknown.
        if today.startswith((f"{prefix}embeddings.", f"{prefix}encoder.", f"{prefix}pooler.")):
            today = today.removeprefix(prefix)
        today = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", today)  # TensorFlow's names
        today = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", today)
        if today in renamed:
            problems.append(f"{short(today)} is there twice")
        elif today.startswith(own):
            renamed[today] = tensor
        else:  # beside the encoder: a head of some task, which reads the encoder's output
            module = today.rpartition(".")[0] or today
            dropped.add(HEADS.get(module, short(module)))
    for name in BUFFERS:
        renamed.pop(name, None)
    notes = []
    if wrappers:
        notes.append(f"removed {listed(wrappers)} from the names of the tensors")
    if dropped:
        notes.append(f"dropped {listed(dropped)}, which no method here uses")
    return renamed, problems, notes


def separate_decoder(tensors, head):
    """Take the decoder, a copy that some files hold, out of `tensors`; return {original: copy}."""
    weight = tensors.pop(f"{head}.decoder.weight", None)
    bias = tensors.pop(f"{head}.decoder.bias", None)
    if bias is not None:
        tensors.setdefault(f"{head}.bias", bias)  # some files hold it only there
    return {"embeddings.word_embeddings.weight": weight, f"{head}.bias": bias}


def untied(decoder, tensors, shapes) -> str | None:
    """Return the name of the tensor that the decoder should equal and does not."""
    for name, copy in decoder.items():
        original = tensors.get(name)
        # An original of another shape is refused anyway: it may claim to hold 10**15 numbers.
        if copy is None or original is None or original.shape != shapes.get(name):
            continue
        if not plain(copy) or not plain(original) or not torch.equal(copy, original):
            return name
    return None


def plain(tensor: Tensor) -> bool:
    """Numbers in memory: a pickle can also hold sparse, quantised, integer or meta tensors."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    in_memory = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return in_memory and tensor.dtype in floats


# ---- messages: a file may hold thousands of names, of thousands of characters --------------------


def wrong_family(tensors, config) -> str:
    """Return the cause in words if the names are those of another family or begin otherwise."""
    prefix = family(config)[0]
    found = families(tensors)
    if found and prefix.removesuffix(".") not in found:
        return f"the file has {next(iter(found.values()))}*, config.json says {config.model_type}"
    for name in tensors:
        start, end, _ = name.partition("embeddings.word_embeddings.weight")
        start = ".".join(part for part in start.split(".") if part not in WRAPPERS)
        if end and start not in ("", prefix):
            return f"the names begin with {short(start)}, not with {prefix!r}"
    return ""


def wrong_depth(tensors, config) -> str:
    """Return the cause in words if config.json and the file differ in the number of layers."""
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    if len(layers) == config.num_hidden_layers:
        return ""
    return f"config.json says {config.num_hidden_layers} layers, the file holds {len(layers)}"


def refusal(cause: str, problems: list[str]) -> str:
    """Return the one line: the cause, three problems at most, and how many more there are."""
    said = [cause] if cause else []
    shown = 0
    for problem in problems[:3]:
        if len("; ".join([*said, problem])) < 250:
            said.append(problem)
            shown += 1
    if shown < len(problems):
        said.append(f"and {len(problems) - shown} more")
    return "the weights do not fit: " + "; ".join(said)


def listed(names: set[str]) -> str:
    """Return "a, b, c and 4 more"."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def short(value: object) -> str:
    """Return the value in one line of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
