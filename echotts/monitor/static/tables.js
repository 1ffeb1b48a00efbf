/** Hosts, checkpoints, events and the list of all metrics. */

import { age, blank, byId, el, put, setText, table } from "./dom.js";
import { bytes, duration, NONE, number, percent, unitOf } from "./format.js";
import { STATUS } from "./glance.js";

const SILENT_S = 120, EVENTS_AT_ONCE = 40;

/** name of an event -> how it is shown: tone, and the filters that include it. */
const EVENTS = {
  started: { tone: "info", life: true },
  resumed: { tone: "info", life: true, mark: "--mark" },
  finished: { tone: "good", life: true },
  stopped: { tone: "info", life: true },
  failed: { tone: "bad", life: true, trouble: true, mark: "--bad" },
  preempted: { tone: "warn", life: true, trouble: true, mark: "--warn" },
  nan: { tone: "bad", trouble: true, mark: "--bad" },
  spike: { tone: "warn", trouble: true },
  skipped: { tone: "warn", trouble: true },
  rolled_back: { tone: "bad", trouble: true, mark: "--bad" },
  profile: { tone: "info" },
  recompiled: { tone: "info" },
  slow_step: { tone: "warn", trouble: true },
  hang: { tone: "bad", trouble: true, mark: "--bad" },
  retry: { tone: "warn", trouble: true },
  disk_cleaned: { tone: "info", disk: true },
  disk_full: { tone: "bad", trouble: true, disk: true },
};
const NAMES = { nan: "NaN", rolled_back: "rolled back", slow_step: "slow step", disk_cleaned: "disk cleaned", disk_full: "disk full" };

function eventName(name) {
  return NAMES[name] ?? name;
}

/** The colour variable and label of an event that is marked in the charts; null for others. */
export function markOf(event) {
  const kind = EVENTS[event.event];
  return kind?.mark ? { colour: kind.mark, label: eventName(event.event) } : null;
}

/** All runs, sorted by the column whose header was clicked; a second click reverses the order. */
export class RunTable {
  #by = "last_time"; #down = true; #redraw = () => {};

