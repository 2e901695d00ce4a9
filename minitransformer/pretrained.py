"""Load pretrained weights; save a folder that transformers opens.

load_pretrained("minilm")                         the teacher that comes with this project
load_pretrained("google-bert/bert-base-uncased")  a hub id, through the hub's own cache
load_pretrained("runs/my-student")                a folder
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minitransformer.config import MODEL_TYPES, EncoderConfig
from minitransformer.convert import from_hugging_face, to_hugging_face
from minitransformer.default_teacher import DEFAULT_TEACHER, default_teacher_folder
from minitransformer.files import UserError, check_regular, first_line, printable, read_json
from minitransformer.model import Encoder
from minitransformer.tokenizer import FILES as TOKENIZER_FILES
from minitransformer.tokenizer import Tokenizer, load_tokenizer

SETTINGS = ("config.json", *TOKENIZER_FILES, "modules.json", "*_Pooling/config.json")
SETTINGS += ("sentence_*_config.json", "config_sentence_transformers.json")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def load_pretrained(name_or_folder, revision: str | None = None) -> tuple[Encoder, Tokenizer]:
    """Return (Encoder in float32 and eval mode, Tokenizer) of a folder, a hub id, or "minilm".

    What was dropped or assumed is printed. `revision` is a branch, tag or commit of a hub id.
    """
    folder = find_folder(str(name_or_folder), revision)
    try:
        values = read_json(folder / "config.json")
        config = EncoderConfig.from_dict(values)
        encoder, notes = from_hugging_face(read_weights(folder), config)
        if not values.get("model_type"):
            notes.insert(0, "config.json has no model_type, read as bert")
        for name, tensor in encoder.named_parameters():
            if not tensor.isfinite().all():
                raise UserError(f"{name} holds NaN or infinite numbers; use another file")
        tokenizer = load_tokenizer(folder, config)
        tokenizer.pooling, tokenizer.normalize = read_pooling(folder, config.max_tokens, notes)
    except UserError as error:
        raise UserError(f"{name_or_folder}: {error}") from error
    notes += tokenizer.notes
    if notes:
        print(printable(f"{name_or_folder}: {'; '.join(notes)}"))
    return encoder.eval(), tokenizer


def find_folder(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a name; a hub id is downloaded into the hub's cache first."""
    folder = Path(os.path.expanduser(name))
    if revision and (name == DEFAULT_TEACHER or os.path.isdir(folder)):
        raise UserError(f"{name} is not from the hub and has no revision {revision}")
    if name == DEFAULT_TEACHER:
        if os.path.isdir(folder):
            raise UserError(f"{name} is the default teacher and a folder; for that say ./{name}")
        return default_teacher_folder()
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder")
    return download(name, revision)


def download(name: str, revision: str | None) -> Path:
    """Return the hub's snapshot of a model's files; pickles only where there is nothing else."""
    try:
        for patterns in ([*SETTINGS, *SAFETENSORS], [*PICKLES]):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
            if any(folder.glob("model*.safetensors")):
                break
        return folder
    except Exception as error:  # offline, unknown, private, cut off: many kinds, one line
        raise UserError(f"{name!r}: no folder, download failed: {first_line(error)}") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a folder: safetensors before pickles, one file before shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return read_weight_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{index.name} has no weight_map")
            shards = sorted(set(map(str, weight_map.values())))
            parts = [read_weight_file(folder / shard) for shard in shards]
            return {name: tensor for part in parts for name, tensor in part.items()}
    raise UserError("no model.safetensors or pytorch_model.bin")


