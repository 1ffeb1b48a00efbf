/** Speech samples at two steps, beside the reference, as spectrograms and sound. One clip plays at a time. */

import { blank, byId, el } from "./dom.js";
import { number, span } from "./format.js";
import { runPath } from "./api.js";

let sounding = null; // the clip that is playing

class Clip {
  #audio; #button; #head; #label; #after = null;

  /** `source` and `picture` are URLs, `label` describes the clip. */
  constructor(source, picture, seconds, label) {
    this.#label = label;
    this.#audio = new Audio();
    this.#audio.preload = "none";
    this.#audio.src = source;
    this.#button = el("button", { type: "button", class: "play", "aria-label": `Play ${label}`, "aria-pressed": "false",
      on: { click: () => this.toggle() } });
    this.#head = el("span", { class: "playhead", "aria-hidden": "true" });
    this.#audio.addEventListener("timeupdate", () => this.#show());
    this.#audio.addEventListener("ended", () => this.#ended());
    this.#audio.addEventListener("error", () => this.#failed());
    const length = el("span", { class: "clip-length", text: seconds === null ? "" : span(seconds) });
    const view = picture
      ? el("span", { class: "mel", on: { click: (event) => this.#seek(event) } },
        el("img", { src: picture, alt: `Mel picture of ${label}`, loading: "lazy" }), this.#head)
      : el("span", { class: "mel bare", on: { click: (event) => this.#seek(event) } }, this.#head);
    this.node = el("div", { class: "clip" }, this.#button, view, length);
  }

  toggle() {
    if (sounding === this) return this.stop();
    return this.play();
  }

  /** Plays from the start; `after` is called when it has played to the end. */
  play(after = null) {
    sounding?.stop();
    sounding = this;
    this.#after = after;
    this.#state(true);
    this.#audio.play().catch((error) => { if (error.name !== "AbortError") this.#failed(); });
  }

  stop() {
    this.#audio.pause();
    if (this.#audio.readyState) this.#audio.currentTime = 0;
    this.#after = null;
    if (sounding === this) sounding = null;
    this.#state(false);
    this.#show();
  }

  #ended() {
    const after = this.#after;
    this.stop();
    after?.();
  }

  #failed() {
    this.stop();
    this.#button.disabled = true;
    this.#button.setAttribute("aria-label", `${this.#label} cannot be played`);
    this.node.classList.add("broken");
  }

  #state(on) {
    this.node.classList.toggle("sounding", on);
    this.#button.setAttribute("aria-pressed", String(on));
    this.#button.setAttribute("aria-label", `${on ? "Stop" : "Play"} ${this.#label}`);
  }

  #show() {
    const share = this.#audio.duration ? this.#audio.currentTime / this.#audio.duration : 0;
    this.#head.style.setProperty("--at", `${100 * share}%`);
  }

  #seek(event) {
    const box = event.currentTarget.getBoundingClientRect();
    if (sounding !== this) this.play();
    if (this.#audio.duration) this.#audio.currentTime = ((event.clientX - box.left) / box.width) * this.#audio.duration;
  }
}

/** The table of samples of the open run. */
export class Speech {
  #run = null; #samples = []; #clips = new Map(); #followsNewest = true;

  constructor() {
    for (const pick of ["sample-a", "sample-b"]) {
      byId(pick).addEventListener("change", () => { this.#followsNewest = false; this.#fill(); });
    }
  }

  draw(run, samples) {
    if (run !== this.#run) this.#clear(run);
    this.#samples = [...(samples ?? [])].sort((a, b) => a.step - b.step);
    const steps = this.#samples.map((sample) => sample.step);
    byId("sample-picks").hidden = !steps.length;
    if (!steps.length) {
      byId("sample-list").replaceChildren(blank("No speech yet. Sentences are spoken every run.sample_every steps when run.sentences is set."));
      return;
    }
    this.#options("sample-a", steps, this.#followsNewest ? steps[steps.length - 1] : null);
    this.#options("sample-b", steps, this.#followsNewest && steps.length > 1 ? steps[steps.length - 2] : null);
    this.#fill();
  }

  #clear(run) {
    sounding?.stop();
    this.#run = run;
    this.#clips.clear();
    this.#followsNewest = true;
    byId("sample-list").dataset.key = "";
  }

  #options(id, steps, chosen) {
    const select = byId(id), value = chosen === null ? select.value : String(chosen);
    if (select.dataset.steps !== `${this.#run} ${steps}`) {
      select.dataset.steps = `${this.#run} ${steps}`;
      select.replaceChildren(...steps.map((step) => el("option", { value: step, text: number(step) })));
      if (id === "sample-b") select.prepend(el("option", { value: "", text: "none" }));
    }
    select.value = value;
  }

  /** One row per sentence: the reference, and the speech at steps A and B. */
  #fill() {
    const at = (id) => this.#samples.find((sample) => String(sample.step) === byId(id).value);
    const a = at("sample-a"), b = at("sample-b");
    const list = byId("sample-list"), key = JSON.stringify([a, b]);
    if (list.dataset.key === key) return;
    list.dataset.key = key;
    list.replaceChildren(...(a?.items ?? []).map((item) => {
      const other = b?.items.find((candidate) => candidate.text === item.text);
      const first = this.#clip(item, a.step), second = other ? this.#clip(other, b.step) : null;
      const both = second && first !== second
        ? el("button", { type: "button", class: "both", text: "Play A, then B", on: { click: () => first.play(() => second.play()) } })
        : null;
      return el("article", { class: "sentence" },
        el("div", { class: "sentence-head" }, el("h3", { text: item.text || "(no text)" }), both),
        el("div", { class: "voices" },
          this.#voice("Reference", item.reference_id ? this.#reference(item) : null, "none given"),
          this.#voice(`A · step ${number(a.step)}`, first, null, item.heard),
          b && b !== a ? this.#voice(`B · step ${number(b.step)}`, second, "this sentence was not spoken", other?.heard)
            : null));
    }));
  }

  #voice(title, clip, otherwise, heard) {
    return el("div", { class: "voice" }, el("p", { class: "voice-title", text: title }),
      clip ? clip.node : el("p", { class: "hint", text: otherwise }),
      heard ? el("p", { class: "hint", text: `heard: ${heard}` }) : null);
  }

  #clip(item, step) {
    return this.#kept(item.id, () => new Clip(runPath(this.#run, `audio/${encodeURIComponent(item.id)}`), item.picture,
      item.seconds, `“${item.text}” at step ${number(step)}`));
  }

  #reference(item) {
    const id = encodeURIComponent(item.reference_id);
    return this.#kept(`reference of ${item.id}`, () => new Clip(runPath(this.#run, `audio/${id}`),
      runPath(this.#run, `picture/${id}`), null, `the reference of “${item.text}”`));
  }

  #kept(key, make) {
    if (!this.#clips.has(key)) this.#clips.set(key, make());
    return this.#clips.get(key);
  }
}
