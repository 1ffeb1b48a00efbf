/** Talks to the server: GET with ETag, a time limit, and errors that say what happened. */

const LIMIT_MS = 15000;

/** The server answered, but not with what was asked for. */
export class HttpError extends Error {
  constructor(status, path) {
    super(`the server answered ${status} for ${path}`);
    this.status = status;
  }
}

export class Api {
  #kept = new Map();

  /**
   * {body, fresh}: the JSON at `path`. `slot` names what it is for; where its path is the same as last time the server
   * may answer "not changed", and the body kept in the slot is handed out again with fresh = false.
   */
  async get(path, { slot = path, signal } = {}) {
    const kept = this.#kept.get(slot);
    const same = kept?.path === path && kept.tag;
    const limit = AbortSignal.timeout(LIMIT_MS);
    const response = await fetch(path, {
      headers: same ? { "If-None-Match": kept.tag } : {},
      cache: "no-store",
      credentials: "same-origin",
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    if (response.status === 304 && same) return { body: kept.body, fresh: false };
    if (!response.ok) throw new HttpError(response.status, path);
    const body = await response.json();
    this.#kept.set(slot, { path, tag: response.headers.get("ETag"), body });
    return { body, fresh: true };
  }
}

/** The address of something of a run; ids and parameters are escaped. */
export function runPath(id, what, parameters = {}) {
  const query = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(query.map(([key, value]) => [key, String(value)])).toString();
  return `api/runs/${encodeURIComponent(id)}/${what}${text ? `?${text}` : ""}`;
}
