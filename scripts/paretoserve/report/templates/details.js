// A question opened: frontier, best configurations, step time, memory, provenance.

const KINDS = {
  GEMM: "#0072b2",
  attention: "#d55e00",
  experts: "#8a6d00",
  communication: "#009e73",
  other: "#8793a1",
};
const MEMORY = {
  weights: ["weights", "#0072b2"],
  kv_cache: ["KV cache", "#d55e00"],
  activations: ["activations", "#009e73"],
  buffers: ["buffers", "#8793a1"],
};
const SHARES = {
  measured: ["measured", "#0a6b4b"],
  interpolated: ["interpolated", "#5aa469"],
  extrapolated: ["extrapolated", "#e0a030"],
  substituted: ["stand-in", "#cc79a7"],
  speed_of_light: ["speed of light", "#a33b2f"],
};
const ROLES = ["agg", "prefill", "decode"];

function frontierChart(question, number) {
  const points = tables.frontier;
  const own = distinct(
    tables.experiments,
    "experiment",
    tables.experiments.where("question", number),
  );
  const series = own
    .map((experiment) => ({
      experiment,
      rows: points.where("experiment", experiment),
      on: true,
      mode: tables.experiments.get(
        tables.experiments.where("experiment", experiment)[0],
        "serving_mode",
      ),
    }))
    .filter((one) => one.rows.length);
  const verdicts = tables.verdicts;
  const rivals = verdicts
    .where("need", verdicts.get(question, "need"))
    .filter(
      (row) =>
        row !== question &&
        FACTS.detailed.includes(row) &&
        verdicts.get(row, "experiment") !== null,
    )
    .map((row, i) => ({
      rows: points.where("experiment", verdicts.get(row, "experiment")),
      color: COLORS[(i + 2) % COLORS.length],
      label: `${verdicts.get(row, "system")}, ${verdicts.get(row, "engine")}, ${verdicts.get(row, "mode")}`,
    }));
  if (!series.length)
    return make("p", {}, "No deployment keeps the TTFT limit, so there is no frontier to draw.");
  const limit = tables.verdicts.get(question, "tpot_limit_ms");
  const state = { x: false, y: false, rivals: false };
  const color = (one) => {
    const hues = one.mode === "disagg" ? ["#0072b2", "#56b4e9"] : ["#d55e00", "#8a6d00"];
    return hues[series.filter((other) => other.mode === one.mode).indexOf(one) % 2];
  };
  const get = (rows, name) => rows.map((row) => points.get(row, name));
  const hover =
    "%{customdata[0]}<br>%{y:.1f} tokens/s/gpu, %{x:.1f} tokens/s/user<br>TTFT %{customdata[1]:.1f} ms, TPOT %{customdata[2]:.2f} ms<br>concurrency %{customdata[3]}";
  const traces = () =>
    series.flatMap((one) => {
      const data = one.rows.map((row) =>
        ["deployment", "ttft_ms", "tpot_ms", "concurrency"].map((name) => points.get(row, name)),
      );
      const best = tables.configurations.where("experiment", one.experiment);
      const configuration = (name) => best.map((row) => tables.configurations.get(row, name));
      return [
        {
          name: one.experiment,
          visible: one.on,
          x: get(one.rows, "tokens_per_s_per_user"),
          y: get(one.rows, "tokens_per_s_per_gpu"),
          customdata: data,
          mode: "lines+markers",
          line: {
            shape: "vh",
            color: color(one),
            width: 2,
            dash: one.mode === "disagg" ? "solid" : "dash",
          },
          marker: {
            size: 6,
            color: color(one),
            symbol: one.mode === "disagg" ? "circle" : "square",
          },
          hovertemplate: `<b>${one.experiment}</b><br>${hover}<extra></extra>`,
        },
        {
          name: `${one.experiment} best`,
          visible: one.on,
          x: configuration("tokens_per_s_per_user"),
          y: configuration("tokens_per_s_per_gpu"),
          customdata: best.map((row) =>
            ["deployment", "ttft_ms", "tpot_ms", "concurrency", "rank"].map((name) =>
              tables.configurations.get(row, name),
            ),
          ),
          mode: "markers",
          marker: {
            size: best.map((_, k) => (k ? 10 : 15)),
            symbol: "star",
            color: color(one),
            line: { color: "#000", width: 1 },
          },
          hovertemplate: `<b>${one.experiment} rank %{customdata[4]}</b><br>${hover}<extra></extra>`,
        },
      ];
    });
  const rivalTraces = () =>
    !state.rivals
      ? []
      : rivals.map(({ rows, color, label }) => ({
          name: label,
          x: get(rows, "tokens_per_s_per_user"),
          y: get(rows, "tokens_per_s_per_gpu"),
          customdata: rows.map((row) =>
            ["deployment", "ttft_ms", "tpot_ms", "concurrency"].map((name) =>
              points.get(row, name),
            ),
          ),
          mode: "lines",
          line: { shape: "vh", color, width: 1.5 },
          hovertemplate: `<b>${label}</b><br>${hover}<extra></extra>`,
        }));
  const layout = () => {
    const shown = [...series, ...(state.rivals ? rivals : [])];
    const users = shown.flatMap((one) => get(one.rows, "tokens_per_s_per_user"));
    const end = Math.max(...users, 1000 / limit) * 1.06;
    const begin = state.x ? Math.min(...users, 1000 / limit) * 0.9 : 0;
    return {
      xaxis: axis("speed of one user (tokens/s/user)", state.x, {
        range: state.x ? [Math.log10(begin), Math.log10(end)] : [0, end],
        autorange: false,
      }),
      yaxis: axis("throughput (tokens/s/gpu)", state.y),
      shapes: [
        {
          type: "rect",
          name: "infeasible",
          xref: "x",
          yref: "paper",
          x0: state.x ? begin : 0,
          x1: 1000 / limit,
          y0: 0,
          y1: 1,
          fillcolor: "#98a2af",
          opacity: 0.28,
          line: { width: 0 },
          layer: "below",
        },
        {
          type: "rect",
          name: "sla",
          xref: "x",
          yref: "paper",
          x0: 1000 / limit,
          x1: end,
          y0: 0,
          y1: 1,
          fillcolor: "#2a9d60",
          opacity: 0.07,
          line: { width: 0 },
          layer: "below",
        },
        {
          type: "line",
          xref: "x",
          yref: "paper",
          x0: 1000 / limit,
          x1: 1000 / limit,
          y0: 0,
          y1: 1,
          line: { color: "#0a6b4b", width: 1.5, dash: "dash" },
        },
      ],
      annotations: [
        {
          xref: "x",
          yref: "paper",
          x: state.x ? Math.log10(1000 / limit) : 1000 / limit,
          y: 1,
          xanchor: "left",
          yanchor: "top",
          showarrow: false,
          text: ` within TPOT ≤ ${format("tpot_limit_ms", limit)} ms →`,
          font: { color: "#0a6b4b" },
        },
      ],
    };
  };
  const legend = make(
    "span",
    { hidden: true },
    rivals
      .map(({ color, label }) => [
        make("span", { class: "swatch", style: `background:${color}` }),
        ` ${label} `,
      ])
      .flat(),
  );
  return chart({
    name: "frontier",
    height: 400,
    title: "Pareto frontier",
    traces: () => [...traces(), ...rivalTraces()],
    layout,
    description: `Throughput per GPU against the speed of one user, for ${series.map((s) => s.experiment).join(" and ")}. Stars are the best configurations. The grey side misses the TPOT limit of ${limit} ms.`,
    tools: [
      (figure) => [
        ...series.map((one) =>
          tick(
            one.experiment,
            true,
            (on) => {
              one.on = on;
              figure.redraw();
            },
            color(one),
          ),
        ),
        tick("log x", false, (on) => {
          state.x = on;
          figure.redraw();
        }),
        tick("log y", false, (on) => {
          state.y = on;
          figure.redraw();
        }),
        ...(rivals.length
          ? [
              tick("other options of this need", false, (on) => {
                state.rivals = on;
                legend.hidden = !on;
                figure.redraw();
              }),
              legend,
            ]
          : []),
      ],
    ],
    asTable: () =>
      drawTable(
        points,
        [
          "experiment",
          "tokens_per_s_per_user",
          "tokens_per_s_per_gpu",
          "ttft_ms",
          "tpot_ms",
          "concurrency",
          "meets_sla",
          "deployment",
          "usd_per_million_tokens",
        ].filter((n) => n !== "usd_per_million_tokens" || points.some(n)),
        { rows: series.flatMap((one) => one.rows), caption: "Points of the frontier" },
      ),
  });
}