def read_weight_file(path: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of one file. Code in a pickle never runs."""
    check_regular(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        # Whatever is no tensor has no detach.
        return {str(name): tensor.detach() for name, tensor in tensors.items()}
    except Exception as error:  # torch would explain how to run the code in it
        raise UserError(f"cannot read {path.name}: damaged, or holds more than tensors") from error


def read_pooling(folder: Path, max_tokens: int, notes: list[str]) -> tuple[str, bool]:
    """Return the pooling, "mean" or "cls", and if vectors are normed; note what is left out."""
    # sentence-transformers before 2 kept the encoder in a folder of its own
    top, places = folder.parent if folder.name == "0_Transformer" else folder, {}
    for module in read_json(top / "modules.json", []):
        module = module if isinstance(module, dict) else {"type": module}
        kind = str(module.get("type")).split(".")[-1]
        places[kind] = top / str(module.get("path"))
        if kind not in ("Transformer", "Pooling", "Normalize"):
            notes.append(f"its sentence vectors go through a module {kind}, which is left out here")
    values = read_json(top / "config_sentence_transformers.json", {})
    if isinstance(prompts := values.get("prompts"), dict) and any(prompts.values()):
        notes.append("its prompts are left out: put them before the texts yourself")
    if (similarity := values.get("similarity_fn_name") or "cosine") != "cosine":
        notes.append(f"it compares vectors by {similarity!r:.40}, a student's by the cosine")
    files = [*folder.glob("sentence_*_config.json")]  # bert, roberta, ...
    for file in [*files, folder / "tokenizer_config.json"] if places else files:
        values = read_json(file, {})
        if values.get("do_lower_case") and file in files:
            notes.append(f"{file.name} asks for lower-case text: lower it yourself")
        most = values.get("max_seq_length") or values.get("model_max_length")
        if isinstance(most, int) and most < max_tokens:
            notes.append(f"{file.name} cuts texts at {most} tokens, a student reads {max_tokens}")
    file = places.get("Pooling", top / "1_Pooling") / "config.json"
    values = read_json(file, {"pooling_mode": "mean"})
    # sentence-transformers before 5: one key per mode
    old = [key for key, on in values.items() if key.startswith("pooling_mode_") and on]
    mode = values.get("pooling_mode", old)
    cls = mode in ("cls", ["cls"], ["pooling_mode_cls_token"])
    if not cls and mode not in ("mean", ["mean"], ["pooling_mode_mean_tokens"]):
        notes.append(f"its sentence vectors are pooled by {mode}, a student's by the mean")
    return "cls" if cls else "mean", "Normalize" in places


def save_pretrained(folder, encoder: Encoder, tokenizer: Tokenizer) -> None:
    """Write a folder that transformers and sentence-transformers open as it is.

    All files are written to export.tmp inside it, then renamed, config.json last: an export cut
    short is never taken for a whole one. Model files of another export are removed, others stay.
    """
    folder = Path(folder)
    beside = folder / "export.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)  # of a program that was killed
        (beside / "1_Pooling").mkdir(parents=True)
        write_export(beside, encoder, tokenizer)
        written = [path for path in beside.rglob("*") if path.is_file()]
        # Files of an older export could be read in place of ours; its config.json goes first.
        for pattern in (*SETTINGS, *SAFETENSORS, *PICKLES):
            for path in folder.glob(pattern):
                path.unlink()
        (folder / "1_Pooling").mkdir(exist_ok=True)
        for path in sorted(written, key=lambda path: path == beside / "config.json"):
            os.replace(path, folder / path.relative_to(beside))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {first_line(error)}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_export(folder: Path, encoder: Encoder, tokenizer: Tokenizer) -> None:
    kind = "Model" if encoder.mlm_head is None else "ForMaskedLM"
    config = encoder.config.to_dict(MODEL_TYPES[encoder.config.model_type] + kind)
    write_json(folder / "config.json", config)
    save_file(to_hugging_face(encoder), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # it is 0600
    tokenizer.save(folder / "tokenizer.json", folder / "tokenizer_config.json", encoder.config)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds[: 3 if tokenizer.normalize else 2])
    ]
    write_json(folder / "modules.json", modules)
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    pooling = {mode: tokenizer.pooling == kind for mode, kind in modes.items()}
    pooling["word_embedding_dimension"] = encoder.config.hidden_size
    write_json(folder / "1_Pooling" / "config.json", pooling)


def write_json(path: Path, values: dict | list) -> None:
    path.write_bytes((json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def model_hash(encoder: Encoder, tokenizer: Tokenizer) -> str:
    """Return sha256 of all that decides what a model computes: weights, config, tokenizer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(to_hugging_face(encoder).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    parts = [digest.hexdigest(), asdict(encoder.config), tokenizer.hash]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
