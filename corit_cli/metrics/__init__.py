"""Statistics on plain arrays: ranking figures, intervals, and the estimator of GSNR (``metrics/gsnr.py``)."""

from corit_cli.metrics.intervals import (
    RESAMPLES,
    Estimate,
    Sampled,
    auc_interval,
    bootstrap,
    bootstrap_auc,
    bootstrap_groups,
    calibration_interval,
    interval,
    jackknife,
    jackknife_interval,
    mean_interval,
    plain,
    proportion,
)
from corit_cli.metrics.ranking import Ranks, Roc, auc, average_precision, calibration_gaps, expected_calibration_error

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
    "expected_calibration_error",
    "interval",
    "jackknife",
    "jackknife_interval",
    "mean_interval",
    "plain",
    "proportion",
]