function configurationName(row) {
  const best = tables.configurations;
  return `${best.get(row, "experiment")}, rank ${best.get(row, "rank")}: ${best.get(row, "deployment")}`;
}

function timeChart(best) {
  const all = tables.operators;
  const state = { share: true, off: new Set() };
  const chosen = () =>
    all
      .where("experiment", tables.configurations.get(best.row, "experiment"))
      .filter((row) => all.get(row, "rank") === tables.configurations.get(best.row, "rank"));
  const steps = (rows) =>
    grouped(all, rows, ["role", "step"]).map((of) => {
      const [role, step] = ["role", "step"].map((name) => all.get(of[0], name));
      return {
        rows: of,
        label: `${role === step ? step : `${role}, ${step}`} step<br>${format("ms", all.get(of[0], "step_total_ms"))} ms`,
      };
    });
  const traces = () => {
    const found = steps(chosen());
    const names = distinct(all, "operator", chosen());
    const order = Object.keys(KINDS);
    const kind = (name) => all.get(all.where("operator", name)[0], "kind");
    names.sort((a, b) => order.indexOf(kind(a)) - order.indexOf(kind(b)));
    return names
      .filter((name) => !state.off.has(kind(name)))
      .map((name) => {
        const rows = found.map((step) =>
          step.rows.find((row) => all.get(row, "operator") === name),
        );
        const value = state.share ? "of_step" : "ms";
        return {
          type: "bar",
          orientation: "h",
          name,
          y: found.map((step) => step.label),
          x: rows.map((row) => (row === undefined ? null : all.get(row, value))),
          customdata: rows.map((row) =>
            row === undefined
              ? []
              : ["ms", "of_step", "provenance", "kind"].map((n) => all.get(row, n)),
          ),
          text: rows.map((row) =>
            row !== undefined && all.get(row, "of_step") > 0.07 ? name : "",
          ),
          textposition: "inside",
          insidetextanchor: "middle",
          constraintext: "inside",
          textangle: 0,
          marker: { color: KINDS[kind(name)], line: { color: "#fff", width: 1 } },
          hovertemplate: `<b>${name}</b> (%{customdata[3]})<br>%{customdata[0]:.3f} ms, %{customdata[1]:.1%} of the step<br>%{customdata[2]}<extra></extra>`,
        };
      });
  };
  const count = steps(chosen()).length;
  return chart({
    name: "time",
    height: 90 + 62 * count,
    title: "Where the time of a step goes",
    description: `Operators of each step, stacked, of ${configurationName(best.row)}.`,
    traces,
    layout: () => ({
      barmode: "stack",
      uniformtext: { minsize: 9, mode: "hide" },
      margin: { l: 110, r: 16, t: 8, b: 44 },
      yaxis: { autorange: "reversed", automargin: true },
      xaxis: axis(
        state.share ? "share of the step" : "ms",
        false,
        state.share ? { tickformat: ".0%" } : {},
      ),
    }),
    tools: [
      (figure) => [
        choice("unit", ["share", "ms"], 0, (i) => {
          state.share = i === 0;
          figure.redraw();
        }),
        ...distinct(all, "kind", chosen())
          .sort((a, b) => Object.keys(KINDS).indexOf(a) - Object.keys(KINDS).indexOf(b))
          .map((kind) =>
            tick(
              kind,
              true,
              (on) => {
                on ? state.off.delete(kind) : state.off.add(kind);
                figure.redraw();
              },
              KINDS[kind],
            ),
          ),
      ],
    ],
    asTable: () =>
      drawTable(all, ["role", "step", "operator", "kind", "ms", "of_step", "provenance"], {
        rows: chosen(),
        caption: configurationName(best.row),
      }),
  });
}

