"""The built-in corpora: `docs`, the prose of docstrings, and `wordnet`."""

from collections import Counter

from distill.data import built_in
from distill.data.sources import Source, documents, identity

MODULE = '''
"""This is a paragraph of the module with more than eight words in it.

>>> 1 + 1 and more words that make a long line of an example session

Too short.

The same paragraph stands here and in another module with many words.
"""

class A:
    """A class has words, too, and they are read like those of modules."""

    def f():
        """if (x := a[i]) != {**b}: return c->d << 3; e |= ~f; g = h % j == 0 && k || l"""
'''


def test_docs_are_the_prose_of_docstrings(tmp_path, monkeypatch):
    same = '"""The same paragraph stands here and in another module with many words."""'
    for name, source in (("a", MODULE), ("b", same), ("c", '"""print this is Python two\n')):
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "d.py").write_text('"""The words of tests are not read, however many."""')
    topic = "A topic of the reference has eight words or more."
    monkeypatch.setattr(built_in, "topics", {"x": topic})
    monkeypatch.setattr(built_in, "PACKAGES", [])
    monkeypatch.setattr("sysconfig.get_path", lambda name: tmp_path)
    first, text = built_in.docs_texts()
    assert first == topic
    assert text == (
        "This is a paragraph of the module with more than eight words in it.\n"
        "The same paragraph stands here and in another module with many words.\n"
        "A class has words, too, and they are read like those of modules."
    )


def test_wordnet_is_a_line_a_sense_and_is_known_by_its_hash(tmp_path, monkeypatch):
    data = '  1 Free.\n01 03 n 02 hot_dog 0 frank 0 001 @ 02 n | a sausage; "eat it"  \n'
    for member in built_in.WORDNET:
        (tmp_path / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / member).write_text(data if member.endswith("verb") else "")
    monkeypatch.setattr(built_in, "package_files", lambda *_: tmp_path)
    assert list(built_in.wordnet_texts()) == ['hot dog: a sausage; "eat it"']
    assert [*documents(Source("wordnet"), Counter())] == ['hot dog: a sausage; "eat it"']
    assert built_in.WORDNET_SHA256 in identity(Source("wordnet"))
