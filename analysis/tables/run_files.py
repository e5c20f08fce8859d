"""Names of the files in a sweep's folder and in its run folders that analysis reads and writes.

The package `scaling` writes the files of a run folder; scaling/record/ describes what they hold.
"""

from __future__ import annotations

# In the folder of a sweep.
RUNS = "runs"
PLAN = "plan.json"
RESULTS_PARQUET, RESULTS_CSV = "results.parquet", "results.csv"
METRICS_PARQUET = "metrics.parquet"

# In a run folder, <sweep>/runs/<run_id>/.
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