// A bar per worker, stacked of columns `<role>_<part><suffix>`.
function partsChart(best, { name, title, parts, suffix, unit, tickformat, hover, limit }) {
  const table = tables.configurations;
  const roles = () => ROLES.filter((role) => table.get(best.row, `${role}_workers`) !== null);
  parts = Object.fromEntries(
    Object.entries(parts).filter(([part]) => table.has(`agg_${part}${suffix}`)),
  );
  const state = { off: new Set() };
  const value = (role, part) => table.get(best.row, `${role}_${part}${suffix}`);
  const traces = () => {
    const bars = Object.entries(parts)
      .filter(([part]) => !state.off.has(part))
      .map(([part, [label, color]]) => ({
        type: "bar",
        orientation: "h",
        name: label,
        y: roles(),
        x: roles().map((role) => value(role, part)),
        marker: { color, line: { color: "#fff", width: 1 } },
        hovertemplate: `<b>%{y}</b> ${label}<br>${hover}<extra></extra>`,
      }));
    if (limit)
      bars.push({
        type: "scatter",
        mode: "markers",
        name: "limit",
        y: roles(),
        x: roles().map((role) => table.get(best.row, `${role}_memory_limit_gib`)),
        marker: { symbol: "line-ns-open", size: 26, color: "#000", line: { width: 3 } },
        hovertemplate: "<b>%{y}</b> may take<br>%{x:.1f} GiB<extra></extra>",
      });
    return bars;
  };
  const names = [
    "role",
    ...Object.keys(parts).map((part) => part + suffix),
    ...(limit ? ["memory_gib", "memory_limit_gib"] : []),
  ];
  return chart({
    name,
    title,
    height: 84 + 44 * roles().length,
    description: `Of each worker's GPU, ${configurationName(best.row)}.`,
    traces,
    layout: () => ({
      barmode: "stack",
      margin: { l: 64, r: 16, t: 8, b: 44 },
      yaxis: { autorange: "reversed" },
      xaxis: axis(unit, false, tickformat ? { tickformat, range: [0, 1] } : {}),
    }),
    tools: [
      (figure) => [
        ...Object.entries(parts).map(([part, [label, color]]) =>
          tick(
            label,
            true,
            (on) => {
              on ? state.off.delete(part) : state.off.add(part);
              figure.redraw();
            },
            color,
          ),
        ),
        ...(limit ? [make("span", {}, "┃ limit")] : []),
      ],
    ],
    asTable: () => {
      const heads = names.map((n) => n.replace(/_/g, " ").replace(" gib", " (GiB)"));
      const cells = roles().map((role) => [
        role,
        ...names.slice(1).map((n) => table.get(best.row, `${role}_${n}`)),
      ]);
      return scrollable(
        title,
        make(
          "table",
          {},
          make(
            "thead",
            {},
            make(
              "tr",
              {},
              heads.map((h, i) => make("th", { scope: "col", class: i ? "n" : null }, h)),
            ),
          ),
          make(
            "tbody",
            {},
            cells.map((line) =>
              make(
                "tr",
                {},
                line.map((v, i) =>
                  i
                    ? make(
                        "td",
                        { class: "n" },
                        suffix === "_share" ? format("of_step", v) : v.toFixed(2),
                      )
                    : make("th", { scope: "row" }, v),
                ),
              ),
            ),
          ),
        ),
      );
    },
  });
}

