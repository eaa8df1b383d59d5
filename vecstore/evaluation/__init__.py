"""How good is search with this encoder, on your own data? Labelled files, figures, intervals.

    from vecstore import evaluation

    data = evaluation.read_retrieval("docs.jsonl.gz", "queries.jsonl.gz", splits=["dev"])
    report = evaluation.evaluate("default", retrieval=data)
    print(report.to_markdown())

`vecstore eval` does the same from a shell.
"""

from vecstore.evaluation.intervals import Interval, bootstrap_interval, paired_difference
from vecstore.evaluation.labelled import Fields, Pairs, Retrieval, read_pairs, read_retrieval
from vecstore.evaluation.metrics import mrr, ndcg, recall, spearman
from vecstore.evaluation.picture import draw
from vecstore.evaluation.report import Difference, EncoderFigures, Report
from vecstore.evaluation.retrieval import Measured, Times
from vecstore.evaluation.runs import evaluate
from vecstore.evaluation.setups import Setup, Sweep
from vecstore.evaluation.similarity import Correlation

__all__ = [
    "Correlation",
    "Difference",
    "EncoderFigures",
    "Fields",
    "Interval",
    "Measured",
    "Pairs",
    "Report",
    "Retrieval",
    "Setup",
    "Sweep",
    "Times",
    "bootstrap_interval",
    "draw",
    "evaluate",
    "mrr",
    "ndcg",
    "paired_difference",
    "read_pairs",
    "read_retrieval",
    "recall",
    "spearman",
]
