// Tables, matrices and what they are made of.

const PAGE = 20; // rows that a table shows before it is asked for more

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}
let ids = 0;
function newId(prefix) {
  return `${prefix}-${++ids}`;
}
function badge(mode) {
  return make("span", { class: `badge ${mode || "none"}` }, mode || "none");
}
function scrollable(label, content) {
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    content,
  );
}
function select(label, values, onchange) {
  const options = values.map((value, i) => make("option", { value: i }, String(value)));
  return make(
    "label",
    {},
    `${label} `,
    make("select", { onchange: (e) => onchange(Number(e.target.value)) }, options),
  );
}
function choice(label, values, chosen, onchange) {
  const name = newId("choice");
  return make(
    "span",
    { role: "radiogroup", "aria-label": label },
    values.map((value, i) =>
      make(
        "label",
        {},
        make("input", { type: "radio", name, checked: i === chosen, onchange: () => onchange(i) }),
        value,
        " ",
      ),
    ),
  );
}
function tick(label, checked, onchange, color) {
  return make(
    "label",
    {},
    make("input", { type: "checkbox", checked, onchange: (e) => onchange(e.target.checked) }),
    color ? make("span", { class: "swatch", style: `background:${color}` }) : null,
    label,
  );
}
function say(text) {
  document.getElementById("status").textContent = text;
}

// Below a list: how many of its rows are shown, and a button for more; nothing if all are.
function tellMore(place, count, all, label, onclick) {
  place.replaceChildren(
    ...(all > count
      ? [
          `${count} of ${all} rows. `,
          make("button", { class: "plain", type: "button", onclick }, label),
        ]
      : []),
  );
}

// A table of some rows and columns of the data; `links` maps a column to a maker of its cell.
function drawTable(
  table,
  names,
  { rows = table.all(), caption, makers = {}, expand = null, page = PAGE } = {},
) {
  const shown = names.filter((name) => table.has(name));
  const numbers = new Set(
    shown.filter(
      (name) => table.rows > 0 && table.column(name).some((v) => typeof v === "number"),
    ),
  );
  const number = (name) => numbers.has(name);
  const body = make("tbody");
  const more = make("p");
  let order = rows.slice();
  let count = page;
  const draw = () => {
    body.replaceChildren(
      ...order.slice(0, count).map((row) => {
        const line = make("tr", { "data-row": row });
        shown.forEach((name, i) => {
          const value = table.get(row, name);
          const numeric = number(name);
          const content = makers[name]
            ? makers[name](row, value)
            : (COLUMNS[name] || [])[1] === "badge"
              ? badge(value)
              : format(name, value);
          line.append(
            make(
              i === 0 ? "th" : "td",
              { scope: i === 0 ? "row" : null, class: numeric ? "n" : null, "data-column": name },
              content,
            ),
          );
        });
        if (expand) expand(line, row, shown.length);
        return line;
      }),
    );
    const left = order.length - count;
    tellMore(more, count, order.length, `Show ${Math.min(left, 10 * page)} more`, () => {
      count += 10 * page;
      draw();
    });
  };
  const heads = shown.map((name) =>
    make(
      "th",
      { scope: "col", class: number(name) ? "n" : null },
      make(
        "button",
        {
          type: "button",
          onclick: (e) => {
            const th = e.target.parentElement;
            const down = th.getAttribute("aria-sort") !== "descending";
            heads.forEach((h) => h.removeAttribute("aria-sort"));
            th.setAttribute("aria-sort", down ? "descending" : "ascending");
            const key = (row) => table.get(row, name);
            order.sort((a, b) => compare(key(a), key(b)) * (down ? -1 : 1));
            draw();
          },
        },
        heading(name),
      ),
    ),
  );
  draw();
  const element = make(
    "table",
    { "data-table": table.name },
    caption ? make("caption", {}, caption) : null,
    make("thead", {}, make("tr", {}, heads)),
    body,
  );
  const block = make("div", {}, scrollable(caption || table.name, element), more);
  block.filter = (kept) => {
    order = rows.filter(kept);
    count = page;
    draw();
  };
  block.showRow = (row) => {
    const at = order.indexOf(row);
    if (at >= count) {
      count = at + 1;
      draw();
    }
    return body.querySelector(`:scope > tr[data-row="${row}"]`);
  };
  return block;
}
function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null) ? (a === null ? -1 : 1) : 0;
  return typeof a === "number" && typeof b === "number"
    ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
}

