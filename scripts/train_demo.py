"""Trains the checkpoints of the demonstration that come with the package.

Run from the repository root: python scripts/train_demo.py [FOLDER]. It goes on where it was
interrupted; the logs stay in FOLDER, by default runs/demo.
"""

import sys
from pathlib import Path

from regionhash.cli.output import ConsoleReporter
from regionhash.experiments.demo import METHODS, SHIPPED, train_models
from regionhash.models.checkpoints import load_checkpoint, save_checkpoint
from regionhash.models.graphs import convert


def main() -> None:
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    train_models(runs, reporter=ConsoleReporter())
    for name in METHODS:
        model, checkpoint = load_checkpoint(runs / name)
        save_checkpoint(SHIPPED / name, model.half(), checkpoint)  # few bits change
        convert(SHIPPED / name)


if __name__ == "__main__":
    main()
