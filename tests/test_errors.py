import inspect
import re

import pytest

import vecstore
from vecstore import errors

CLASSES = [
    value
    for _, value in sorted(vars(errors).items())
    if inspect.isclass(value) and issubclass(value, Exception)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_public(kind):
    assert getattr(vecstore, kind.__name__) is kind
    assert kind.__name__ in vecstore.__all__


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_a_vecstore_error(kind):
    assert issubclass(kind, vecstore.VecstoreError)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_keeps_its_message(kind):
    assert str(kind("what, which value, what to do")) == "what, which value, what to do"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (vecstore.UsageError, ValueError),
        (vecstore.NotFoundError, KeyError),
        (vecstore.MissingExtraError, ImportError),
    ],
)
def test_an_error_is_also_the_builtin_that_callers_expect(kind, builtin):
    assert issubclass(kind, builtin)


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    tree, path = {}, []
    for indent, name in re.findall(r"^ {2}( +)(\w+Error)\b", errors.__doc__, re.MULTILINE):
        depth = (len(indent) - 2) // 2
        path[depth:] = [name]
        tree[name] = path[depth - 1] if depth else None

    assert tree.keys() == {kind.__name__ for kind in CLASSES}
    for name, parent in tree.items():
        if parent is not None:
            assert issubclass(getattr(errors, name), getattr(errors, parent))


def test_a_not_found_error_without_a_message_is_empty():
    assert str(vecstore.NotFoundError()) == ""
