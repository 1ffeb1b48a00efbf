"""Train a model: `python train_pretrain.py --preset demo --data "shards/*.tar" --run_dir runs/demo`."""

from echotts.cli.app import run
from echotts.cli.train import main

if __name__ == "__main__":
    run(main)
