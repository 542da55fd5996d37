"""Statistics on plain arrays: ranking figures, intervals, and the estimator of GSNR (``metrics/gsnr.py``)."""

from corit_cli.metrics.intervals import (
    Estimate,
    class_counts,
    effective_count,
    jackknife,
    jackknife_interval,
    mean_interval,
    newcombe,
    plain,
    prediction_interval,
    proportion,
)
from corit_cli.metrics.ranking import Ranks, Roc, auc, average_precision, calibration_gaps, expected_calibration_error
from corit_cli.metrics.resampling import (
    RESAMPLES,
    Sampled,
    auc_interval,
    bootstrap,
    bootstrap_auc,
    bootstrap_groups,
    calibration_interval,
    interval,
)

__all__ = [
    "RESAMPLES",
    "Estimate",
    "Ranks",
    "Roc",
    "Sampled",
    "auc",
    "auc_interval",
    "average_precision",
    "bootstrap",
    "bootstrap_auc",
    "bootstrap_groups",
    "calibration_gaps",
    "calibration_interval",
    "class_counts",
    "effective_count",
    "expected_calibration_error",
    "interval",
    "jackknife",
    "jackknife_interval",
    "mean_interval",
    "newcombe",
    "plain",
    "prediction_interval",
    "proportion",
]
