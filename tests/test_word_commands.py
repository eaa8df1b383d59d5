import json

import numpy as np
import pytest
from click.testing import CliRunner
from word_models import fasttext, text, write

from vecstore import cli, word_commands
from vecstore.words.conversion import SUBWORDS
from vecstore.words.files import KINDS

WORDS = ["king", "queen", "man", "woman", "cat"]
VECTORS = np.array([[1, 1, 0], [1, -1, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], np.float32)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, status=0):
        result = CliRunner().invoke(cli.main, ["words", *map(str, arguments)])

        assert result.exit_code == status, result.output
        return result

    return invoke


def test_a_file_is_converted_and_words_are_similar(run, tmp_path):
    write(tmp_path / "file.txt", text([*WORDS, "king"], [*VECTORS, VECTORS[0]]))

    done = run("convert", "file.txt", "words.vecstore")
    found = run("similar", "words.vecstore", "king", "woman", "--not", "man", "-k", 1)

    assert done.stdout == "5 words of 3 numbers stored in 'words' of words.vecstore\n"
    assert done.stderr == "1 words left out: duplicate\n"
    assert [line.split()[1] for line in found.stdout.splitlines()] == ["word", "queen"]


def test_answers_may_be_json(run, tmp_path):
    matrix = np.concatenate([VECTORS, np.ones((7, 3), np.float32)])
    write(tmp_path / "model.bin", fasttext(WORDS, matrix, buckets=7))

    options = ("--limit", 4, "--subwords", "used", "--precision", "float16", "-c", "english")
    done = json.loads(run("convert", "model.bin", "w.vecstore", *options, "--json").stdout)
    found = json.loads(run("similar", "w.vecstore", "kings", "-c", "english", "--json").stdout)

    assert (done["words"], done["kind"], done["name"]) == (4, "fasttext", "english")
    assert done["ngrams"] == done["used"]
    assert len(found["hits"]) == 4
    assert found["hits"][0].keys() == {"id", "score", "distance"}


def test_errors_are_one_line(run, tmp_path):
    write(tmp_path / "file.txt", b"no word vectors\n")

    assert "no file of word vectors" in run("convert", "file.txt", "w", status=1).stderr
    assert "there is no file" in run("convert", "nothing", "w", status=1).stderr
    write(tmp_path / "file.txt", text(WORDS, VECTORS))
    run("convert", "file.txt", "w.vecstore")
    assert "no vector for 'unheard'" in run("similar", "w.vecstore", "unheard", status=1).stderr
    assert "no word vectors 'x'" in run("similar", "w.vecstore", "cat", "-c", "x", status=1).stderr
    assert "exists already" in run("convert", "file.txt", "w.vecstore", status=1).stderr


def test_choices_are_those_of_the_library():
    assert word_commands.KINDS == KINDS
    assert word_commands.SUBWORDS == SUBWORDS
