"""Does a model work as an encoder? It is loaded, fed texts of many lengths, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from vecstore.encoders.onnx import OnnxEncoder
from vecstore.encoders.pooling import Floats
from vecstore.encoders.session import Session, Tokens
from vecstore.errors import EncoderError, UsageError

Status = Literal["ok", "warning", "failed"]

# Below, a text's vector depends on the texts beside it.
MIN_COSINE = 0.9999
# Longer texts than that take too long to be worth it; models read thousands of tokens.
_LONGEST = 512
_SECONDS = 1.0
_SENTENCE = (
    "The harbour master counts boats at night, while gulls sleep on the roof of the old customs"
    " house; nobody minds 3,141 gulls. "
)
_SHORT = ["a", "Is it raining?", "embedded key-value store", _SENTENCE.strip()]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, how it went, and what was found."""

    name: str
    status: Status
    found: str


@dataclass(slots=True)
class Report:
    """What a trial found.

    Attributes:
        name: The encoder's name.
        checks: What was looked at, in order.
        figures: Seconds to load, the least cosine of a text alone and in a batch, texts a second.
    """

    name: str
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**asdict(self), "works": self.works}


def run(encoder: OnnxEncoder) -> Report:
    """Try an encoder out; whatever fails is a failed check, never an exception."""
    report = Report(encoder.name)
    trial = _Trial(encoder, report.figures)
    checks: dict[str, Callable[[], tuple[Status, str]]] = {
        "loads": trial.load,
        "vectors": trial.vectors,
        "same again": trial.again,
        "batches": trial.batches,
        "prompts": trial.prompts,
        "vocabulary": trial.vocabulary,
        "maximum length": trial.maximum,
        "speed": trial.speed,
    }
    for name, check in checks.items():
        try:
            status, found = check()
        except (EncoderError, UsageError) as error:
            status, found = "failed", str(error)
        report.checks.append(Check(name, status, found))
        if not report.works and name in ("loads", "vectors"):
            break
    return report


class _Trial:
    def __init__(self, encoder: OnnxEncoder, figures: dict[str, float]) -> None:
        self.encoder = encoder
        self.figures = figures
        long = min(encoder.max_length, _LONGEST)
        # A word is at least a token, so that this is more than the longest text that is kept.
        words = (_SENTENCE * (1 + long // 20)).split()
        self.long = " ".join(words[:long])
        self.texts = [*_SHORT, _SENTENCE * 3, "x" * 300, "漢字 and émigrés", self.long]

    def load(self) -> tuple[Status, str]:
        start = time.perf_counter()
        self.encoder.encode(["load"])
        seconds = self.figures["load_seconds"] = time.perf_counter() - start
        return "ok", f"in {seconds:.2f} s, the first text encoded"

    def vectors(self) -> tuple[Status, str]:
        # Shapes and finiteness are the encoder's own checks.
        lengths = np.linalg.norm(self.encoder.encode(self.texts), axis=1)
        if not lengths.all():
            return "failed", f"text {int(np.argmin(lengths))} has a vector of zeros"
        unit = bool(np.allclose(lengths, 1, atol=1e-3))
        size = "unit length" if unit else f"lengths {lengths.min():.3g} to {lengths.max():.3g}"
        return "ok", f"{self.encoder.dim} finite numbers, {size}"

    def again(self) -> tuple[Status, str]:
        first, second = (self.encoder.encode(self.texts) for _ in range(2))
        if np.array_equal(first, second):
            return "ok", "to the last bit"
        cosine = _least_cosine(first, second)
        found = f"cosine {cosine:.7f} at the least between two runs"
        return ("warning" if cosine >= MIN_COSINE else "failed"), found

    def batches(self) -> tuple[Status, str]:
        session = self.encoder.session
        if session.takes_one:
            return "ok", "the graph takes one text at a time"
        alone = np.concatenate([self._graph(session, [text]) for text in self.texts])
        least = 1.0
        for mates in self._arranged():
            together = self._graph(session, [self.texts[row] for row in mates])
            # Of a number and NaN it is NaN.
            least = float(np.minimum(least, _least_cosine(together, alone[mates])))
        found = f"cosine {least:.7f} at the least between a text alone and in a batch"
        if not np.isfinite(least):
            return "failed", "NaN or infinity in a batch of several texts"
        self.figures["batch_cosine"] = least
        if least >= MIN_COSINE:
            return "ok", found
        if session.mixes_batches:
            return "warning", f"{found}; so texts are run one at a time"
        return "warning", f"{found}; use OnnxEncoder(..., batch_size=1)"

    def prompts(self) -> tuple[Status, str]:
        prompts = self.encoder.folder.prompts
        query, document = (self.encoder.encode(_SHORT, kind) for kind in ("query", "document"))
        same = np.array_equal(query, document)
        if same != (prompts["query"] == prompts["document"]):
            return "failed", f"query and document give {'the same' if same else 'other'} vectors"
        stated = ", ".join(f"{kind} {prompt!r:.40}" for kind, prompt in prompts.items() if prompt)
        return "ok", stated or "none"

    def vocabulary(self) -> tuple[Status, str]:
        size = self.encoder.session.vocabulary
        try:
            self.encoder.session.run([Tokens([size - 1])], 0)
        except EncoderError as error:
            return "failed", f"the tokenizer's last token, {size - 1}, is not the model's: {error}"
        return "ok", f"{size:,} tokens, of which the model knows the last"

    def maximum(self) -> tuple[Status, str]:
        most = self.encoder.max_length
        if most > _LONGEST:
            return "ok", f"{most:,} tokens, not tried"
        before = self.encoder.truncated.cut
        self.encoder.encode([self.long + " " + self.long])
        if self.encoder.truncated.cut == before:
            return "failed", f"{2 * most} words were not cut at {most} tokens"
        return "ok", f"{most:,} tokens; longer texts are cut"

    def speed(self) -> tuple[Status, str]:
        short, long = (
            self._rate([text] * count) for text, count in ((_SHORT[-1], 64), (self.long, 8))
        )
        self.figures |= {"short_texts_per_second": short, "long_texts_per_second": long}
        tokens = min(self.encoder.max_length, _LONGEST)
        return "ok", f"{short:,.0f} sentences a second, {long:,.1f} texts of {tokens} tokens"

    def _rate(self, texts: list[str]) -> float:
        start, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < _SECONDS:
            self.encoder.encode(texts)
            done += len(texts)
        return done / spent

    def _graph(self, session: Session, texts: list[str]) -> Floats:
        """What the graph makes of one batch, however the encoder would cut it."""
        return session.run(session.tokenize(texts, ""), 0)

    def _arranged(self) -> Iterator[list[int]]:
        """Batches in which each text has other mates, longer ones and shorter ones."""
        rows = list(range(len(self.texts)))
        yield rows
        yield [rows[0], rows[-1]]
        yield rows[1:3]
        yield rows[4:1:-1]


def _least_cosine(first: Floats, second: Floats) -> float:
    wide, other = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    return float(((wide * other).sum(axis=1) / lengths).min())