// A matrix: `rows` have `heads`; `cell` says what stands where, and how it looks.
function drawMatrix(label, headTitles, rows, columnHeads, cell, page = PAGE) {
  const body = make("tbody");
  const more = make("p");
  let count = page;
  const draw = () => {
    body.replaceChildren(
      ...rows.slice(0, count).map((row) =>
        make(
          "tr",
          {},
          row.heads.map((head, k) =>
            make(
              k ? "td" : "th",
              { scope: k ? null : "row", class: typeof head === "number" ? "n" : "word" },
              head,
            ),
          ),
          columnHeads.map((_, j) => {
            const found = cell(row, j);
            return make(
              "td",
              {
                class: `cell ${found?.best ? "best" : ""}`,
                style: found?.style,
                title: found?.title,
                "data-value": found?.value,
              },
              found ? (found.content ?? found.text) : "–",
            );
          }),
        ),
      ),
    );
    tellMore(more, count, rows.length, "Show more", () => {
      count += 10 * page;
      draw();
    });
  };
  draw();
  const numeric = (k) => rows.length > 0 && typeof rows[0].heads[k] === "number";
  const heads = [
    ...headTitles.map((head, k) =>
      make("th", { scope: "col", class: numeric(k) ? "n" : null }, head),
    ),
    ...columnHeads.map((head) => make("th", { scope: "col", class: "n" }, head)),
  ];
  return make(
    "div",
    {},
    scrollable(
      label,
      make(
        "table",
        { class: "matrix" },
        make("caption", {}, label),
        make("thead", {}, make("tr", {}, heads)),
        body,
      ),
    ),
    more,
  );
}
// A colour mixed with white, under black or white text, whichever is read better (4.5 to 1 at least).
function shade(rgb, share) {
  const mixed = rgb.map((c) => Math.round(255 + (c - 255) * share));
  const linear = mixed
    .map((c) => c / 255)
    .map((c) => (c <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return `background:rgb(${mixed});color:${luminance > 0.179 ? "#000" : "#fff"}`;
}
function grouped(table, rows, names) {
  const groups = new Map();
  for (const row of rows) {
    const key = names.map((name) => table.get(row, name)).join("\u0000");
    groups.has(key) ? groups.get(key).push(row) : groups.set(key, [row]);
  }
  return [...groups.values()];
}
function distinct(table, name, rows = table.all()) {
  return [...new Set(rows.map((row) => table.get(row, name)))];
}
// Heads of a matrix's rows: loads in one column, with their TTFT limit if there are several.
function rowHeads(table, names) {
  const shown = telling(
    table,
    names.filter((name) => name !== "model"),
  );
  const limits = shown.includes("ttft_limit_ms");
  const inLoad = ["workload", "isl", "osl", "ttft_limit_ms"];
  const loads = shown.some((name) => inLoad.includes(name));
  const first = names.includes("model") ? ["model"] : [];
  const others = shown.filter((name) => !inLoad.includes(name));
  return {
    titles: [
      ...first.map(heading),
      ...(loads ? [`ISL / OSL${limits ? ", TTFT" : ""}`] : []),
      ...others.map(heading),
    ],
    of: (row) => [
      ...first.map((name) => table.get(row, name)),
      ...(loads
        ? [
            load(table, row) +
              (limits ? `, ≤ ${format("ttft_limit_ms", table.get(row, "ttft_limit_ms"))} ms` : ""),
          ]
        : []),
      ...others.map((name) => table.get(row, name)),
    ],
  };
}
// Which of these columns tell rows apart; the others would repeat one value.
function telling(table, names, rows = table.all()) {
  return names.filter((name) => distinct(table, name, rows).length > 1);
}