function bestTable(rows) {
  const table = tables.configurations;
  const listed = new Set([
    "question",
    "experiment",
    "rank",
    "serving_mode",
    "total_gpus",
    "replicas",
    "gpus_per_replica",
    "concurrency_per_replica",
    "usd_per_million_tokens",
    "generator_config",
    "start_files",
    "verify",
    "benchmark",
    "deployment",
  ]);
  const more = Object.keys(table.specs).filter(
    (n) => !listed.has(n) && !/^(agg|prefill|decode|sim)_/.test(n),
  );
  const workers = (row) => ROLES.filter((role) => table.get(row, `${role}_workers`) !== null);
  const link = (row, name, text) => make("a", { href: encodeURI(table.get(row, name)) }, text);
  const makers = {
    start_files: (row, value) =>
      value === null
        ? make(
            "small",
            {
              title: `Of a large run only the winners' files are written; these by: snakemake results/${FACTS.run}/${table.get(row, "experiment")}/config.yaml`,
            },
            "not written",
          )
        : make(
            "span",
            {},
            link(row, "start_files", "start"),
            " · ",
            link(row, "generator_config", "config"),
            " · ",
            link(row, "verify", "verify"),
            " · ",
            link(row, "benchmark", "benchmark"),
          ),
    deployment: (row, value) =>
      make(
        "span",
        {},
        value,
        make("br"),
        make(
          "small",
          {},
          workers(row)
            .map(
              (role) =>
                `${role === "agg" ? "" : `${role} `}batch ${table.get(row, `${role}_batch_size`)}`,
            )
            .join(", "),
        ),
      ),
  };
  COLUMNS.start_files = ["Files"];
  const figures = ["tokens_per_s_per_gpu", "tokens_per_s_per_user", "ttft_ms", "tpot_ms"];
  const cost = table.some("usd_per_million_tokens") ? ["usd_per_million_tokens"] : [];
  const names = [
    "serving_mode",
    "rank",
    ...figures,
    "deployment",
    "start_files",
    ...cost,
    ...more.filter((name) => !figures.includes(name)),
    "experiment",
  ];
  return drawTable(table, names, {
    rows,
    makers,
    caption: "Best configurations within the SLA, one per combination of worker layouts",
  });
}

