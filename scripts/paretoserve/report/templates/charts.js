// Figures: tools, a plot that is drawn when it is seen, and its data as a table.

const COLORS = [
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#8a6d00",
  "#56b4e9",
  "#000000",
  "#7a5195",
  "#5f6b7a",
  "#9c2a1f",
];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x"];

const waiting = new Map();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) if (entry.isIntersecting) start(entry.target);
  },
  { rootMargin: "300px" },
);
async function start(plot) {
  const draw = waiting.get(plot);
  if (!draw) return;
  waiting.delete(plot);
  watcher.unobserve(plot);
  const library = await plotly();
  plot.replaceChildren();
  await draw(library);
  plot.dataset.drawn = "";
}

// What is not in view is drawn once nothing else is to do, so that it is there to print.
function whenIdle(work) {
  (globalThis.requestIdleCallback ?? ((later) => setTimeout(later, 500)))(work);
}

// A figure: tools, the plot (drawn when it comes into view), and its data as a table.
function chart({ name, title, description, tools = [], traces, layout, height, asTable }) {
  const plot = make(
    "div",
    {
      class: "plot",
      role: "img",
      "aria-label": `${title}. ${description}`,
      style: `height:${height}px`,
      "data-chart": name,
    },
    make("p", { class: "waiting" }, "Drawing…"),
  );
  const table = make("details", {}, make("summary", {}, "Show as a table"));
  table.addEventListener("toggle", () => {
    if (table.open && !table.filled) {
      table.filled = true;
      table.append(asTable());
    }
  });
  const bar = make("div", { class: "tools" });
  const figure = make("figure", {}, make("figcaption", {}, title), bar, plot, table);
  const base = {
    margin: { l: 64, r: 16, t: 12, b: 48 },
    font: { family: "system-ui, sans-serif", size: 12, color: "#1c2430" },
    showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "#fff",
    hovermode: "closest",
    hoverlabel: { align: "left", bgcolor: "#fff", font: { color: "#1c2430", size: 12 } },
  };
  const options = {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { filename: `${FACTS.run}_${name}`, scale: 2 },
  };
  let drawn = null;
  figure.redraw = () => {
    if (drawn) drawn.react(plot, traces(), { ...base, ...layout() }, options);
  };
  figure.refill = () => {
    if (table.filled) {
      table.lastElementChild.remove();
      table.append(asTable());
    }
  };
  waiting.set(plot, async (library) => {
    drawn = library;
    await library.newPlot(plot, traces(), { ...base, ...layout() }, options);
  });
  bar.append(...tools.map((tool) => tool(figure)).flat());
  watcher.observe(plot);
  whenIdle(() => {
    if (plot.isConnected) start(plot);
  });
  return figure;
}
function axis(title, log, more = {}) {
  return {
    title: { text: title, standoff: 8 },
    type: log ? "log" : "linear",
    rangemode: "tozero",
    gridcolor: "#e3e7ec",
    linecolor: "#8a94a3",
    zeroline: false,
    ...(log ? { dtick: "D2", exponentformat: "none" } : {}),
    ...more,
  };
}
