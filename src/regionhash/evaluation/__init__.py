"""Measures of retrieval and detection, their uncertainty, and the papers' figures."""

from regionhash.evaluation.bootstrap import error_reduction, paired_bootstrap
from regionhash.evaluation.detection import detection_map
from regionhash.evaluation.instance import (
    CosineRanks,
    InstanceRelevance,
    dense_ranks,
    instance_average_precision,
    location_scores,
)
from regionhash.evaluation.metrics import (
    HammingMatrix,
    SharedLabels,
    evaluate_ranking,
    per_query,
    ranking_curves,
)
from regionhash.evaluation.papers import paper_figures

__all__ = [
    "CosineRanks",
    "HammingMatrix",
    "InstanceRelevance",
    "SharedLabels",
    "dense_ranks",
    "detection_map",
    "error_reduction",
    "evaluate_ranking",
    "instance_average_precision",
    "location_scores",
    "paired_bootstrap",
    "paper_figures",
    "per_query",
    "ranking_curves",
]
