"""The study behind notebook 13: `python tests/bench/museum.py` writes notebooks/13_{history,texts}.csv.

Ten seeds of the healthy recipe and three of each exhibit of `rlcourse.museum`, every iteration with the measurements of
`diagnostics.measure`; of seed 0 also some lines of the last batch. Two processes with one thread each, an hour or so.
"""

from multiprocessing import get_context

import torch
from study import write

from rlcourse import museum

STEPS = 30
RUNS = [("healthy", seed) for seed in range(10)] + [(name, seed) for name in museum.EXHIBITS for seed in range(3)]


def run(which: tuple[str, int]) -> tuple[list[dict], list[dict]]:
    torch.set_num_threads(1)
    name, seed = which
    _, history, lines = museum.train(museum.EXHIBITS.get(name, museum.HEALTHY), seed, STEPS)
    steps = [dict(exhibit=name, seed=seed, step=i + 1) | row for i, row in enumerate(history)]
    texts = ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) for line in lines[:6]]
    return steps, [dict(exhibit=name, line=text) for text in texts if seed == 0]


def main() -> None:
    torch.set_num_threads(1)
    done = []
    with get_context("spawn").Pool(2) as pool:
        for steps, texts in pool.imap(run, RUNS):
            done.append((steps, texts))
            print(*RUNS[len(done) - 1], {k: round(steps[-1][k], 3) for k in ("score", "kl", "entropy")}, flush=True)
            for name, rows in zip(("history", "texts"), zip(*done)):  # after every run: an interruption loses one
                write(
                    f"13_{name}",
                    [row for part in rows for row in part],
                    __file__,
                    f"steps {STEPS}, {museum.HEALTHY.cfg}",
                    ("transformers",),
                )


if __name__ == "__main__":
    main()
