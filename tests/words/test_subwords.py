from hypothesis import given
from hypothesis import strategies as st
from word_models import bucket, ngrams

from vecstore.words import subwords

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=7)


@given(WORDS, st.integers(0, 4), st.integers(0, 7), st.integers(1, 2**31 - 1))
def test_buckets_are_those_of_all_ngrams(word, minn, maxn, count):
    expected = sorted(bucket(piece, count) for piece in ngrams(word, max(minn, 1), maxn))

    assert sorted(subwords.buckets(word, minn, maxn, count)) == expected


def test_buckets_are_those_of_fasttext_itself():
    # As fastText 0.9.2 gave them for a model of 5,000 buckets.
    assert subwords.buckets("日本", 1, 3, 5000) == [2687, 3587, 4749, 2409, 1157, 417, 717]
    assert subwords.buckets("straße!", 1, 3, 5000) == [
        *(1608, 1652, 4362, 3922, 3752, 1267, 4803, 3910, 1981, 540, 342),
        *(2220, 2358, 809, 919, 4950, 3797, 1744, 2539, 3719, 2540, 2630),
    ]
