"""Real weights in, a folder that transformers opens out.

load_pretrained("minilm")                         the teacher that comes with this project
load_pretrained("google-bert/bert-base-uncased")    a hub id, through the hub's own cache
load_pretrained("runs/my-student")                  a folder
"""

import hashlib
import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minitransformer.config import EncoderConfig
from minitransformer.convert import from_hugging_face, to_hugging_face
from minitransformer.default_teacher import DEFAULT_TEACHER, default_teacher_folder
from minitransformer.files import UserError, atomic, first_line, flush, read_json
from minitransformer.model import Encoder
from minitransformer.model_types import MODEL_TYPES
from minitransformer.tokenizer import Tokenizer
from minitransformer.tokenizer_files import FILES as TOKENIZER_FILES
from minitransformer.tokenizer_files import load_tokenizer

# Patterns of weight files and of the indexes of their shards.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")

# ---- reading -------------------------------------------------------------------------------------


def load_pretrained(name_or_folder, revision: str | None = None) -> tuple[Encoder, Tokenizer]:
    """Return (Encoder in float32 and eval mode, Tokenizer) of a folder, a hub id, or "minilm".

    What was dropped or assumed on the way is printed in one line.

    revision   branch, tag or commit of a hub id
    Errors     UserError, one line, for whatever is wrong with the name or the files
    """
    folder = find_folder(str(name_or_folder), revision)
    try:
        values, tensors = read_json(folder / "config.json"), read_weights(folder)
        config = EncoderConfig.from_dict(values, tensors)
        encoder, notes = from_hugging_face(tensors, config)
        check_finite(encoder)
        tokenizer = load_tokenizer(folder, config)
    except UserError as error:
        raise UserError(f"{name_or_folder}: {error}") from error
    if not values.get("model_type"):
        notes.append(f"config.json has no model_type, read as {config.model_type}")
    notes += tokenizer.notes
    if notes:
        print(f"{name_or_folder}: {'; '.join(notes)}")
    return encoder.eval(), tokenizer


def find_folder(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a name; a hub id is downloaded into the hub's cache first."""
    folder = Path(name).expanduser()
    if name == DEFAULT_TEACHER:
        folder = default_teacher_folder()
    elif folder.is_dir():
        if revision is not None:
            raise UserError(f"{name} is a folder; only a hub id has a revision ({revision!r})")
    elif folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder")
    else:
        folder = download(name, revision)
    # Old sentence-transformers saved the encoder in a sub-folder like 0_Transformer.
    inside = sorted(folder.glob("0_*/config.json"))
    whole = any((folder / name).exists() for name in (*SAFETENSORS[:2], *PICKLES[:2]))
    return inside[0].parent if inside and not whole else folder


def download(name: str, revision: str | None) -> Path:
    """Return the hub's snapshot of a model's files; pickles only where there is nothing else."""
    try:
        for patterns in ([*TOKENIZER_FILES, *SAFETENSORS], PICKLES):
            patterns = [*patterns, *(f"0_*/{pattern}" for pattern in patterns)]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
            if any(folder.rglob("model*.safetensors")):
                break
        return folder
    except Exception as error:  # offline, unknown, private, cut off: many kinds, one line
        reason = first_line(error)
        if isinstance(error, LocalEntryNotFoundError):
            reason = "the hub cannot be reached, and its cache on this machine has no copy"
        raise UserError(
            f"{name!r} is not a local folder and could not be downloaded: {reason}"
        ) from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a folder: safetensors before pickles, one file before shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_weight_file(folder / name)
        if index.is_file():
            tensors = {}
            for shard in shards(index):
                tensors |= read_weight_file(folder / shard)
            return tensors
    raise UserError("no model.safetensors or pytorch_model.bin")


def check_finite(encoder: Encoder) -> None:
    """Refuse weights that would make every output NaN."""
    for name, tensor in encoder.named_parameters():
        if not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{name} holds {count:,} NaN or infinite of {tensor.numel():,} numbers; the file is"
                " damaged or its training diverged: take another one"
            )


def shards(index: Path) -> list[str]:
    """Return the weight files that an index names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index.name} has no weight_map")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # A name with a path in it could point at any file of the machine.
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise UserError(
                f"{index.name} names {name!r:.80}, which is not a weight file of its folder"
            )
    return names


def read_weight_file(path: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of one file. Code in a pickle never runs."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        # Whatever is no tensor has no detach.
        return {str(name): tensor.detach() for name, tensor in tensors.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path.name}: {first_line(error)}") from error
    except Exception as error:  # whatever the bytes are; torch would explain how to run code in it
        raise UserError(
            f"cannot read {path.name}: it is damaged, or holds more than tensors"
        ) from error


# ---- writing -------------------------------------------------------------------------------------


EXPORT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def save_pretrained(folder, encoder: Encoder, tokenizer: Tokenizer) -> None:
    """Write a folder that transformers and sentence-transformers open as it is.

    All files are written beside, flushed to disk and then renamed, config.json last: a folder
    without it is not a model to any program, so an export cut short is never taken for a whole one.
    Weight and tokenizer files of another export in this folder are removed, other files stay.
    Equal weights give equal files.
    Errors   UserError: the folder cannot be written
    """
    folder = Path(folder)
    kind = "Model" if encoder.mlm_head is None else "ForMaskedLM"
    architecture = MODEL_TYPES[encoder.config.model_type] + kind
    config = json.dumps(encoder.config.to_dict(architecture), indent=2, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as renames:  # done when it is left, the one that was entered last first
            paths = [renames.enter_context(atomic(folder / name)) for name in EXPORT]
            paths[0].write_text(config, encoding="utf-8", newline="\n")
            save_file(to_hugging_face(encoder), paths[1], metadata={"format": "pt"})
            shutil.copymode(paths[0], paths[1])  # safetensors writes for the owner alone
            tokenizer.save(*paths[2:], encoder.config)
            # What another export left, also one by transformers, would be read first or mixed in;
            # its config.json goes first, so that what is left of it is never opened.
            for pattern in (*TOKENIZER_FILES, *SAFETENSORS, *PICKLES):
                for path in folder.glob(pattern):
                    path.unlink()
        flush(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {first_line(error)}") from error


def weights_hash(encoder: Encoder) -> str:
    """Return sha256 of an encoder's exported tensors: names, dtypes, shapes, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(to_hugging_face(encoder).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def model_hash(encoder: Encoder, tokenizer: Tokenizer) -> str:
    """Return sha256 of all that decides what a model computes: weights, config, tokenizer."""
    parts = [weights_hash(encoder), asdict(encoder.config), tokenizer.hash]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
