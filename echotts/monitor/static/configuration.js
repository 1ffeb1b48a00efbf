/** The configuration of the open run; if it is compared with other runs, differences come first. */

import { blank, byId, el, table } from "./dom.js";

/** {"model": {"width": 8}} -> [["model.width", 8]] */
function flat(value, prefix = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[prefix, value]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, prefix ? `${prefix}.${key}` : key));
}

function written(value) {
  if (value === undefined) return "–";
  return typeof value === "string" ? value || "(empty)" : JSON.stringify(value);
}

export class Configuration {
  #config = null; #differences = []; #runs = []; #key = "";

  constructor() {
    byId("config-find").addEventListener("input", () => this.#fill());
  }

  /** `runs`: [{id, name}] shown, the open one first; `differences`: the server's, empty for one run. */
  draw(config, differences, runs) {
    this.#config = config;
    this.#differences = differences;
    this.#runs = runs;
    const key = JSON.stringify([config, differences, runs.map((run) => [run.id, run.name])]);
    if (key === this.#key) return;
    this.#key = key;
    this.#fill();
  }

  #fill() {
    const box = byId("config-table"), entries = this.#config ? flat(this.#config).filter(([name]) => name) : [];
    if (!entries.length) return box.replaceChildren(blank("This run has no config.json, so its settings are unknown."));
    const sought = byId("config-find").value.trim().toLowerCase();
    const hit = (name, ...values) => !sought || [name, ...values.map(written)].some((text) => text.toLowerCase().includes(sought));
    const parts = [];
    if (this.#runs.length > 1) parts.push(...this.#compared(hit));
    const rows = entries.filter(([name, value]) => hit(name, value));
    const whole = rows.length
      ? table("Configuration", [
        { title: "Setting", head: true, cell: ([name]) => el("code", { text: name }) },
        { title: "Value", cell: ([, value]) => el("code", { text: written(value) }) },
      ], rows)
      : blank(`No setting has “${sought}” in its name or value.`);
    const open = sought || this.#runs.length < 2;
    parts.push(el("details", { class: "whole", open }, el("summary", { text: `All ${entries.length} settings of ${this.#runs[0]?.name ?? "the run"}` }), whole));
    return box.replaceChildren(...parts);
  }

  #compared(hit) {
    const rows = this.#differences.filter((row) => hit(row.key, ...Object.values(row.values)));
    if (!rows.length) return [blank(this.#differences.length ? "No difference matches." : "The shown runs have the same configuration.")];
    return [table("Differences between the shown runs", [
      { title: "Setting that differs", head: true, cell: (row) => el("code", { text: row.key }) },
      ...this.#runs.map((run) => ({ title: run.name, cell: (row) => el("code", { text: written(row.values[run.id]) }) })),
    ], rows)];
  }
}
