// The sections of the page, and what happens when it is opened.

function show(id, ...content) {
  const section = document.getElementById(id);
  section.hidden = false;
  section.querySelector(".slot").append(...content);
}
const NEED_FACTS = ["workload", "isl", "osl", "ttft_limit_ms", "tpot_limit_ms", "total_gpus"];

// What the columns of the matrix of needs may be: the limits, or the loads.
const OVER = [
  {
    names: ["ttft_limit_ms", "tpot_limit_ms"],
    head: (t, r) =>
      `TTFT ≤ ${format("ttft_limit_ms", t.get(r, "ttft_limit_ms"))}, TPOT ≤ ${format("tpot_limit_ms", t.get(r, "tpot_limit_ms"))} ms`,
    what: "limits",
  },
  {
    names: ["tpot_limit_ms"],
    head: (t, r) => `TPOT ≤ ${format("tpot_limit_ms", t.get(r, "tpot_limit_ms"))} ms`,
    what: "TPOT limit",
  },
  { names: ["workload", "isl", "osl"], head: load, what: "ISL / OSL" },
];

// Needs as a matrix, over what leaves the fewest cells empty.
function decisionMatrix(table) {
  const layouts = OVER.map((over) => {
    const others = NEED_FACTS.filter((name) => !over.names.includes(name));
    const columns = [...new Map(table.all().map((row) => [over.head(table, row), row])).entries()]
      .sort(([, a], [, b]) =>
        over.names.reduceRight(
          (so, name) => so || compare(table.get(a, name), table.get(b, name)),
          0,
        ),
      )
      .map(([head]) => head);
    const of = grouped(table, table.all(), ["model", ...others]);
    return { over, others, columns, of, filled: table.rows / (columns.length * of.length) };
  });
  const wide = layouts.filter(({ columns }) => columns.length > 1 && columns.length <= 8);
  const { over, others, columns, of } = (wide.length ? wide : layouts).reduce((best, one) =>
    one.filled > best.filled ? one : best,
  );
  const heads = rowHeads(table, ["model", ...others]);
  const rows = of.map((rows) => ({ of: rows, heads: heads.of(rows[0]) }));
  const systems = [
    ...new Set([...distinct(table, "system"), ...distinct(table, "cheapest_system")]),
  ]
    .filter((name) => name !== null)
    .sort();
  const wash = (system) => {
    const color = COLORS[systems.indexOf(system) % COLORS.length];
    return shade(
      [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)),
      0.18,
    );
  };
  const units = [
    ["", "most tokens/s per GPU", "tokens_per_s_per_gpu", "tokens/s/gpu"],
    ["cheapest_", "lowest cost", "cheapest_usd_per_million_tokens", "$ per million output tokens"],
  ];
  const area = make("div");
  const draw = ([prefix, what, value, unit]) =>
    area.replaceChildren(
      drawMatrix(
        `The option with the ${what}: system, serving mode, ${unit}; over the ${over.what}`,
        heads.titles,
        rows,
        columns,
        (row, j) => {
          const at = row.of.find((r) => over.head(table, r) === columns[j]);
          if (at === undefined) return null;
          const system = table.get(at, `${prefix}system`);
          if (system === null)
            return {
              content: make(
                "a",
                { href: `#q${table.get(at, "question")}` },
                prefix ? "no price" : "no answer",
              ),
            };
          const engine = table.get(at, `${prefix}engine`);
          const link = make(
            "a",
            {
              class: "quiet",
              href: `#q${table.get(at, prefix ? "cheapest_question" : "question")}`,
            },
            make("b", {}, system),
            ` ${table.get(at, `${prefix}mode`)}`,
            make("br"),
            format(value, table.get(at, value)),
          );
          return {
            content: link,
            value: table.get(at, value),
            style: wash(system),
            title: `${engine}: ${prefix ? "" : table.get(at, "deployment")}`,
          };
        },
      ),
    );
  draw(units[0]);
  const offered = units.filter(([, , value]) => table.some(value));
  return make(
    "div",
    {},
    offered.length > 1
      ? make(
          "div",
          { class: "tools" },
          choice(
            "by",
            offered.map((u) => u[1]),
            0,
            (i) => draw(offered[i]),
          ),
        )
      : null,
    area,
  );
}