  draw(runs, ago, onOpen) {
    this.#redraw = () => this.draw(runs, ago, onOpen);
    byId("all-runs").hidden = runs.length < 2;
    if (runs.length < 2) return;
    const value = (key) => (key === null || key === undefined ? NONE : number(key));
    const columns = [
      { title: "Run", key: "name", head: true,
        cell: (run) => el("button", { type: "button", class: "link", text: run.name, on: { click: () => onOpen(run.id) } }) },
      { title: "State", key: "status", cell: (run) => STATUS[run.status] ?? run.status },
      { title: "Step", key: "step", number: true, cell: (run) => number(run.step) },
      { title: "Progress", key: "progress", number: true, cell: (run) => (run.progress === null ? NONE : percent(run.progress)) },
      { title: "Training loss", key: "loss", number: true, cell: (run) => value(run.loss) },
      { title: "Evaluation loss", key: "heldout_loss", number: true, cell: (run) => value(run.heldout_loss) },
      { title: "Samples/s", key: "samples_per_s", number: true, cell: (run) => value(run.samples_per_s) },
      { title: "Last heard", key: "last_time", number: true, cell: (run) => (run.last_time ? age(run.last_time, ago) : NONE) },
    ];
    const box = byId("run-table");
    const focused = box.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    put(box, table("All runs", columns, this.#sorted(runs)));
    box.querySelectorAll("thead th").forEach((head, place) => this.#sortable(head, columns[place]));
    if (focused) box.querySelector(`thead button[data-key="${focused}"]`)?.focus();
  }

  #sorted(runs) {
    const of = (run) => run[this.#by];
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    return [...runs].sort((a, b) => {
      if (of(a) == null || of(b) == null) return (of(a) == null) - (of(b) == null); // unknown values come last
      return this.#down ? order(of(b), of(a)) : order(of(a), of(b));
    });
  }

  #sortable(head, { title, key }) {
    const chosen = key === this.#by;
    head.setAttribute("aria-sort", chosen ? (this.#down ? "descending" : "ascending") : "none");
    head.replaceChildren(el("button", { type: "button", class: "sort", "data-key": key, text: title,
      on: { click: () => {
        this.#down = chosen ? !this.#down : key !== "name" && key !== "status";
        this.#by = key;
        this.#redraw();
      } } }));
  }
}

/** The hosts, silent ones first. Rejected samples are shown by cause if the host reports causes. */
export function drawHosts(hosts, now, ago, live) {
  const box = byId("host-table");
  if (!hosts?.length) return put(box, blank("No host has written a line yet."));
  const silent = (row) => live && now - row.last_time > SILENT_S;
  const rows = [...hosts].sort((a, b) => silent(b) - silent(a) || a.process - b.process || a.host.localeCompare(b.host));
  const of = (row, name) => row.numbers[name];
  return put(box, table("Hosts", [
    { title: "Host", head: true, cell: (row) => row.host },
    { title: "Process", number: true, cell: (row) => (row.process < 0 ? "watchdog" : String(row.process)) },
    { title: "Last heard", number: true, cell: (row) => age(row.last_time, ago) },
    { title: "Step", number: true, cell: (row) => (row.step === null ? NONE : number(row.step)) },
    { title: "Behind", number: true, cell: (row) => (row.lag_steps === null ? NONE : number(row.lag_steps)) },
    { title: "Memory", number: true, cell: (row) => bytes(of(row, "host/memory_bytes")) },
    { title: "Disk free", number: true, cell: (row) => diskOf(row) },
    { title: "Cache", number: true, cell: (row) => bytes(of(row, "host/cache_bytes")) },
    { title: "Rejected samples", number: true, cell: (row) => rejectedOf(row.numbers) },
    { title: "Retries", number: true, cell: (row) => number(of(row, "host/retries")) },
  ], rows, { rowClass: (row) => (silent(row) ? "late" : ""), shape: "pairs" }));
}

function diskOf({ numbers }) {
  const share = numbers["host/disk_free_share"], free = numbers["host/disk_free_bytes"];
  if (share == null && free == null) return NONE;
  const text = [free == null ? null : bytes(free), share == null ? null : percent(share, 0)];
  const low = share != null && share < 0.15;
  return el("span", { class: low ? "low" : "", text: text.filter(Boolean).join(" · ") + (low ? " (low)" : "") });
}

function rejectedOf(numbers) {
  const causes = Object.entries(numbers).filter(([name, count]) => /^data\/rejected_/.test(name) && name !== "data/rejected_samples" && count);
  const whole = numbers["data/rejected_samples"];
  if (!causes.length) return number(whole);
  const list = causes.map(([name, count]) => `${name.replace(/^data\/rejected_/, "").replace(/_samples$/, "").replaceAll("_", " ")} ${number(count)}`);
  return el("span", {}, el("span", { text: number(whole ?? causes.reduce((sum, [, count]) => sum + count, 0)) }),
    el("small", { text: list.join(", ") }));
}

/** Newest first. */
export function drawCheckpoints(checkpoints) {
  const box = byId("checkpoint-table");
  if (!checkpoints?.length) return put(box, blank("No checkpoint yet. One is written every run.save_every_steps steps or run.save_every_minutes minutes."));
  const rows = [...checkpoints].sort((a, b) => b.step - a.step);
  return put(box, table("Checkpoints", [
    { title: "Step", head: true, number: true, cell: (row) => number(row.step) },
    { title: "Age", number: true, cell: (row) => (row.age_s === null ? NONE : duration(row.age_s)) },
    { title: "Size", number: true, cell: (row) => bytes(row.bytes) },
    { title: "State", cell: (row) => el("span", { class: row.complete ? "tag good" : "tag warn", text: row.complete ? "complete" : "not complete" }) },
  ], rows, { shape: "narrow pairs" }));
}

/** The events, newest first, through the filter; "Show more" increases `shown`. */
export class EventList {
  #events = []; #ago; #shown = EVENTS_AT_ONCE; #key = "";

  constructor(ago) {
    this.#ago = ago;
    byId("event-filter").addEventListener("change", () => this.draw(this.#events));
    byId("event-more").addEventListener("click", () => { this.#shown += 200; this.draw(this.#events); });
  }

  draw(events) {
    this.#events = events;
    const filter = byId("event-filter").value;
    const kept = events.filter((event) => filter === "all" || EVENTS[event.event]?.[filter])
      .sort((a, b) => b.time - a.time);
    const key = `${filter} ${this.#shown} ${kept.length} ${kept[0]?.time} ${kept[kept.length - 1]?.time} ${kept[0]?.message}`;
    if (key === this.#key) return;
    this.#key = key;
    byId("event-list").replaceChildren(...kept.slice(0, this.#shown).map((event) => this.#row(event)));
    byId("event-more").hidden = kept.length <= this.#shown;
    const none = byId("event-blank");
    none.hidden = kept.length > 0;
    setText(none, events.length ? "No event of this kind." : "No events yet. Starts, resumes, NaN, skipped steps, preemption and disk cleaning appear here.");
  }

  #row(event) {
    return el("li", { "data-tone": EVENTS[event.event]?.tone ?? "info" },
      age(event.time, this.#ago),
      el("span", { class: "tag", text: eventName(event.event) }),
      el("span", { class: "event-step", text: event.step === null ? "" : `step ${number(event.step)}` }),
      el("span", { class: "event-text", text: event.message }),
      el("span", { class: "event-host", text: event.host ?? "" }));
  }
}

/** Every metric of the run, with a checkbox that charts it. */
export function drawMetrics(names, charted, onChart) {
  const box = byId("metric-table");
  const key = JSON.stringify([names, charted]);
  if (box.dataset.key === key) return;
  const focused = box.contains(document.activeElement) ? document.activeElement.name : null;
  box.dataset.key = key;
  if (!names?.length) return put(box, blank("This run has written no metrics."));
  put(box, table("All metrics", [
    { title: "Chart", cell: (row) => el("input", { type: "checkbox", name: row.name, checked: charted.includes(row.name),
      "aria-label": `Chart ${row.name}`, on: { change: (event) => onChart(row, event.target.checked) } }) },
    { title: "Name", head: true, cell: (row) => el("code", { text: row.name }) },
    { title: "Last", number: true, cell: (row) => unitOf(row.name).long(row.last) },
    { title: "Lines", number: true, cell: (row) => number(row.count) },
    { title: "What it is", cell: (row) => row.description ?? "" },
  ], names));
  if (focused) box.querySelector(`[name="${CSS.escape(focused)}"]`)?.focus();
}
