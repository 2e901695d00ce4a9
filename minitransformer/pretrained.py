"""Real weights in, a folder that transformers opens out.

load_pretrained("embedded")                         the teacher that comes with this project
load_pretrained("google-bert/bert-base-uncased")    a hub id, through the hub's own cache
load_pretrained("runs/my-student")                  a folder
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minitransformer.config import EncoderConfig
from minitransformer.convert import family, from_hugging_face, to_hugging_face
from minitransformer.embedded import EMBEDDED_TEACHER, embedded_teacher_folder
from minitransformer.errors import UserError, first_line
from minitransformer.files import flush
from minitransformer.model import Encoder
from minitransformer.tokenizer import FILES as TOKENIZER_FILES
from minitransformer.tokenizer import load_tokenizer

# ---- reading -------------------------------------------------------------------------------------


def load_pretrained(name_or_folder, revision=None):
    """(Encoder in float32 and eval mode, Tokenizer) of a folder, a hub id, or "embedded".

    revision   branch, tag or commit of a hub id
    Errors     UserError, one line, for whatever is wrong with the name or the files
    """
    folder = find_folder(str(name_or_folder), revision)
    try:
        encoder, notes = read_encoder(folder)
        tokenizer = load_tokenizer(folder, encoder.config)
    except UserError as error:
        raise UserError(f"{name_or_folder}: {error}") from error
    for note in notes:
        print(f"{name_or_folder}: {note}")
    return encoder, tokenizer


def read_encoder(folder):
    """Return (Encoder, notes) of a folder with config.json and weights."""
    values, tensors = read_json(folder / "config.json"), {}
    inferred = isinstance(values, dict) and not values.get("model_type")
    if inferred:  # then the names of the tensors decide; otherwise check the sizes before reading
        tensors = read_weights(folder)
    config = EncoderConfig.from_dict(values, tensors)
    state, has_head, notes = from_hugging_face(tensors or read_weights(folder), config)
    if inferred:
        notes.append(f"config.json has no model_type; read as {config.model_type}")
    with torch.device("meta"):  # no time spent on a random start that is thrown away
        encoder = Encoder(config, mlm_head=has_head)
    encoder.load_state_dict(state, assign=True)
    return encoder.eval(), notes


def find_folder(name, revision=None):
    """The local folder that a name stands for; a hub id is fetched into the hub's cache first."""
    if name == EMBEDDED_TEACHER:
        return embedded_teacher_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{name} is a folder; only a hub id has a revision ({revision!r})")
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder")
    files = ["config.json", *TOKENIZER_FILES]
    safe = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
    pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files + safe))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=pickles))
    except Exception as error:  # offline, unknown, private, cut off: many kinds, one line
        raise UserError(
            f"{name!r} is no folder here, and the hub did not give it: {first_line(error)}"
        ) from error
    return folder


def read_json(path):
    """The JSON in a file. Errors: UserError when it is missing, unreadable or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path.name}: {first_line(error)}") from error


def read_weights(folder):
    """{name: tensor} of a folder: safetensors before pickles, one file before shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_weight_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return read_shards(folder, f"{name}.index.json")
    raise UserError("no model.safetensors or pytorch_model.bin")


def read_shards(folder, index_name):
    """{name: tensor} of all the files that an index names."""
    index = read_json(folder / index_name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_name} has no weight_map")
    tensors = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        # A name with a path in it could point at any file of the machine.
        if Path(shard).name != shard or Path(shard).suffix not in (".safetensors", ".bin"):
            raise UserError(f"{index_name} names {shard!r}, which is no weight file of its folder")
        tensors.update(read_weight_file(folder / shard))
    return tensors


def read_weight_file(path):
    """{name: tensor} of one file. A pickle is read with weights_only: no code in it ever runs."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no {path.name}") from error
    except Exception as error:  # whatever the bytes are: one line
        raise UserError(f"cannot read {path.name}: {first_line(error)}") from error
    if not isinstance(tensors, dict):
        raise UserError(f"{path.name} holds no named tensors but a {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path.name} holds more than named tensors: {name!r:.80}")
    return dict(tensors)


# ---- writing -------------------------------------------------------------------------------------


def save_pretrained(folder, encoder, tokenizer):
    """Write a folder that transformers and sentence-transformers open as it is.

    All is written beside, flushed to disk and then renamed, config.json last: a folder without it
    is no model to anybody, so an export that was cut short is never taken for a whole one.
    Equal weights give equal files.
    Errors   UserError: the folder cannot be written
    """
    folder = Path(folder)
    architecture = family(encoder.config)[2][encoder.mlm_head is not None]
    config = json.dumps(encoder.config.to_dict(architecture), indent=2, sort_keys=True) + "\n"
    beside = folder / ".export"
    try:
        beside.mkdir(parents=True, exist_ok=True)  # a killed export may have left one
        (beside / "config.json").write_text(config, encoding="utf-8")
        tokenizer.save(beside)
        weights = beside / "model.safetensors"
        save_file(to_hugging_face(encoder), weights, metadata={"format": "pt"})
        shutil.copymode(beside / "config.json", weights)  # safetensors writes for the owner alone
        for path in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
            flush(path)
            os.replace(path, folder / path.name)
        beside.rmdir()
        flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {first_line(error)}") from error


def weights_hash(source):
    """sha256 of an encoder's exported tensors: names, dtypes, shapes, bytes.

    `source` is an Encoder or a folder; in whatever form a folder stores its weights, the hash is
    that of the encoder which it loads as.
    """
    encoder = source if isinstance(source, Encoder) else read_encoder(Path(source))[0]
    digest = hashlib.sha256()
    for name, tensor in sorted(to_hugging_face(encoder).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# ---- the embedded teacher ------------------------------------------------------------------------