function decisions() {
  const table = tables.decisions;
  if (table.rows === 1 && table.get(0, "options") === 1) return;
  const needs = ["model", ...telling(table, NEED_FACTS)];
  const ways = telling(tables.verdicts, ["engine"]);
  const makers = {
    model: (row, value) => make("a", { href: `#q${table.get(row, "question")}` }, value),
    cheapest_system: (row, value) =>
      value === null ? "–" : make("a", { href: `#q${table.get(row, "cheapest_question")}` }, value),
  };
  const cost = table.some("usd_per_million_tokens")
    ? [
        "usd_per_million_tokens",
        "cheapest_system",
        "cheapest_mode",
        "cheapest_usd_per_million_tokens",
      ]
    : [];
  const next = table.some("times_next")
    ? ["times_next", "next_system", ...(ways.length ? ["next_engine"] : []), "next_mode"]
    : [];
  const names = [
    ...needs,
    "system",
    ...ways,
    "mode",
    "tokens_per_s_per_gpu",
    "tokens_per_s_per_user",
    "deployment",
    ...next,
    ...cost,
  ];
  const list = () =>
    drawTable(table, names, {
      makers,
      caption: `${table.rows} ${table.rows === 1 ? "need" : "needs"}; the option that serves most, and the next`,
    });
  if (table.rows === 1) {
    show("decision", list());
    return;
  }
  const more = make(
    "details",
    { class: "more" },
    make("summary", {}, "All figures, and the next best"),
  );
  more.addEventListener("toggle", () => {
    if (more.open && more.children.length === 1) more.append(list());
  });
  show("decision", decisionMatrix(table), more);
}

function systems() {
  const table = tables.systems;
  const columns = distinct(table, "system");
  if (columns.length < 2) return;
  const heads = rowHeads(table, ["model", ...NEED_FACTS]);
  const rows = grouped(table, table.all(), ["need"]).map((of) => ({ of, heads: heads.of(of[0]) }));
  const state = { unit: 0 };
  const area = make("div");
  const draw = () =>
    area.replaceChildren(
      drawMatrix(
        state.unit ? "Dollars per million output tokens" : "tokens/s per GPU",
        heads.titles,
        rows,
        columns,
        (row, j) => {
          const at = row.of.find((r) => table.get(r, "system") === columns[j]);
          if (at === undefined) return null;
          const name = state.unit ? "usd_per_million_tokens" : "tokens_per_s_per_gpu";
          const value = table.get(at, name);
          const share = table.get(at, "of_best");
          if (value === null)
            return {
              text: share === null ? "none" : "no price",
              title: share === null ? "no answer" : "no price",
            };
          const best = share === 1;
          const text = `${format(name, value)}${best ? " ★" : ""}`;
          return {
            content: make("a", { href: `#q${table.get(at, "question")}`, class: "quiet" }, text),
            value,
            best,
            style: shade([0, 100, 164], 0.08 + 0.82 * Math.max(0, share) ** 1.5),
            title: `${table.get(at, "mode")}, ${table.get(at, "engine")}: ${format("of_best", share)} of the best`,
          };
        },
      ),
    );
  draw();
  show(
    "systems",
    ...(table.some("usd_per_million_tokens")
      ? [
          make(
            "div",
            { class: "tools" },
            choice("unit", ["tokens/s/gpu", "$ per million tokens"], 0, (i) => {
              state.unit = i;
              draw();
            }),
          ),
        ]
      : []),
    area,
  );
}

