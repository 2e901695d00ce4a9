"""Real weights in, a folder that transformers opens out.

load_pretrained("embedded")                         the teacher that comes with this project
load_pretrained("google-bert/bert-base-uncased")    a hub id, through the hub's own cache
load_pretrained("runs/my-student")                  a folder
"""

import hashlib
import json
import pickle
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minitransformer.config import EncoderConfig
from minitransformer.convert import family, from_hugging_face, to_hugging_face
from minitransformer.embedded import EMBEDDED_TEACHER, embedded_teacher_folder
from minitransformer.errors import UserError, first_line
from minitransformer.files import atomic, flush
from minitransformer.model import Encoder
from minitransformer.tokenizer import Tokenizer, load_tokenizer
from minitransformer.tokenizer_files import FILES as TOKENIZER_FILES

# ---- reading -------------------------------------------------------------------------------------


def load_pretrained(name_or_folder, revision: str | None = None) -> tuple[Encoder, Tokenizer]:
    """Return (Encoder in float32 and eval mode, Tokenizer) of a folder, a hub id, or "embedded".

    What was dropped or assumed on the way is printed in one line.

    revision   branch, tag or commit of a hub id
    Errors     UserError, one line, for whatever is wrong with the name or the files
    """
    folder = find_folder(str(name_or_folder), revision)
    try:
        encoder, notes = read_encoder(folder)
        tokenizer = load_tokenizer(folder, encoder.config)
    except UserError as error:
        raise UserError(f"{name_or_folder}: {error}") from error
    notes += tokenizer.notes
    if notes:
        print(f"{name_or_folder}: {'; '.join(notes)}")
    return encoder, tokenizer


def read_encoder(folder: Path) -> tuple[Encoder, list[str]]:
    """Return (Encoder, notes on what was dropped) of a folder with config.json and weights."""
    values, tensors = read_json(folder / "config.json"), read_weights(folder)
    config = EncoderConfig.from_dict(values, tensors)
    state, has_head, notes = from_hugging_face(tensors, config)
    if not values.get("model_type"):
        notes.append(f"config.json has no model_type, read as {config.model_type}")
    with torch.device("meta"):  # no time spent on a random start that is thrown away
        encoder = Encoder(config, mlm_head=has_head)
    encoder.load_state_dict(state, assign=True)
    return encoder.eval(), notes


def find_folder(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a name; a hub id is downloaded into the hub's cache first."""
    if name == EMBEDDED_TEACHER:
        return embedded_teacher_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{name} is a folder; only a hub id has a revision ({revision!r})")
        return transformer_folder(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder")
    wanted = [*TOKENIZER_FILES, "model.safetensors*", "model-*.safetensors"]
    pickles = ["pytorch_model.bin*", "pytorch_model-*.bin"]
    try:
        folder = download(name, revision, ["modules.json", *wanted])
        if not any(folder.rglob("model*.safetensors")):
            folder = download(name, revision, pickles)
    except Exception as error:  # offline, unknown, private, cut off: many kinds, one line
        reason = first_line(error)
        if isinstance(error, LocalEntryNotFoundError):
            reason = "the hub cannot be reached, and its cache on this machine has no copy"
        raise UserError(
            f"{name!r} is not a local folder and could not be downloaded: {reason}"
        ) from error
    return transformer_folder(folder)


def download(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Return the hub's snapshot of these files, also of a sub-folder like 0_Transformer."""
    patterns = patterns + [f"0_*/{pattern}" for pattern in patterns]
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def transformer_folder(folder: Path) -> Path:
    """Return the sub-folder that holds the encoder, as old sentence-transformers saved it."""
    inside = folder / "0_Transformer"
    if (folder / "modules.json").is_file():
        modules = read_json(folder / "modules.json")
        first = modules[0] if isinstance(modules, list) and modules else None
        if isinstance(first, dict) and isinstance(first.get("path"), str):
            # A name with a path in it could point at any folder of the machine.
            inside = folder / Path(first["path"]).name
    return inside if (inside / "config.json").is_file() else folder


def read_json(path: Path):
    """Return the JSON in a file. Errors: UserError when it is missing, unreadable, not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path.name}: {first_line(error)}") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a folder: safetensors before pickles, one file before shards."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_weight_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return read_shards(folder, f"{name}.index.json")
    raise UserError("no model.safetensors or pytorch_model.bin")


def read_shards(folder: Path, index_name: str) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of all the files that an index names."""
    index = read_json(folder / index_name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_name} has no weight_map")
    tensors = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        # A name with a path in it could point at any file of the machine.
        if Path(shard).name != shard or Path(shard).suffix not in (".safetensors", ".bin"):
            raise UserError(
                f"{index_name} names {shard!r:.80}, which is not a weight file of its folder"
            )
        tensors.update(read_weight_file(folder / shard))
    return tensors


def read_weight_file(path: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of one file. Code in a pickle never runs."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no {path.name}") from error
    except pickle.UnpicklingError as error:  # torch would explain how to run the code in it
        raise UserError(
            f"cannot read {path.name}: it is damaged, or holds more than tensors"
        ) from error
    except Exception as error:  # whatever the bytes are: one line
        raise UserError(f"cannot read {path.name}: {first_line(error)}") from error
    if not isinstance(tensors, dict):
        raise UserError(f"{path.name} holds a {type(tensors).__name__}, not named tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path.name} holds more than named tensors: {name!r:.80}")
    return dict(tensors)


# ---- writing -------------------------------------------------------------------------------------


EXPORT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
# What another export, also one by transformers, may have left: it would be read first, or mixed in.
OTHER_EXPORTS = {*TOKENIZER_FILES, "pytorch_model.bin"}
OTHER_EXPORTS |= {"model.safetensors.index.json", "pytorch_model.bin.index.json"}
OTHER_SHARDS = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")


def save_pretrained(folder, encoder: Encoder, tokenizer: Tokenizer) -> None:
    """Write a folder that transformers and sentence-transformers open as it is.

    All files are written beside, flushed to disk and then renamed, config.json last: a folder
    without it is not a model to any program, so an export cut short is never taken for a whole one.
    Weight and tokenizer files of another export in this folder are removed, other files stay.
    Equal weights give equal files.
    Errors   UserError: the folder cannot be written
    """
    folder = Path(folder)
    architecture = family(encoder.config)[2][encoder.mlm_head is not None]
    config = json.dumps(encoder.config.to_dict(architecture), indent=2, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as renames:  # done when it is left, the one that was entered last first
            paths = [renames.enter_context(atomic(folder / name)) for name in EXPORT]
            paths[0].write_text(config, encoding="utf-8", newline="\n")
            save_file(to_hugging_face(encoder), paths[1], metadata={"format": "pt"})
            shutil.copymode(paths[0], paths[1])  # safetensors writes for the owner alone
            tokenizer.save(*paths[2:], encoder.config)
            remove_other_exports(folder)
        flush(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {first_line(error)}") from error


def remove_other_exports(folder: Path) -> None:
    """Remove the weight and tokenizer files of another export, its config.json first."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name != "config.json"):
        if path.name in OTHER_EXPORTS or OTHER_SHARDS.fullmatch(path.name):
            path.unlink()


def weights_hash(source) -> str:
    """Return sha256 of an encoder's exported tensors: names, dtypes, shapes, bytes.

    `source` is an Encoder or a folder; in whatever form a folder stores its weights, the hash is
    that of the encoder which it loads as.
    """
    encoder = source if isinstance(source, Encoder) else read_encoder(Path(source))[0]
    digest = hashlib.sha256()
    for name, tensor in sorted(to_hugging_face(encoder).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
