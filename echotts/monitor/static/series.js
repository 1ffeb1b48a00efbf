/** The curves of one run: fetched in full once, then only new points. */

import { runPath } from "./api.js";

/** Groups are requested separately: the loss first and in full, small charts with as many points as they can show. */
const GROUPS = { first: 2000, rest: 800 };
const MAP = { samples: "data/samples_seen", hours: "data/audio_hours" };

export class RunSeries {
  #api; #id; #view = ""; #cursors = {}; #asked = {};
  /** name -> {x, y, smooth}; `smooth` is empty if smoothing is off. */
  curves = new Map();
  /** Maps steps to the current axis: {x: steps, y: positions}; null if the axis is steps. */
  positions = null;

  constructor(api, id) {
    this.#api = api;
    this.#id = id;
  }

  /** Updates the curves. True if any changed. `names`: {first: [...], rest: [...]}. */
  async refresh(names, view, signal) {
    const key = `${view.x} ${view.smooth}`;
    if (key !== this.#view) {
      this.#view = key;
      this.#cursors = {};
      this.#asked = {};
      this.positions = null;
    }
    let changed = false;
    for (const group of Object.keys(GROUPS)) {
      if (names[group].length) changed = (await this.#group(group, names[group], view, signal)) || changed;
    }
    if (changed && MAP[view.x]) this.positions = await this.#positionsOf(MAP[view.x], signal);
    return changed;
  }

  async #group(group, names, view, signal) {
    const asked = names.join();
    if (this.#asked[group] !== asked || this.#tooLong(group, names)) this.#cursors[group] = null;
    this.#asked[group] = asked;
    const since = this.#cursors[group];
    const path = runPath(this.#id, "series",
      { names: asked, x: view.x, points: GROUPS[group], smooth: view.smooth || null, since });
    const { body, fresh } = await this.#api.get(path, { slot: `${this.#id} series ${group}`, signal });
    if (signal.aborted) return false;
    this.#cursors[group] = body.cursor;
    if (since && !body.reset) return fresh && this.#append(body.series);
    for (const name of names) this.curves.set(name, plain(body.series[name])); // in full, for the first time or again
    return true;
  }

  /** Adds new points; returns whether there were any. */
  #append(series) {
    let changed = false;
    for (const [name, found] of Object.entries(series)) {
      const curve = this.curves.get(name) ?? plain(), more = plain(found);
      this.curves.set(name, curve);
      changed ||= more.x.length > 0;
      curve.x.push(...more.x);
      curve.y.push(...more.y);
      curve.smooth.push(...more.smooth);
    }
    return changed;
  }

  /** New points are not thinned; beyond twice the wanted number the curve is fetched again, thinned by the server. */
  #tooLong(group, names) {
    return names.some((name) => (this.curves.get(name)?.x.length ?? 0) > 2 * GROUPS[group] + 200);
  }

  async #positionsOf(name, signal) {
    const path = runPath(this.#id, "series", { names: name, x: "step", points: 500 });
    const { body } = await this.#api.get(path, { slot: `${this.#id} positions`, signal });
    return plain(body.series[name]);
  }

  /** The position of an event on the current axis, or null if unknown. */
  place(event, axis) {
    if (axis === "step") return event.step ?? null;
    if (axis === "time") return event.time ?? null;
    return this.positions && event.step !== null ? interpolate(this.positions, event.step) : null;
  }
}

/** {x, y, smooth} of a response; points with unknown position on the axis (null) are dropped. */
function plain(series) {
  const { x = [], y = [], smooth = [] } = series ?? {};
  if (!x.includes(null)) return { x: [...x], y: [...y], smooth: [...smooth] };
  const placed = (_, index) => x[index] !== null;
  return { x: x.filter(placed), y: y.filter(placed), smooth: smooth.filter(placed) };
}

/** Index of the value nearest to `x` in ascending `values`; -1 if there is none. */
export function nearest(values, x) {
  if (!values.length) return -1;
  let low = 0, high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - values[low - 1] < values[low] - x ? low - 1 : low;
}

function interpolate({ x, y }, at) {
  if (!x.length || at < x[0]) return null;
  const right = x.findIndex((value) => value >= at);
  if (right < 0) return y[y.length - 1];
  if (right === 0 || x[right] === x[right - 1]) return y[right];
  const share = (at - x[right - 1]) / (x[right] - x[right - 1]);
  return y[right - 1] + share * (y[right] - y[right - 1]);
}

/** The last value that is a number, with its index; null if there is none. */
export function last(curve, key = "y") {
  const values = curve?.[key] ?? [];
  for (let i = values.length - 1; i >= 0; i -= 1) if (values[i] !== null) return { x: curve.x[i], value: values[i] };
  return null;
}
