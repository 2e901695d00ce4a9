"""The cache folder, escapes."""

from checkpoints import refusal

from minitransformer import UserError
from minitransformer.files import cache_folder, printable


def test_control_characters_are_escaped_in_errors():
    assert printable("é 中 \x1b[2J\r\n\t\x9b\udc80") == r"é 中 \x1b[2J\r \t\x9b\udc80"
    assert str(UserError("a\x07\nb")) == r"a\x07 b"


def test_without_a_folder_for_the_cache_one_line_says_what_to_set(monkeypatch):
    for cache in ("~nobody-of-this-name", "/dev/null/x"):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        refusal(cache_folder, says="cannot make the cache folder: .*; set XDG_CACHE_HOME")
