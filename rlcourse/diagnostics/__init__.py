"""What is wrong with a PPO run? Measurements of a rollout, invariants they must satisfy, findings in a history.

`measure` takes numbers between sampling and update, `check_rollout` judges them for one batch, `diagnose` reads a whole
training history, ours or anybody's, and names what it finds, the most specific first.
"""

from rlcourse.diagnostics.findings import diagnose
from rlcourse.diagnostics.invariants import check_rollout
from rlcourse.diagnostics.measurements import measure
from rlcourse.diagnostics.report import Check, Finding, Report

__all__ = ["Check", "Finding", "Report", "check_rollout", "diagnose", "measure"]
