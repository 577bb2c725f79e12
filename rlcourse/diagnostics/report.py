"""What the diagnostics return, and how far is too far."""

from dataclasses import dataclass

LIMIT = 6.0  # standard errors; a healthy rollout stays within 3, and there are many rollouts in a run
CUT = 15.0  # nats; a healthy rollout has about 1, and more than 15 once in three million


@dataclass(frozen=True)
class Check:
    """One invariant of a rollout: whether it holds, the number that says so, what it means, what usually breaks it."""

    name: str
    ok: bool
    number: str
    meaning: str
    usual_cause: str


@dataclass(frozen=True)
class Finding:
    """Something that a training history says: what, the numbers that say so, the likely cause, what to try."""

    name: str
    evidence: str
    likely_cause: str
    try_this: str


class Report(list):
    """A list of `Check` or `Finding` that a notebook shows as a table."""

    def _repr_markdown_(self) -> str:
        if not self:
            return "Nothing to report."
        rows = [{k: {True: "yes", False: "**NO**"}.get(v, v) for k, v in vars(entry).items()} for entry in self]
        head = [key.replace("_", " ") for key in rows[0]]
        lines = [head, ["---"] * len(head), *(row.values() for row in rows)]
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

    @property
    def failed(self) -> list[str]:
        """The names of the checks that do not hold."""
        return [check.name for check in self if not check.ok]
