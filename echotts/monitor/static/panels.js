/** The charts: what each shows, in which unit, and the message if a run has not recorded it. */

import { UNITS, unitOf } from "./format.js";

const BUCKET = /^heldout\/loss_t(\d\.\d+)_(\d\.\d+)$/;

/**
 * id, section, title; lines: [{name, label}] or a function of the run's metric names; unit: of the values;
 * log: obeys the scale switch; smooth: obeys the smoothing slider; zero: the axis starts at 0;
 * full: as wide as the page; missing: shown instead of an empty chart, which is hidden without it.
 */
export const PANELS = [
  { id: "loss", section: "loss", title: "Training loss", full: true, log: true, smooth: true,
    lines: one("loss/train", "loss"),
    missing: "No training loss yet. The first line comes after run.log_every steps." },
  { id: "heldout", section: "loss", title: "Evaluation loss", log: true, lines: one("heldout/loss", "loss"),
    missing: "No evaluation loss. It is measured every run.eval_every steps (0: never) when held-out data is given." },
  { id: "buckets", section: "loss", title: "Evaluation loss by timestep", log: true, ordered: true, lines: buckets,
    missing: "No loss by timestep. It comes with the evaluation loss; t = 0 is speech, t = 1 is noise." },
  { id: "reading", section: "loss", title: "Gain from the text", zero: true,
    lines: one("heldout/text_gain", "evaluation loss with texts of other samples, minus that with their own"),
    missing: "No gain from the text. It comes with the evaluation loss; 0: the model does not read yet." },
  { id: "errors", section: "loss", title: "Word errors of the speech samples", unit: UNITS.share, zero: true,
    lines: [{ name: "speech/word_error_rate", label: "words" }, { name: "speech/character_error_rate", label: "characters" }],
    missing: "No word errors. Speech samples are transcribed if run.eval_asr names a recogniser." },
  { id: "norm", section: "training", title: "Gradient norm", log: true, smooth: true,
    lines: one("grad/norm", "norm before clipping"), missing: "No gradient norm recorded." },
  { id: "clip", section: "training", title: "Steps clipped", unit: UNITS.share, zero: true, smooth: true,
    lines: one("grad/clip_share", "share of steps"), missing: "No share of clipped steps recorded." },
  { id: "rate", section: "training", title: "Learning rate", zero: true,
    lines: one("optim/learning_rate", "learning rate"), missing: "No learning rate recorded." },
  { id: "throughput", section: "speed", title: "Samples per second", zero: true, smooth: true,
    lines: one("throughput/samples_per_s", "samples/s, all processes"), missing: "No throughput recorded." },
  { id: "step", section: "speed", title: "Step time", unit: UNITS.seconds, zero: true,
    lines: [{ name: "time/step_p50_s", label: "p50" }, { name: "time/step_p95_s", label: "p95" }],
    otherwise: [{ name: "time/step_s", label: "mean" }],
    missing: "No step time recorded." },
  { id: "mfu", section: "speed", title: "Model FLOP/s utilisation", unit: UNITS.share, zero: true, smooth: true,
    lines: one("throughput/mfu_share", "MFU") }, // recorded only if the peak of the device is known
  { id: "useful", section: "speed", title: "Useful frames", unit: UNITS.share, zero: true, smooth: true,
    lines: one("data/frames_valid_share", "speech, not padding"), missing: "No share of useful frames recorded." },
  { id: "wait", section: "speed", title: "Waiting for data", unit: UNITS.share, zero: true, smooth: true,
    lines: one("time/data_wait_share", "share of the step"), missing: "No data wait recorded." },
  { id: "memory", section: "speed", title: "Device memory (HBM)", unit: UNITS.bytes, zero: true,
    lines: one("device/memory_bytes", "in use") }, // not recorded on CPUs
];

function one(name, label) {
  return [{ name, label }];
}

function buckets(names) {
  return names.filter((name) => BUCKET.test(name)).sort()
    .map((name) => ({ name, label: name.replace(BUCKET, "t $1–$2") }));
}

/** A chart of one metric of the table of all metrics. */
export function extraPanel({ name, description }) {
  return { id: `more:${name}`, section: "more", title: name, hint: description, unit: unitOf(name), smooth: true,
    lines: one(name, name.split("/").pop()), missing: `${name} has no values in this run.` };
}

/** The lines a panel draws, given all metric names of the shown runs: the preferred ones, else their substitutes. */
export function linesOf(panel, names) {
  const wanted = typeof panel.lines === "function" ? panel.lines(names) : panel.lines;
  const known = new Set(names);
  if (panel.otherwise && !wanted.some((line) => known.has(line.name))) return panel.otherwise;
  return wanted;
}
