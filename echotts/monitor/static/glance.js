/** The list of runs, the summary of the open one, and the alerts. */

import { age, byId, el, setText } from "./dom.js";
import { bytes, compact, duration, moment, NONE, number, percent, span } from "./format.js";
import { last } from "./series.js";

export const STATUS = {
  running: "Running", stale: "Stale", finished: "Finished", failed: "Failed", stopped: "Stopped", empty: "Empty",
};
const ALERT = { stale: "Silent", failed: "Failed", nan: "Not a number", data_wait: "Waiting for data", disk: "Disk" };

const MANY_RUNS = 10; // from this number on the list has a search field

/** The list of runs. Rows are updated in place, to keep keyboard focus. */
export class Rail {
  #rows = new Map(); #onOpen; #onCompare; #redraw = () => {};

  constructor({ onOpen, onCompare }) {
    this.#onOpen = onOpen;
    this.#onCompare = onCompare;
    const details = byId("rail").querySelector("details"), wide = matchMedia("(min-width: 1000px)");
    const fold = () => (details.open = wide.matches);
    wide.addEventListener("change", fold);
    fold();
    byId("run-find").addEventListener("input", () => this.#redraw());
  }

  draw(runs, focus, over, colours) {
    byId("rail").hidden = runs.length < 2;
    document.body.classList.toggle("one-run", runs.length < 2);
    setText(byId("run-count"), String(runs.length));
    this.#redraw = () => this.draw(runs, focus, over, colours);
    byId("run-find").hidden = runs.length < MANY_RUNS;
    const sought = byId("run-find").value.trim().toLowerCase();
    const gone = new Set(this.#rows.keys());
    for (const run of runs) {
      gone.delete(run.id);
      const row = this.#rows.get(run.id) ?? this.#add(run);
      const shown = run.id === focus || over.has(run.id);
      row.node.classList.toggle("open", run.id === focus);
      row.node.hidden = !shown && !run.name.toLowerCase().includes(sought);
      row.button.setAttribute("aria-current", run.id === focus ? "true" : "false");
      row.check.checked = shown;
      row.check.disabled = run.id === focus;
      row.check.style.setProperty("--line", shown ? colours.get(run.id) : "transparent");
      setText(row.name, run.name);
      setText(row.status, STATUS[run.status] ?? run.status);
      row.status.dataset.status = run.status;
      setText(row.share, run.progress === null ? (run.last_time ? number(run.step) : "") : percent(run.progress, 0));
      row.bar.hidden = run.progress === null;
      row.bar.value = run.progress ?? 0;
    }
    for (const id of gone) {
      this.#rows.get(id).node.remove();
      this.#rows.delete(id);
    }
  }

  #add(run) {
    const check = el("input", { type: "checkbox", "aria-label": `Draw ${run.name} over the open run`,
      on: { change: (event) => this.#onCompare(run.id, event.target.checked) } });
    const name = el("span", { class: "rail-name" }), status = el("span", { class: "dot" });
    const share = el("span", { class: "rail-share" });
    const bar = el("progress", { max: "1", "aria-label": `Progress of ${run.name}` });
    const button = el("button", { type: "button", on: { click: () => this.#onOpen(run.id) } }, name,
      el("span", { class: "rail-line" }, status, share));
    const node = el("li", {}, check, button, bar);
    byId("run-list").append(node);
    const row = { node, check, button, name, status, share, bar };
    this.#rows.set(run.id, row);
    return row;
  }
}

/** Name, state, progress and notes about missing data. */
export function drawGlance(run, ago) {
  setText(byId("run-name"), run.name);
  const status = byId("run-status");
  setText(status, STATUS[run.status] ?? run.status);
  status.dataset.status = run.status;
  const heard = byId("run-heard");
  if (run.last_time) heard.replaceChildren("last heard ", age(run.last_time, ago));
  else setText(heard, "nothing heard yet");
  const why = byId("run-why");
  const said = run.why ?? run.metrics_where;
  why.hidden = !said;
  why.dataset.status = run.status;
  setText(why, said ?? "");
  const bar = byId("run-progress");
  bar.hidden = run.progress === null;
  bar.value = run.progress ?? 0;
  const of = run.steps ? ` of ${number(run.steps)}` : "";
  const share = run.progress === null ? "" : ` · ${percent(run.progress)}`;
  setText(byId("run-steps"), !run.last_time ? "no step yet" : `step ${number(run.step)}${of}${share}`);
  setText(byId("run-left"), leftOf(run));
  drawNotes(run);
}

function leftOf(run) {
  const began = run.started_time ? `started ${moment(run.started_time)}` : "";
  if (run.status !== "running" || !run.left_s) return began;
  return `${duration(run.left_s)} left · ends ${moment(Date.now() / 1000 + run.left_s).replace(/:\d\d$/, "")}`;
}

function drawNotes(run) {
  const notes = [...run.missing];
  if (run.why && run.metrics_where) notes.push(run.metrics_where);
  if (run.bad_lines) notes.push(`${number(run.bad_lines)} unreadable metrics ${run.bad_lines === 1 ? "line was" : "lines were"} skipped.`);
  if (run.truncated) notes.push(`A metrics file was truncated or replaced ${number(run.truncated)} ${run.truncated === 1 ? "time" : "times"} and was read again.`);
  const box = byId("notes");
  box.hidden = !notes.length;
  setText(byId("notes-title"), notes.length === 1 ? "1 thing to know about this run" : `${notes.length} things to know about this run`);
  const key = notes.join("\n");
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  byId("notes-list").replaceChildren(...notes.map((text) => el("li", { text })));
}

/** The figures under the progress bar: label, value, and a smaller line below it. */
export function drawTiles(curves, hosts) {
  const value = (name, key) => last(curves.get(name), key);
  const read = (name, format) => { const found = value(name); return found ? format(found.value) : NONE; };
  const loss = value("loss/train"), smooth = value("loss/train", "smooth");
  const heldout = value("heldout/loss");
  const step = value("time/step_p50_s") ?? value("time/step_s");
  const behind = Math.max(0, ...hosts.map((host) => host.lag_steps ?? 0));
  const machines = new Set(hosts.map((host) => host.host)).size;
  const tiles = [
    ["Training loss", loss ? number(loss.value) : NONE, smooth ? `smoothed ${number(smooth.value)}` : ""],
    ["Evaluation loss", heldout ? number(heldout.value) : NONE, heldout ? "" : "not measured yet"],
    ["Gradient norm", read("grad/norm", number), value("grad/clip_share") ? `${read("grad/clip_share", percent)} of steps clipped` : ""],
    ["Samples/s", read("throughput/samples_per_s", number), value("data/samples_seen") ? `${read("data/samples_seen", compact)} seen` : ""],
    ["Step time", step ? span(step.value) : NONE, value("time/step_p95_s") ? `p95 ${read("time/step_p95_s", span)}` : ""],
    ["MFU", read("throughput/mfu_share", percent), "", "throughput/mfu_share"],
    ["Useful frames", read("data/frames_valid_share", percent), value("data/audio_hours") ? `${read("data/audio_hours", (hours) => number(hours < 100 ? hours : Math.round(hours)))} h of audio` : ""],
    ["Waiting for data", read("time/data_wait_share", percent), ""],
    ["Device memory", read("device/memory_bytes", bytes), "", "device/memory_bytes"],
    ["Hosts", machines ? number(machines) : NONE, machines ? (behind ? `up to ${number(behind)} steps behind` : "at the same step") : ""],
  ].filter(([, , , needed]) => !needed || value(needed)); // CPUs report neither
  const box = byId("tiles");
  const labels = tiles.map(([label]) => label).join();
  if (box.dataset.labels !== labels) {
    box.dataset.labels = labels;
    box.replaceChildren(...tiles.map(([label]) => el("div", {}, el("dt", { text: label }), el("dd"), el("dd", { class: "below" }))));
  }
  tiles.forEach(([, text, below], index) => {
    const [, main, small] = box.children[index].children;
    setText(main, text);
    main.classList.toggle("none", text === NONE);
    setText(small, below);
  });
}

/** The alerts of all runs, above everything. */
export function drawAlerts(alerts, nameOf, ago, onOpen) {
  const box = byId("alerts");
  box.hidden = !alerts.length;
  const key = JSON.stringify(alerts);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...alerts.map((alert) =>
    el("p", { class: "alert", "data-kind": alert.kind },
      el("strong", { text: ALERT[alert.kind] ?? alert.kind }),
      el("button", { type: "button", class: "link", text: nameOf(alert.run), on: { click: () => onOpen(alert.run) } }),
      alert.host ? el("span", { class: "alert-host", text: `on ${alert.host}` }) : null,
      el("span", { class: "alert-text", text: alert.message }),
      alert.since ? age(alert.since, ago) : null)));
}
