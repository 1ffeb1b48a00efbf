/** Polls the server: pauses while the page is hidden, backs off while the server is unreachable. */

import { HttpError } from "./api.js";

const FIRST_WAIT_MS = 1000, LONGEST_WAIT_MS = 30000;

/**
 * Calls `tick(signal)`, which resolves to the milliseconds until the next one. `report(state, detail)` is called with
 * "live", "paused", "away" ({message, since, retryAt}, ms of Date.now) and "refused" (no longer signed in).
 */
export class Poller {
  #tick; #report; #timer = null; #running = null; #failures = 0; #since = null;

  constructor(tick, report) {
    this.#tick = tick;
    this.#report = report;
    document.addEventListener("visibilitychange", () => this.now());
  }

  /** Ticks immediately, or pauses while the page is hidden; a tick in progress is aborted. */
  async now() {
    this.#stop();
    if (document.hidden) return this.#pause();
    const running = (this.#running = new AbortController());
    try {
      const wait = await this.#tick(running.signal);
      if (running.signal.aborted) return undefined;
      this.#failures = 0;
      this.#since = null;
      this.#report("live");
      this.#again(wait);
    } catch (error) {
      if (running.signal.aborted) return undefined;
      this.#failed(error);
    }
    return undefined;
  }

  #failed(error) {
    if (error instanceof HttpError && error.status === 401) return this.#report("refused");
    const away = error instanceof HttpError || error instanceof TypeError || error.name === "TimeoutError";
    if (!away) console.error(error); // a bug of the page: log it and keep polling
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.#since ??= Date.now();
    const message = error instanceof HttpError ? error.message : away ? "the server does not respond" : error.message;
    this.#report("away", { message, since: this.#since, retryAt: Date.now() + wait });
    return this.#again(wait);
  }

  #again(wait) {
    this.#timer = setTimeout(() => this.now(), wait);
  }

  #pause() {
    this.#stop();
    this.#report("paused");
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#running?.abort();
  }
}
