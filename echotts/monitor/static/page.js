/** The page: which run is open, what is requested from the server and when, and what draws it. */

import { Api, HttpError, runPath } from "./api.js";
import { Charts, runColour } from "./charts.js";
import { Configuration } from "./configuration.js";
import { byId, refreshAges, setText } from "./dom.js";
import { duration, moment, number } from "./format.js";
import { drawAlerts, drawGlance, drawTiles, Rail } from "./glance.js";
import { Poller } from "./poll.js";
import { last, RunSeries } from "./series.js";
import { Speech } from "./speech.js";
import { drawCheckpoints, drawHosts, drawMetrics, EventList, RunTable } from "./tables.js";

const LIVE_MS = 2000, QUIET_MS = 5000, RARE_EVERY = 5; // checkpoints, speech and names are requested every fifth tick
const SMOOTHING = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995];
const SMOOTH_AT_FIRST = 3;

const api = new Api();
const records = new Map(); // run id -> its data
const slots = new Map(); // run id -> its colour, kept while it is shown
const view = { focus: null, over: new Set(), x: "step", scale: "linear", smooth: SMOOTH_AT_FIRST, extras: [] };
let runs = [], clockShift = 0, ticks = 0;

const now = () => Date.now() / 1000 + clockShift;
const ago = (unix) => `${duration(now() - unix)} ago`;
const charts = new Charts((zoomed) => (byId("zoom-reset").disabled = !zoomed));
const events = new EventList(ago);
const speech = new Speech();
const configuration = new Configuration();
const runTable = new RunTable();
const rail = new Rail({ onOpen: open, onCompare: compare });
const poller = new Poller(tick, report);

/** One round of requests; returns the milliseconds until the next. */
async function tick(signal) {
  const [answer, alerts] = await Promise.all([api.get("api/runs", { signal }), api.get("api/alerts", { signal })]);
  if (signal.aborted) return QUIET_MS;
  takeRuns(answer);
  drawAlerts(alerts.body.alerts, (id) => find(id)?.name ?? id, ago, open);
  titleOf(alerts.body.alerts.length);
  const shown = shownRuns();
  byId("run").hidden = !shown.length;
  byId("blank").hidden = shown.length > 0;
  if (!shown.length) {
    setText(byId("blank"), "There are no runs yet. One appears when a training writes its first line.");
    return QUIET_MS;
  }
  const rare = ticks % RARE_EVERY === 0;
  ticks += 1;
  const changes = await Promise.all(shown.map((run) => readRun(run, rare, signal)));
  if (signal.aborted) return QUIET_MS;
  if (changes.some(Boolean)) drawCharts();
  await readOpen(shown, rare, signal);
  return runs.some((run) => run.status === "running") ? LIVE_MS : QUIET_MS;
}

function takeRuns({ body, fresh }) {
  if (fresh) clockShift = body.now - Date.now() / 1000;
  runs = body.runs;
  setText(byId("version"), body.version ?? "");
  for (const id of view.over) if (!find(id)) view.over.delete(id);
  if (!find(view.focus)) view.focus = firstRun()?.id ?? null;
  colourSlots();
  const colours = new Map([...slots].map(([id, slot]) => [id, runColour(slot)]));
  rail.draw(runs, view.focus, view.over, colours);
  runTable.draw(runs, ago, open);
  const focused = find(view.focus);
  if (focused) drawGlance(focused, ago);
}

/** Order of runs: running before silent ones, ones with steps before ones without, later before earlier ones. */
function firstRun() {
  const rank = (run) => (run.status === "running" ? 0 : run.step === 0 ? 3 : run.status === "stale" ? 1 : 2);
  return [...runs].sort((a, b) => rank(a) - rank(b) || (b.last_time ?? 0) - (a.last_time ?? 0))[0];
}

