/** Creates elements. Strings from a run (names, texts, configuration) become text nodes, never markup. */

/**
 * One element. `class`, `text` and `on` ({event: handler}) are special; other keys are attributes, where true means
 * present and false, null or undefined absent. Inline styles are forbidden by the content security policy.
 */
export function el(tag, settings = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(settings)) {
    if (value === false || value === null || value === undefined) continue;
    if (key === "class") node.className = value;
    else if (key === "text") node.textContent = value;
    else if (key === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with this id, which page.html must contain. */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`page.html has no element #${id}`);
  return node;
}

/** Sets text only if it changed, so that screen readers do not repeat live regions. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A message in place of an empty table or chart. */
export function blank(text) {
  return el("p", { class: "blank", text });
}

/**
 * A table that becomes a list of cards on a phone. `columns`: [{title, head?, number?, cell(row) -> string or Node}].
 * `rowClass(row)` may mark a row; `shape`: "pairs" for cards of two columns, "narrow" for no wider than its text.
 * Roles are explicit because the card layout would lose them.
 */
export function table(label, columns, rows, { rowClass = () => "", shape = "" } = {}) {
  const head = columns.map((column) =>
    el("th", { scope: "col", role: "columnheader", class: column.number ? "number" : "", text: column.title }),
  );
  const body = rows.map((row) =>
    el("tr", { role: "row", class: rowClass(row) }, ...columns.map((column) => {
      const content = column.cell(row);
      const role = column.head ? "rowheader" : "cell";
      return el(column.head ? "th" : "td",
        { role, scope: column.head ? "row" : null, class: column.number ? "number" : "", "data-label": column.title },
        content ?? "–");
    })),
  );
  return el("div", { class: `table ${shape}`, tabindex: "0", role: "group", "aria-label": label },
    el("table", { role: "table" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head)),
      el("tbody", { role: "rowgroup" }, ...body)));
}

/** Shows a table or sentence in `box`; an existing table keeps focus and scroll position. */
export function put(box, node) {
  const old = box.firstElementChild;
  if (box.childElementCount === 1 && old.className === node.className && old.classList.contains("table")) old.replaceChildren(...node.childNodes);
  else box.replaceChildren(node);
}

/** "4 s ago"; refreshAges() updates all of them. */
export function age(unix, format) {
  return el("time", { class: "age", "data-unix": unix, datetime: new Date(unix * 1000).toISOString(),
    title: new Date(unix * 1000).toLocaleString(), text: format(unix) });
}

export function refreshAges(format) {
  for (const node of document.querySelectorAll("time.age")) setText(node, format(Number(node.dataset.unix)));
}