function modesMap() {
  const table = tables.modes;
  const rows = table.all();
  if (rows.length < 2 || !table.some("disagg_over_agg")) return;
  const models = distinct(table, "model");
  const state = { model: 0 };
  const area = make("div");
  const tpots = distinct(table, "tpot_limit_ms").sort((a, b) => a - b);
  const draw = () => {
    const mine = rows.filter((row) => table.get(row, "model") === models[state.model]);
    const lines = grouped(table, mine, ["system", "isl", "osl"]).map((of) => ({
      of,
      heads: [table.get(of[0], "system"), load(table, of[0])],
    }));
    lines.sort((a, b) => compare(a.heads[0], b.heads[0]) || compare(a.heads[1], b.heads[1]));
    area.replaceChildren(
      drawMatrix(
        `${models[state.model]}: the better serving mode, and how many times the other's tokens/s/gpu`,
        ["System", "ISL / OSL"],
        lines,
        tpots.map((t) => `TPOT ≤ ${format("tpot_limit_ms", t)} ms`),
        (line, j) => {
          const at = line.of.find((r) => table.get(r, "tpot_limit_ms") === tpots[j]);
          if (at === undefined) return null;
          const ratio = table.get(at, "disagg_over_agg");
          const mode = table.get(at, "mode");
          const content = (text) =>
            make("a", { href: `#q${table.get(at, "question")}`, class: "quiet" }, text);
          const title = `disagg ${format("disagg_tokens_per_s_per_gpu", table.get(at, "disagg_tokens_per_s_per_gpu"))}, agg ${format("agg_tokens_per_s_per_gpu", table.get(at, "agg_tokens_per_s_per_gpu"))} tokens/s/gpu (${table.get(at, "engine")})`;
          if (ratio === null)
            return {
              content: content(`${mode} only`),
              title,
              style: shade(mode === "disagg" ? [0, 100, 164] : [184, 74, 0], 0.3),
            };
          if (table.get(at, "equal")) return { content: content("equal"), value: ratio, title };
          const strength = Math.min(1, Math.abs(Math.log2(ratio)));
          return {
            content: content(`${mode} ${format("ahead", table.get(at, "ahead"))}×`),
            value: ratio,
            title,
            style: shade(mode === "disagg" ? [0, 100, 164] : [184, 74, 0], 0.06 + 0.85 * strength),
          };
        },
      ),
    );
  };
  draw();
  show(
    "modes",
    ...(models.length > 1
      ? [
          make(
            "div",
            { class: "tools" },
            select("Model", models, (i) => {
              state.model = i;
              draw();
            }),
          ),
        ]
      : []),
    area,
  );
}

function tpotCurves() {
  const table = tables.tpot_curves;
  if (!table.rows) return;
  const groups = grouped(table, table.all(), [
    "model",
    "isl",
    "osl",
    "ttft_limit_ms",
    "total_gpus",
  ]);
  const label = (rows) => `${table.get(rows[0], "model")}, ${loadKey(table, rows[0])}`;
  const state = { group: 0, x: true, y: false, off: new Set() };
  const systems = distinct(table, "system");
  const color = (system) => COLORS[systems.indexOf(system) % COLORS.length];
  const traces = () =>
    grouped(table, groups[state.group], ["system"]).map((rows) => {
      const system = table.get(rows[0], "system");
      const i = systems.indexOf(system);
      return {
        name: system,
        visible: !state.off.has(system),
        mode: "lines+markers",
        x: rows.map((row) => table.get(row, "tpot_target_ms")),
        y: rows.map((row) => table.get(row, "tokens_per_s_per_gpu")),
        customdata: rows.map((row) =>
          ["mode", "deployment", "engine", "tpot_ms"].map((n) => table.get(row, n)),
        ),
        line: { color: color(system), dash: DASHES[i % 4], width: 2, shape: "hv" },
        marker: { symbol: SYMBOLS[i % 6], size: 7, color: color(system) },
        hovertemplate: `<b>${system}</b>, TPOT ≤ %{x} ms: %{y:.1f} tokens/s/gpu<br>%{customdata[0]}: %{customdata[1]}<br>%{customdata[2]}, TPOT %{customdata[3]:.2f} ms<extra></extra>`,
      };
    });
  const ticks = distinct(table, "tpot_target_ms").sort((a, b) => a - b);
  const figure = chart({
    name: "tpot",
    height: 420,
    title: "tokens/s per GPU within a TPOT target",
    description: `A line per system over TPOT targets of ${ticks[0]} to ${ticks[ticks.length - 1]} ms.`,
    traces,
    layout: () => ({
      xaxis: axis("TPOT target (ms)", state.x, {
        dtick: undefined,
        tickvals: innerWidth < 700 ? ticks.filter((_, i) => i % 3 === 0) : ticks,
        rangemode: "normal",
        tickangle: 0,
      }),
      yaxis: axis("throughput (tokens/s/gpu)", state.y),
    }),
    tools: [
      (f) => [
        ...(groups.length > 1
          ? [
              select("Model and load", groups.map(label), (i) => {
                state.group = i;
                f.redraw();
                f.refill();
              }),
            ]
          : [make("span", {}, label(groups[0]))]),
        ...systems.map((system) =>
          tick(
            system,
            true,
            (on) => {
              on ? state.off.delete(system) : state.off.add(system);
              f.redraw();
            },
            color(system),
          ),
        ),
        tick("log x", true, (on) => {
          state.x = on;
          f.redraw();
        }),
        tick("log y", false, (on) => {
          state.y = on;
          f.redraw();
        }),
      ],
    ],
    asTable: () =>
      drawTable(
        table,
        ["tpot_target_ms", "system", "tokens_per_s_per_gpu", "mode", "engine", "deployment"],
        { rows: groups[state.group], caption: label(groups[state.group]) },
      ),
  });
  show("tpot", figure);
}

