/** All charts: which exist, which lines each draws, and their shared zoom and axis. */

import { Chart, colour } from "./chart.js";
import { extraPanel, linesOf, PANELS } from "./panels.js";
import { markOf } from "./tables.js";

const RUN_COLOURS = 6, DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 6], [1, 5]];

export class Charts {
  #charts = new Map(); #panels = [...PANELS]; #onZoomed; #missed = "";
  /** The shared state of the charts (see Chart). */
  hub = { zoom: null, axis: "step", logarithmic: false, onZoom: (range) => this.zoom(range) };

  /** Calls `onZoomed(bool)` with whether the charts are zoomed. */
  constructor(onZoomed) {
    this.#onZoomed = onZoomed;
    for (const panel of PANELS) this.#add(panel);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
  }

  #add(panel) {
    const chart = new Chart(panel, this.hub);
    document.querySelector(`.charts[data-section="${panel.section}"]`).append(chart.node);
    this.#charts.set(panel.id, chart);
  }

  zoom(range) {
    this.hub.zoom = range;
    this.#onZoomed(range !== null);
    for (const chart of this.#charts.values()) chart.rescale();
  }

  /** Shows exactly these charts of single metrics, below the table of all metrics. */
  setExtras(metrics) {
    const wanted = new Map(metrics.map((metric) => [`more:${metric.name}`, metric]));
    for (const panel of this.#panels.filter((panel) => panel.section === "more" && !wanted.has(panel.id))) {
      this.#charts.get(panel.id).destroy();
      this.#charts.delete(panel.id);
    }
    this.#panels = this.#panels.filter((panel) => panel.section !== "more" || wanted.has(panel.id));
    for (const [id, metric] of wanted) {
      if (this.#charts.has(id)) continue;
      const panel = extraPanel(metric);
      this.#panels.push(panel);
      this.#add(panel);
    }
  }

  /** The metrics that the charts and the figures at the top need, among the run's metrics. */
  namesOf(names) {
    const known = new Set(names);
    const wanted = this.#panels.flatMap((panel) => linesOf(panel, names).map((line) => line.name));
    wanted.push("time/step_s", "data/samples_seen", "data/audio_hours");
    return [...new Set(wanted)].filter((name) => known.has(name) && name !== "loss/train").sort();
  }

  /** `runs`: [{name, slot, curves, names, events, offset, place(event)}], the open one first; `offset` is subtracted from x. */
  draw(runs) {
    const names = [...new Set(runs.flatMap((run) => run.names))];
    const marks = [...new Map(runs.flatMap((run) => this.#marksOf(run)).map((mark) => [`${mark.x} ${mark.label}`, mark])).values()]
      .sort((a, b) => a.x - b.x); // every host logs a resume; draw one line
    for (const panel of this.#panels) {
      const lines = linesOf(panel, names);
      // one line: the colour identifies the run; several: the colour identifies the line, the dashes the run
      const several = lines.length > 1;
      const drawn = runs.flatMap((run, order) => lines.map((line, index) => ({
        label: several || runs.length === 1 ? line.label : run.name,
        colour: several ? colour(`--${panel.ordered ? "order" : "line"}-${index + 1}`) : runColour(run.slot),
        dash: several ? DASHES[order % DASHES.length] : [],
        listed: !several || order === 0,
        curve: shaped(run.curves.get(line.name), panel.smooth, run.offset),
      })));
      const keys = several && runs.length > 1
        ? runs.map((run, order) => ({ label: run.name, dash: DASHES[order % DASHES.length] }))
          .filter((_, order) => lines.some((line) => runs[order].curves.get(line.name)?.x.length))
        : [];
      this.#charts.get(panel.id).draw(drawn, { marks, keys, missing: this.#missed || panel.missing });
    }
  }

  #marksOf(run) {
    return run.events.flatMap((event) => {
      const mark = markOf(event), x = mark && run.place(event);
      return mark && x !== null ? [{ x: x - run.offset, label: mark.label, colour: colour(mark.colour) }] : [];
    });
  }

  /** Text for every empty chart instead of its own; "" for none. */
  explain(text) {
    this.#missed = text;
  }

  recolour() {
    for (const chart of this.#charts.values()) chart.recolour();
  }
}

export function runColour(slot) {
  return colour(`--run-${(slot % RUN_COLOURS) + 1}`);
}

/** The curve, without smoothing if the panel has none, and relative to the run's start if runs are compared in time. */
function shaped(curve, smooth, offset) {
  const { x = [], y = [], smooth: smoothed = [] } = curve ?? {};
  return { x: offset ? x.map((value) => value - offset) : x, y, smooth: smooth ? smoothed : [] };
}
