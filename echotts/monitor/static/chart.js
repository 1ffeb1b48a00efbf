/** One chart: uPlot with our colours, a legend with the values at the cursor, zoom, event marks, keyboard control. */

import { el, setText } from "./dom.js";
import { compact, duration, moment, number, timeLabels, UNITS } from "./format.js";
import { last, nearest } from "./series.js";

const AXES = {
  step: { name: "step", read: (x) => `step ${number(Math.round(x))}` },
  time: { name: "time", read: (x) => moment(x) },
  elapsed: { name: "time since each run's start", read: (x) => `after ${duration(x)}` },
  samples: { name: "samples seen", read: (x) => `${compact(x)} samples` },
  hours: { name: "hours of audio", read: (x) => `${number(x)} h of audio` },
};
const MINUTE = 60, HOUR = 3600, DAY = 86400;
const TIME_STEPS = [1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE), ...[1, 2, 3, 6, 12].map((n) => n * HOUR),
  ...[1, 2, 5, 10, 20, 50, 100, 200, 500].map((n) => n * DAY)];
const HEIGHT = { full: 300, small: 190 };
const FONT = '11px Inter, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

/** Colours come from the style sheet, so that charts follow the colour scheme. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export class Chart {
  #panel; #hub; #plot = null; #look = ""; #lines = []; #marks = []; #keys = [];
  #body; #legend; #place; #blank;

  /** `hub` is the shared state of all charts: {zoom, axis, logarithmic, onZoom(range or null)}. */
  constructor(panel, hub) {
    this.#panel = panel;
    this.#hub = hub;
    const title = el("h3", { id: `chart-${panel.id}`, text: panel.title });
    this.#place = el("span", { class: "chart-place" });
    this.#legend = el("ul", { class: "legend" });
    this.#body = el("div", { class: "plot", tabindex: "0", role: "group", "aria-labelledby": title.id,
      "aria-describedby": "chart-keys", on: { keydown: (event) => this.#key(event) } });
    this.#blank = el("p", { class: "blank", hidden: true });
    this.node = el("figure", { class: panel.full ? "chart full" : "chart", "data-panel": panel.id },
      el("figcaption", {}, title, panel.hint ? el("p", { class: "hint", text: panel.hint }) : null, this.#place),
      this.#legend, this.#body, this.#blank);
    this.#watch = new ResizeObserver(() => this.#resize());
    this.#watch.observe(this.#body);
  }
  #watch;

  /**
   * `lines`: [{label, colour, dash, listed, curve: {x, y, smooth}}], of which the listed are in the legend; `marks`:
   * [{x, label, colour}]; `keys`: [{label, dash}], meanings of the dashes; `missing` is shown if no line has a point.
   */
  draw(lines, { marks, keys, missing }) {
    this.#lines = lines.filter((line) => line.curve.x.length);
    this.#marks = marks;
    this.#keys = keys;
    const empty = !this.#lines.length;
    this.node.classList.toggle("empty", empty);
    this.#body.hidden = this.#legend.hidden = this.#place.hidden = empty;
    this.#blank.hidden = !empty;
    this.node.hidden = empty && !missing;
    setText(this.#blank, missing ?? "");
    if (empty) return this.#drop();
    const look = JSON.stringify([this.#hub.axis, this.#isLog(), keys, this.#lines.map((line) => [line.label, line.colour,
      line.dash, line.curve.smooth.length > 0])]);
    if (look !== this.#look || !this.#plot) {
      this.#look = look;
      this.#fillLegend();
      this.#make();
    } else this.#plot.setData(this.#data());
    return this.#read();
  }

  /** Redraws with the shared zoom. */
  rescale() {
    this.#plot?.setData(this.#plot.data);
  }

  /** Rebuilds the chart, for a change of colours. */
  recolour() {
    this.#look = "";
  }

  destroy() {
    this.#watch.disconnect();
    this.#drop();
    this.node.remove();
  }

  #drop() {
    this.#plot?.destroy();
    this.#plot = null;
  }

  #isLog() {
    return Boolean(this.#panel.log && this.#hub.logarithmic);
  }

  /** One shared x column; undefined where a line has no point (drawn through), null where a value is non-finite. */
  #data() {
    const log = this.#isLog();
    const drawable = (values) => (log ? values.map((value) => (value > 0 ? value : null)) : values);
    return uPlot.join(this.#lines.map(({ curve }) =>
      curve.smooth.length ? [curve.x, drawable(curve.y), drawable(curve.smooth)] : [curve.x, drawable(curve.y)]));
  }

  #make() {
    this.#drop();
    const unit = this.#panel.unit ?? UNITS.number;
    const ink = colour("--muted"), grid = { stroke: colour("--grid"), width: 1 };
    const axis = { font: FONT, stroke: ink, grid, ticks: { show: false } };
    const options = {
      width: this.#width(), height: this.#panel.full ? HEIGHT.full : HEIGHT.small,
      padding: [this.#panel.full ? 18 : 10, 20, 0, 0],
      legend: { show: false },
      series: [{}, ...this.#lines.flatMap((line) => curvesOf(line))],
      scales: {
        x: { time: false, range: (_, low, high) => this.#hub.zoom ?? widened(low, high) },
        y: this.#isLog()
          ? { distr: 3, range: (_, low, high) => (low === null ? [0.1, 1] : [low / 1.08, high * 1.08]) }
          : { range: (_, low, high) => padded(low, high, this.#panel.zero) },
      },
      axes: [
        { ...axis, ...this.#xTicks(), size: this.#hub.axis === "time" ? 42 : 28, values: (_, splits, __, ___, step) => this.#xLabels(splits, step) },
        { ...axis, space: 28, gap: 8, size: (plot, labels) => labelsWidth(plot, labels), ...(unit.steps ? { incrs: unit.steps } : {}),
          values: (_, splits) => splits.map((value) => unit.short(value)),
          ...(this.#isLog() ? { splits: (_, __, low, high) => logSplits(low, high), filter: (_, splits) => splits } : {}) },
      ],
      cursor: {
        y: false, points: { size: 7 }, drag: { x: true, y: false, setScale: false },
        sync: { key: "charts", scales: ["x", null], setSeries: false,
          filters: { pub: (type, plot) => type === "mousemove" && !plot.cursor.event?.buttons } }, // share the cursor, but not dragging
        bind: { dblclick: () => () => { this.#hub.onZoom(null); return null; } },
      },
      hooks: {
        setCursor: [() => this.#read()],
        setSelect: [(plot) => this.#select(plot)],
        drawClear: [(plot) => this.#drawMarks(plot)],
      },
    };
    this.#plot = new uPlot(options, this.#data(), this.#body);
  }

  /** Time axes have their own tick intervals, counted from local midnight. */
  #xTicks() {
    if (this.#hub.axis !== "time" && this.#hub.axis !== "elapsed") return { space: 64 };
    const zone = (low) => (this.#hub.axis === "time" ? -60 * new Date(low * 1000).getTimezoneOffset() : 0);
    return { space: 84, incrs: TIME_STEPS, splits: (_, __, low, high, step) => {
      const first = Math.ceil((low + zone(low)) / step) * step - zone(low);
      return Array.from({ length: Math.max(0, Math.floor((high - first) / step) + 1) }, (_, i) => first + i * step);
    } };
  }

  #xLabels(splits, step) {
    if (this.#hub.axis === "time") return timeLabels(splits, step);
    return splits.map(this.#hub.axis === "elapsed" ? duration : compact);
  }

  #width() {
    return Math.max(200, Math.floor(this.#body.clientWidth));
  }

  #resize() {
    if (this.#plot && this.#body.clientWidth && this.#plot.width !== this.#width()) {
      this.#plot.setSize({ width: this.#width(), height: this.#plot.height });
    }
  }

  #select(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.#hub.onZoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
  }

  /** Resumes and failures: a thin vertical line, labelled on the large chart. */
  #drawMarks(plot) {
    const { ctx, bbox } = plot, ratio = uPlot.pxRatio;
    ctx.save();
    ctx.font = `${Math.round(10.5 * ratio)}px ${FONT.slice(5)}`;
    ctx.lineWidth = ratio;
    ctx.lineCap = "butt";
    ctx.textAlign = "left";
    ctx.textBaseline = "bottom";
    ctx.fillStyle = colour("--muted");
    const groups = []; // marks whose labels would overlap share one
    for (const mark of this.#marks) {
      const x = Math.round(plot.valToPos(mark.x, "x", true)) + (ratio % 2) / 2; // aligned to pixels, to be sharp
      if (!(x >= bbox.left && x <= bbox.left + bbox.width)) continue;
      ctx.strokeStyle = mark.colour;
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const near = groups.at(-1);
      if (near && x - near.x < 70 * ratio) near.labels.add(mark.label);
      else groups.push({ x, labels: new Set([mark.label]) });
    }
    let free = 0;
    for (const { x, labels } of this.#panel.full ? groups : []) {
      const text = [...labels].join(", "), width = ctx.measureText(text).width;
      const left = Math.min(x, bbox.left + bbox.width - width);
      if (left < free) continue; // no space; the list of events has it
      ctx.fillText(text, left, bbox.top - 3 * ratio);
      free = left + width + 8 * ratio;
    }
    ctx.restore();
  }

  #fillLegend() {
    const entry = ({ label, colour: stroke, dash }, ...reading) => {
      const swatch = el("i", { class: dash.length ? "swatch dashed" : "swatch", "aria-hidden": "true" });
      swatch.style.setProperty("--line", stroke);
      return el("li", {}, swatch, el("span", { text: label }), ...reading);
    };
    this.#legend.replaceChildren(
      ...this.#lines.filter((line) => line.listed).map((line) => entry(line, el("b"))),
      ...this.#keys.map((key) => entry({ ...key, colour: colour("--muted") })));
  }

  /** Fills the legend with the values at the cursor, or with the last values. */
  #read() {
    const plot = this.#plot, unit = this.#panel.unit ?? UNITS.number;
    if (!plot) return;
    const at = plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : null;
    const readings = this.#legend.querySelectorAll("b");
    let place = null;
    this.#lines.filter((line) => line.listed).forEach(({ curve }, index) => {
      const key = curve.smooth.length ? "smooth" : "y";
      const found = at === null ? last(curve, key) : pick(curve, key, nearest(curve.x, at));
      if (found && place === null) place = found.x;
      setText(readings[index], found ? unit.long(found.value) : "–");
    });
    setText(this.#place, place === null ? "" : (at === null ? "last: " : "") + AXES[this.#hub.axis].read(place));
  }

  /** Arrow keys move the cursor (Shift: ten times as far), + and - zoom at it, Escape or 0 resets the zoom. */
  #key(event) {
    const plot = this.#plot, width = plot?.over.clientWidth;
    if (!plot || event.altKey || event.ctrlKey || event.metaKey) return;
    const here = plot.cursor.left >= 0 ? plot.cursor.left : width;
    const move = (event.shiftKey ? 10 : 1) * Math.max(1, width / 200);
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const left = here + (event.key === "ArrowRight" ? move : -move);
      plot.setCursor({ left: Math.min(width - 1, Math.max(0, left)), top: plot.over.clientHeight / 2 }, true, true);
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const factor = event.key === "-" ? 2 : 0.5, middle = plot.posToVal(here, "x");
      const { min, max } = plot.scales.x;
      this.#hub.onZoom(clipped([middle - (middle - min) * factor, middle + (max - middle) * factor], plot.data[0]));
    } else if (event.key === "Escape" || event.key === "0") {
      plot.setCursor({ left: -10, top: -10 }, true, true);
      this.#hub.onZoom(null);
    } else return;
    event.preventDefault();
  }
}

/** uPlot's series of one line: alone, or the raw values faint behind the smoothed ones. */
function curvesOf({ colour: stroke, dash, curve }) {
  const main = { stroke, width: 1.75, dash, spanGaps: false };
  if (!curve.smooth.length) return [main];
  return [{ stroke: `${stroke}55`, width: 1, points: { show: false } }, main];
}

/** Width in CSS pixels of the labels of the vertical axis. */
function labelsWidth(plot, labels) {
  if (!labels) return 30;
  plot.ctx.font = plot.axes[1].font[0];
  const widest = Math.max(...labels.map((label) => plot.ctx.measureText(label).width)) / uPlot.pxRatio;
  return Math.ceil(widest) + 12;
}

function pick(curve, key, index) {
  return index < 0 || curve[key][index] === null || curve[key][index] === undefined
    ? null : { x: curve.x[index], value: curve[key][index] };
}

function widened(low, high) {
  if (low === null || low === undefined) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/** The range of the data with a margin; from 0 if the panel requires it. */
function padded(low, high, zero) {
  if (low === null || low === undefined) return [0, 1];
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
  return [zero ? Math.min(0, low) : low - air, high + air];
}

/** A zoom range within the data; null (everything) if it would be wider. */
function clipped([low, high], [...xs]) {
  const first = xs[0], end = xs[xs.length - 1];
  return low <= first && high >= end ? null : [Math.max(low, first), Math.min(high, end)];
}

/** Ticks of a log axis: 1, 2, 5 in each decade, evenly spaced round numbers if it spans less than one. */
function logSplits(low, high) {
  if (high / low < 6) {
    const raw = (high - low) / 4, scale = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((factor) => factor * scale >= raw) * scale;
    const count = Math.floor(high / step) - Math.ceil(low / step) + 1;
    return Array.from({ length: count }, (_, i) => Number(((Math.ceil(low / step) + i) * step).toPrecision(12)));
  }
  const decades = Math.log10(high / low), factors = decades > 5 ? [1] : decades > 2.5 ? [1, 3] : [1, 2, 5];
  const splits = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of factors) {
      const value = Number((factor * 10 ** power).toPrecision(12));
      if (value >= low && value <= high) splits.push(value);
    }
  }
  return splits;
}