// A matrix over a column of numbers, with a row per combination of `heads`.
function numberMatrix(id, table, heads, over, units, columnHead, title) {
  if (!table.rows) return;
  const lines = rowHeads(table, heads);
  const rows = grouped(table, table.all(), heads).map((of) => ({ of, heads: lines.of(of[0]) }));
  rows.sort((a, b) => lines.titles.reduce((so, _, k) => so || compare(a.heads[k], b.heads[k]), 0));
  const columns = distinct(table, over).sort((a, b) => a - b);
  const state = { unit: 0 };
  const area = make("div");
  const draw = () =>
    area.replaceChildren(
      drawMatrix(units[state.unit][2], lines.titles, rows, columns.map(columnHead), (row, j) => {
        const at = row.of.find((r) => table.get(r, over) === columns[j]);
        if (at === undefined) return null;
        const value = table.get(at, units[state.unit][0]);
        return {
          text: value === null ? "no price" : format(units[state.unit][0], value),
          value,
          title: title(at),
        };
      }),
    );
  draw();
  const offered = units.filter(([name]) => table.some(name));
  show(
    id,
    ...(offered.length > 1
      ? [
          make(
            "div",
            { class: "tools" },
            choice(
              "unit",
              offered.map((u) => u[1]),
              0,
              (i) => {
                state.unit = units.indexOf(offered[i]);
                draw();
              },
            ),
          ),
        ]
      : []),
    area,
  );
}

function questions() {
  const table = tables.verdicts;
  if (table.rows === 1) {
    const slot = make("div");
    show("questions", slot);
    details().then(() => slot.append(questionDetails(0)));
    return;
  }
  const opened = new Map();
  // Precision and the like follow from model and system mostly: columns only where options differ in them.
  const options = grouped(table, table.all(), ["need", "system", "engine"]).filter(
    (rows) => rows.length > 1,
  );
  const finer = ["precision", "mtp", "wide_ep"].filter((name) =>
    options.some((rows) => telling(table, [name], rows).length),
  );
  const facts = [...telling(table, ["system", "engine"]), ...finer, ...telling(table, NEED_FACTS)];
  const toggle = async (line, row, span, button) => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", open);
    line.classList.toggle("open", open);
    if (!open) {
      line.nextElementSibling?.classList.contains("detail") && line.nextElementSibling.remove();
      return;
    }
    await details();
    if (!opened.has(row)) opened.set(row, questionDetails(row));
    if (!line.nextElementSibling?.classList.contains("detail"))
      line.after(make("tr", { class: "detail" }, make("td", { colspan: span }, opened.get(row))));
    for (const plot of opened.get(row).querySelectorAll(".plot[data-drawn]"))
      library().Plots.resize(plot);
  };
  const expand = (line, row, span) => {
    const button = make(
      "button",
      { class: "open", type: "button", "aria-expanded": "false" },
      table.get(row, "model"),
    );
    button.addEventListener("click", () => toggle(line, row, span, button));
    line.firstElementChild.replaceChildren(button);
    line.id = `q${row}`;
  };
  const names = [
    "model",
    ...facts,
    "mode",
    "tokens_per_s_per_gpu",
    "tokens_per_s_per_user",
    ...(table.some("usd_per_million_tokens") ? ["usd_per_million_tokens"] : []),
    "verdict",
  ];
  const list = drawTable(table, names, {
    expand,
    caption: `${table.rows} ${table.rows === 1 ? "question" : "questions"}`,
  });
  const text = (row) =>
    [...new Set(["model", "system", "engine", "precision", "verdict", "isl", "osl", "experiment"])]
      .map((n) => table.get(row, n))
      .join(" ")
      .toLowerCase();
  const search = make("input", {
    type: "search",
    placeholder: "e.g. h200 disagg",
    "aria-label": "Filter the questions",
    oninput: (e) => {
      const words = e.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      let kept = 0;
      list.filter((row) => {
        const hit = words.every((word) => text(row).includes(word));
        kept += hit;
        return hit;
      });
      say(`${kept} questions`);
    },
  });
  show(
    "questions",
    ...(table.rows > 5
      ? [make("div", { class: "tools" }, make("label", {}, "Filter ", search))]
      : []),
    list,
  );
  const open = async (row) => {
    const line = list.showRow(row);
    if (!line) return;
    const button = line.querySelector("button.open");
    if (button.getAttribute("aria-expanded") !== "true") button.click();
    await details();
    line.scrollIntoView({ block: "start" });
    button.focus({ preventScroll: true });
  };
  const follow = () => {
    const found = /^#q(\d+)$/.exec(location.hash);
    if (found) open(Number(found[1]));
  };
  addEventListener("hashchange", follow);
  document.addEventListener("click", (e) => {
    if (e.target.closest?.(`a[href="${location.hash}"]`)) follow();
  });
  follow();
}

