"""`docs`: the prose of docstrings, read once."""

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
    sources = {
        "one": MODULE,
        "two": '"""The same paragraph stands here and in another module with many words."""',
        "three": '"""print this is Python two with a docstring\n',
    }
    modules = []
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
        modules.append((name, docs._docstrings(tmp_path / f"{name}.py")))
    monkeypatch.setattr(docs, "_all_docstrings", lambda: modules)
    text = (
        "This is a paragraph of the module with more than eight words in it.\n"
        "The same paragraph stands here and in another module with many words.\n"
        "A class has words, too, and they are read like those of modules."
    )
    assert docs.docs_documents() == [("one", text)]
