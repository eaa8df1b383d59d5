"""How do word vectors become a collection, and what is asked of them? word2vec, GloVe, fastText.

`convert` reads a file of word vectors once, into a collection of a record per word. `WordVectors`
looks words up there, straight from the map, and its `encoder` makes vectors of texts.
"""

from vecstore.words.conversion import Conversion, convert
from vecstore.words.encoder import WordEncoder
from vecstore.words.lookup import WordVectors

__all__ = ["Conversion", "WordEncoder", "WordVectors", "convert"]