/** Curves and events of one shown run. True if the charts must be redrawn. */
async function readRun(run, rare, signal) {
  const record = recordOf(run.id);
  const settings = { x: view.x, smooth: SMOOTHING[view.smooth] };
  let changed = false;
  if (!record.names.length) { // the loss first, as it does not need the list of names
    changed = (await record.series.refresh({ first: ["loss/train"], rest: [] }, settings, signal)) && !signal.aborted;
    if (changed) drawCharts();
  }
  if (rare || !record.names.length) {
    const names = await optional(api.get(runPath(run.id, "names"), { signal }));
    record.metrics = names?.body.names ?? [];
    record.names = record.metrics.map((metric) => metric.name);
  }
  const names = { first: ["loss/train"], rest: charts.namesOf(record.names) };
  changed = (await record.series.refresh(names, settings, signal)) || changed;
  const path = runPath(run.id, "events", { since: record.eventCursor });
  const more = await optional(api.get(path, { slot: `${run.id} events`, signal }));
  if (more?.fresh && !signal.aborted) {
    record.eventCursor = more.body.cursor;
    for (const event of more.body.events) record.events.set(JSON.stringify(event), event); // some may be sent twice
    changed ||= more.body.events.length > 0;
  }
  return changed || record.names.length === 0;
}

/** Data shown only for the open run. */
async function readOpen(shown, rare, signal) {
  const run = shown[0], record = recordOf(run.id), ids = shown.map((one) => one.id).join();
  const ask = (path) => optional(api.get(path, { signal }));
  const due = rare || record.drawn !== ids;
  const [hosts, checkpoints, samples, config, differences] = await Promise.all([
    ask(runPath(run.id, "hosts")),
    due ? ask(runPath(run.id, "checkpoints")) : null,
    due ? ask(runPath(run.id, "samples")) : null,
    due ? ask(runPath(run.id, "config")) : null,
    due && shown.length > 1 ? ask(`api/compare?${new URLSearchParams({ runs: ids })}`) : null,
  ]);
  if (signal.aborted) return;
  const list = hosts?.body.hosts ?? [];
  drawTiles(record.series.curves, list.filter((host) => host.process >= 0));
  drawHosts(list, now(), ago, run.status === "running");
  events.draw([...record.events.values()]);
  drawMetrics(record.metrics, view.extras.map((metric) => metric.name), chartMetric);
  exportLinks(run.id);
  if (!due) return;
  record.drawn = ids;
  drawCheckpoints(checkpoints?.body.checkpoints);
  speech.draw(run.id, samples?.body.samples);
  configuration.draw(config?.body.config, differences?.body.differences ?? [], shown);
}

/** 404 becomes null, since a run may lack it; other errors end the round. */
async function optional(question) {
  try {
    return await question;
  } catch (error) {
    if (error instanceof HttpError && error.status === 404) return null;
    throw error;
  }
}

function recordOf(id) {
  if (!records.has(id)) records.set(id, { series: new RunSeries(api, id), names: [], metrics: [], events: new Map(), eventCursor: null, drawn: "" });
  return records.get(id);
}

function find(id) {
  return runs.find((run) => run.id === id);
}

/** The open run, then those drawn over it. */
function shownRuns() {
  const open = find(view.focus);
  return open ? [open, ...runs.filter((run) => view.over.has(run.id) && run !== open)] : [];
}

function colourSlots() {
  const shown = new Set(shownRuns().map((run) => run.id));
  for (const id of slots.keys()) if (!shown.has(id)) slots.delete(id);
  for (const id of shown) {
    if (slots.has(id)) continue;
    let slot = 0;
    while ([...slots.values()].includes(slot)) slot += 1;
    slots.set(id, slot);
  }
}

function drawCharts() {
  const shown = shownRuns(), elapsed = view.x === "time" && shown.length > 1;
  charts.hub.axis = elapsed ? "elapsed" : view.x;
  charts.hub.logarithmic = view.scale === "log";
  const axis = { samples: "samples seen", hours: "hours of audio" }[view.x];
  const source = { samples: "data/samples_seen", hours: "data/audio_hours" }[view.x];
  const lacking = source && shown.every((run) => recordOf(run.id).names.length && !recordOf(run.id).names.includes(source));
  charts.explain(lacking ? `This run does not record ${axis} (${source}). Choose another axis.` : "");
  charts.draw(shown.map((run) => {
    const { series, names, events } = recordOf(run.id);
    const offset = elapsed ? run.started_time ?? series.curves.get("loss/train")?.x[0] ?? 0 : 0;
    return { name: run.name, slot: slots.get(run.id), curves: series.curves, names, events: [...events.values()], offset,
      place: (event) => series.place(event, view.x) };
  }));
}

function open(id) {
  if (id === view.focus || !find(id)) return;
  view.over.delete(id);
  view.focus = id;
  again();
  byId("main").scrollIntoView({ block: "start" });
}

