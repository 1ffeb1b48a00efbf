/** Requests to the server: GET with ETag and timeout; errors have readable messages. */

const LIMIT_MS = 15000;

/** The server responded with an error. */
export class HttpError extends Error {
  constructor(status, path) {
    super(`the server answered ${status} for ${path}`);
    this.status = status;
  }
}

export class Api {
  #kept = new Map();

  /**
   * {body, fresh}: the JSON at `path`. `slot` names its use; if its path is unchanged, the server
   * may answer "not modified"; then the slot's stored body is returned with fresh = false.
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

/** The URL of a resource of a run; ids and parameters are escaped. */
export function runPath(id, what, parameters = {}) {
  const query = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = new URLSearchParams(query.map(([key, value]) => [key, String(value)])).toString();
  return `api/runs/${encodeURIComponent(id)}/${what}${text ? `?${text}` : ""}`;
}
