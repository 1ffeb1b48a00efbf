"""Evaluation of a codec by round trips: metrics, a table, and a page for listening."""

from echotts.codec.evaluation.measures import SHORTEST_SAMPLES, spectral_distances
from echotts.codec.evaluation.report import format_table, write_report
from echotts.codec.evaluation.round_trips import CONDITIONS, RoundTrip, latent_statistics, round_trip, summarise