function compare(id, wanted) {
  if (wanted) view.over.add(id);
  else view.over.delete(id);
  again();
}

function chartMetric(metric, wanted) {
  view.extras = view.extras.filter((one) => one.name !== metric.name);
  if (wanted) view.extras.push(metric);
  charts.setExtras(view.extras);
  again();
}

/** After a change of view: redraws with known data, then with new data. */
function again() {
  ticks = 0;
  remember();
  charts.zoom(null);
  poller.now().then(drawCharts);
}

/** The view is kept in the URL, so that it can be shared. */
function remember() {
  const choices = { run: view.focus, over: [...view.over].join(), x: view.x, scale: view.scale, smooth: view.smooth };
  const kept = Object.entries(choices).filter(([, value]) => value !== "" && value !== null);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  if (kept.has("run")) view.focus = kept.get("run");
  view.over = new Set((kept.get("over") ?? "").split(",").filter(Boolean));
  if (["step", "time", "samples", "hours"].includes(kept.get("x"))) view.x = kept.get("x");
  if (["linear", "log"].includes(kept.get("scale"))) view.scale = kept.get("scale");
  const smooth = Number(kept.get("smooth") ?? SMOOTH_AT_FIRST);
  if (Number.isInteger(smooth) && smooth >= 0 && smooth < SMOOTHING.length) view.smooth = smooth;
}

function exportLinks(id) {
  byId("export-csv").href = runPath(id, "export.csv");
  byId("export-json").href = runPath(id, "export.json");
}

function titleOf(alerts) {
  const run = find(view.focus);
  const loss = run && last(recordOf(run.id).series.curves.get("loss/train"));
  document.title = [alerts ? `${alerts} ${alerts === 1 ? "alert" : "alerts"}` : null, loss ? number(loss.value, 3) : null, run?.name, "echotts monitor"]
    .filter(Boolean).join(" · ");
}

/** The state of the connection to the server. */
function report(state, detail = null) {
  const said = { live: "Live", paused: "Paused while hidden", away: "Server unreachable", refused: "Signed out" };
  const connection = byId("connection");
  connection.dataset.state = state;
  setText(connection, said[state]);
  const trouble = byId("trouble");
  trouble.hidden = state === "live" || state === "paused";
  trouble.dataset.retry = detail ? String(detail.retryAt) : "";
  if (state === "refused") {
    setText(byId("trouble-text"), "This page is no longer signed in. Reload it and enter the token.");
    setText(byId("trouble-retry"), "Reload");
  }
  if (state === "away") {
    trouble.dataset.said = `No update since ${moment(detail.since / 1000)}: ${detail.message}. The last data are still shown.`;
    countDown();
  }
}

function countDown() {
  const trouble = byId("trouble"), at = Number(trouble.dataset.retry);
  if (trouble.hidden || !at) return;
  setText(byId("trouble-text"), trouble.dataset.said);
  const left = Math.ceil((at - Date.now()) / 1000);
  setText(byId("trouble-retry"), left > 0 ? `Try now (next in ${left} s)` : "Trying");
}

function connectControls() {
  const toolbar = byId("toolbar"), slider = byId("smooth");
  toolbar.elements.x.value = view.x;
  toolbar.elements.scale.value = view.scale;
  slider.value = view.smooth;
  const say = () => {
    const text = SMOOTHING[slider.value] ? String(SMOOTHING[slider.value]) : "off";
    setText(byId("smooth-value"), text);
    slider.setAttribute("aria-valuetext", text);
  };
  say();
  let waiting = null;
  slider.addEventListener("input", () => {
    say();
    clearTimeout(waiting);
    waiting = setTimeout(() => { view.smooth = Number(slider.value); again(); }, 200);
  });
  for (const radio of toolbar.elements.x) radio.addEventListener("change", () => { view.x = radio.value; again(); });
  for (const radio of toolbar.elements.scale) {
    radio.addEventListener("change", () => { view.scale = radio.value; remember(); drawCharts(); });
  }
  toolbar.addEventListener("submit", (event) => event.preventDefault());
  byId("zoom-reset").addEventListener("click", () => charts.zoom(null));
  byId("trouble-retry").addEventListener("click", () => (byId("connection").dataset.state === "refused" ? location.reload() : poller.now()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
  setInterval(() => { refreshAges(ago); countDown(); }, 1000);
}

recall();
connectControls();
poller.now();