// What a simulated benchmark of one replica would measure, where `best` has it.
function simulatedTable(rows) {
  const table = tables.configurations;
  const ends = (name) => ["low", "high"].map((end) => name.replace(/(_ms)?$/, `_${end}$1`));
  const withInterval = ["sim_ttft_ms", "sim_tpot_ms", "sim_tokens_per_s_per_gpu"].filter((name) =>
    ends(name).every((end) => table.has(end)),
  );
  const brief = (value) => String(Number(value.toPrecision(value < 1000 ? 3 : 4)));
  const inBrackets = new Set(withInterval.flatMap(ends));
  const names = Object.keys(table.specs).filter(
    (name) =>
      name.startsWith("sim_") &&
      !inBrackets.has(name) &&
      rows.some((row) => table.get(row, name) !== null && table.get(row, name) !== ""),
  );
  if (!names.length) return null;
  if (names.every((name) => name === "sim_reason")) {
    const reasons = new Set(rows.map((row) => table.get(row, "sim_reason")));
    return make("p", { class: "fine" }, `No benchmark of these: ${[...reasons].join("; ")}.`);
  }
  const makers = Object.fromEntries(
    withInterval.map((name) => [
      name,
      (row, value) => {
        const [low, high] = ends(name).map((end) => table.get(row, end));
        return value === null || low === null
          ? format(name, value)
          : `${brief(value)} (${brief(low)}–${brief(high)})`;
      },
    ]),
  );
  const drawn = drawTable(table, ["experiment", "rank", "sla_probability", ...names], {
    rows,
    makers,
    caption: `What a benchmark of one replica would measure, ${FACTS.simulated}`,
  });
  const certainty =
    "In brackets: where 90 % of such means lay on real runs that the calibration had not seen; the probability of the SLA is from the same runs. Ranks are by the planner's estimates, which have no interval.";
  return make("div", {}, drawn, make("p", { class: "fine" }, certainty));
}

