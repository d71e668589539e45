"""A process that logs to W&B as a training does: a row for each step that it reads, until it reads no more."""

import sys

from deocc.callbacks.loggers import WandbRunLogger


def main(folder: str, run_id: str) -> None:
    logger = WandbRunLogger(save_dir=folder, id=run_id, name="run")
    print("begun", logger.experiment.id, flush=True)
    for line in sys.stdin:
        logger.log_metrics({"train/loss": 1 / (1 + int(line))}, int(line))
        print("logged", line.strip(), flush=True)
    print("trained", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