function unanswered() {
  const table = tables.unanswered;
  if (!table.rows) return;
  const groups = grouped(table, table.all(), ["kind", "group"]).sort((a, b) => b.length - a.length);
  show(
    "unanswered",
    make(
      "ul",
      { class: "reasons" },
      groups.map((rows) => {
        const label = make(
          "summary",
          {},
          make("span", { class: "count" }, String(rows.length)),
          `${table.get(rows[0], "kind")}: ${table.get(rows[0], "group")}`,
        );
        const box = make("details", { class: "more" }, label);
        box.addEventListener("toggle", () => {
          if (box.open && box.children.length === 1)
            box.append(drawTable(table, ["experiment", "serving_mode", "reason"], { rows }));
        });
        return make("li", {}, box);
      }),
    ),
  );
}

function changes() {
  const section = document.getElementById("changes");
  if (!section.dataset.baseline) return;
  const table = tables.changes;
  show(
    "changes",
    table.rows
      ? drawTable(
          table,
          [
            "experiment",
            "change",
            "because",
            "before_tokens_per_s_per_gpu",
            "now_tokens_per_s_per_gpu",
            "now_over_before",
            "before_deployment",
            "now_deployment",
            "before_winner",
            "now_winner",
          ],
          { caption: "Experiments whose best configuration, throughput or winner changed" },
        )
      : make("p", {}, "No experiment has another best configuration or throughput."),
  );
}

function navigation() {
  const shown = [...document.querySelectorAll("main > section:not([hidden])")];
  document
    .getElementById("nav")
    .append(
      ...shown.map((section) =>
        make(
          "li",
          {},
          make(
            "a",
            { href: `#${section.id}` },
            section.dataset.nav || section.querySelector("h2").textContent,
          ),
        ),
      ),
    );
}

// Charts in view are as wide on paper as the page is.
addEventListener("beforeprint", () => {
  for (const plot of document.querySelectorAll(".plot[data-drawn]"))
    library().relayout(plot, { width: 660, autosize: false });
});
addEventListener("afterprint", () => {
  for (const plot of document.querySelectorAll(".plot[data-drawn]"))
    library().relayout(plot, { width: null, autosize: true });
});

async function main() {
  await unpackTables("overview");
  decisions();
  systems();
  modesMap();
  tpotCurves();
  numberMatrix(
    "speeds",
    tables.user_speeds,
    ["model", "workload", "isl", "osl", "ttft_limit_ms", "total_gpus", "system"],
    "speed",
    [
      [
        "tokens_per_s_per_gpu",
        "tokens/s per GPU",
        "tokens/s per GPU while every user gets at least so many tokens/s",
      ],
      [
        "usd_per_million_tokens",
        "$ per million output tokens",
        "$ per million output tokens while every user gets at least so many tokens/s",
      ],
    ],
    (speed) => `≥ ${format("speed", speed)}`,
    (at) =>
      `${tables.user_speeds.get(at, "mode")}, ${tables.user_speeds.get(at, "engine")}: ${tables.user_speeds.get(at, "deployment")}`,
  );
  numberMatrix(
    "gpus",
    tables.fewest_gpus,
    ["model", ...NEED_FACTS.slice(0, 5), "system"],
    "request_rate_per_s",
    [
      ["gpus", "GPUs", "GPUs for so many requests/s"],
      ["usd_per_hour", "$ per hour", "$ per hour for so many requests/s"],
    ],
    (rate) => format("speed", rate),
    (at) =>
      `${tables.fewest_gpus.get(at, "replicas")} replicas of ${tables.fewest_gpus.get(at, "gpus_per_replica")} GPUs, ${tables.fewest_gpus.get(at, "mode")}: ${tables.fewest_gpus.get(at, "deployment")}`,
  );
  questions();
  unanswered();
  changes();
  navigation();
  document.documentElement.dataset.ready = "";
}
globalThis.report = { tables, details, plotly, Table };
main();
