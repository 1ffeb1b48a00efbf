#!/usr/bin/env python3
"""Trains on a TPU pod: machines, code, processes. docs/pods.md is the guide."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.command import main
from launch.pods import Gcloud
from launch.settings import Settings


def make_pod(arguments: argparse.Namespace, settings: Settings) -> Gcloud:
    """The pod described by the settings."""
    return Gcloud(settings, dry_run=arguments.dry_run)


if __name__ == "__main__":
    main("launch/tpu.py", "Train on a TPU pod, through gcloud.", make_pod, lambda parser: None)
