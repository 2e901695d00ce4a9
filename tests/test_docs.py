"""`docs`: the prose of docstrings."""

from distill.data import docs

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
    monkeypatch.setattr(docs, "topics", {"x": "A topic of the reference has eight words or more."})
    monkeypatch.setattr(docs, "PACKAGES", [])
    monkeypatch.setattr("sysconfig.get_path", lambda name: tmp_path)
    topic, text = docs.docs_texts()
    assert topic == "A topic of the reference has eight words or more."
    assert text == (
        "This is a paragraph of the module with more than eight words in it.\n"
        "The same paragraph stands here and in another module with many words.\n"
        "A class has words, too, and they are read like those of modules."
    )