function questionDetails(question) {
  const verdicts = tables.verdicts;
  const box = make("div", { "data-question": question });
  const sure = verdicts.get(question, "sla_probability_asked");
  const facts =
    ["precision", "mtp"]
      .map((n) => verdicts.get(question, n))
      .filter(Boolean)
      .join(", ") + (verdicts.get(question, "wide_ep") ? ", wide EP" : "");
  box.append(
    make("p", { class: "verdict" }, verdicts.get(question, "verdict")),
    make(
      "p",
      { class: "fine" },
      `${verdicts.get(question, "model")} on ${verdicts.get(question, "total_gpus")} × ${verdicts.get(question, "system")}, ${verdicts.get(question, "engine")}, ${facts}; ISL / OSL ${load(verdicts, question)}, TTFT ≤ ${format("ttft_limit_ms", verdicts.get(question, "ttft_limit_ms"))} ms, TPOT ≤ ${format("tpot_limit_ms", verdicts.get(question, "tpot_limit_ms"))} ms${sure === null ? "" : `, kept with at least ${format("sla_probability", sure)} probability`}`,
    ),
  );
  if (!FACTS.detailed.includes(question)) {
    box.append(
      make(
        "p",
        {},
        "This run has more questions than the page has room for. The frontier, configurations and operators of this one are in report/frontier.csv, configurations.csv and operators.csv.",
      ),
    );
    return box;
  }
  box.append(frontierChart(question, question));
  const rows = tables.configurations
    .where("question", question)
    .slice()
    .sort(
      (a, b) =>
        tables.configurations.get(b, "tokens_per_s_per_gpu") -
        tables.configurations.get(a, "tokens_per_s_per_gpu"),
    );
  if (rows.length) {
    box.append(...[bestTable(rows), simulatedTable(rows)].filter(Boolean));
    const best = { row: rows[0] };
    const charts = make("div");
    const draw = () =>
      charts.replaceChildren(
        timeChart(best),
        make(
          "div",
          { class: "pair" },
          partsChart(best, {
            name: "memory",
            title: "Memory of one GPU",
            parts: MEMORY,
            suffix: "_gib",
            unit: "GiB",
            hover: "%{x:.2f} GiB",
            limit: true,
          }),
          partsChart(best, {
            name: "provenance",
            title: "Where the estimate comes from",
            parts: SHARES,
            suffix: "_share",
            unit: "share of the step time",
            tickformat: ".0%",
            hover: "%{x:.1%} of the step time",
          }),
        ),
      );
    box.append(
      make(
        "div",
        { class: "tools" },
        select("Inside of", rows.map(configurationName), (i) => {
          best.row = rows[i];
          draw();
        }),
      ),
      charts,
    );
    draw();
  }
  const tried = tables.experiments.where("question", question);
  box.append(
    make(
      "details",
      { class: "more" },
      make("summary", {}, "What was searched"),
      drawTable(
        tables.experiments,
        [
          "experiment",
          "serving_mode",
          "status",
          "candidates",
          "out_of_memory",
          "no_table",
          "estimated",
          "meets_ttft",
          "reason",
        ],
        {
          rows: tried,
          caption:
            "Worker candidates: how many there were, did not fit, lack a table, were estimated; deployments within the TTFT limit",
        },
      ),
    ),
  );
  return box;
}
