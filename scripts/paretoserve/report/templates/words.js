// How columns are called and numbers are written.

// How columns are headed and formatted: [heading, digits behind the point, or a word].
const COLUMNS = {
  model: ["Model"],
  workload: ["Workload"],
  system: ["System"],
  engine: ["Engine"],
  precision: ["Precision"],
  mtp: ["MTP"],
  isl: ["ISL", 0],
  osl: ["OSL", 0],
  ttft_limit_ms: ["TTFT limit (ms)", "short"],
  tpot_limit_ms: ["TPOT limit (ms)", "short"],
  total_gpus: ["GPUs", 0],
  mode: ["Mode", "badge"],
  serving_mode: ["Mode", "badge"],
  next_mode: ["Mode of the next", "badge"],
  cheapest_mode: ["Its mode", "badge"],
  experiment: ["Experiment"],
  rank: ["Rank", 0],
  deployment: ["Deployment"],
  verdict: ["Verdict"],
  reason: ["Reason"],
  role: ["Role"],
  step: ["Step"],
  tokens_per_s_per_gpu: ["tokens/s/gpu", 1],
  tokens_per_s_per_user: ["tokens/s/user", 1],
  ttft_ms: ["TTFT (ms)", 1],
  tpot_ms: ["TPOT (ms)", 2],
  request_rate_per_s: ["Requests/s", 2],
  concurrency: ["Concurrency", 0],
  gpus_used: ["GPUs used", 0],
  replicas: ["Replicas", 0],
  gpus_per_replica: ["GPUs per replica", 0],
  usd_per_million_tokens: ["$ per million tokens", "usd"],
  usd_per_hour: ["$ per hour", "usd"],
  gpus: ["GPUs", 0],
  meets_sla: ["Within SLA", "yes"],
  disagg_over_agg: ["disagg / agg", 2],
  ahead: ["Ahead", 2],
  equal: ["Equal", "yes"],
  agg_tokens_per_s_per_gpu: ["agg tokens/s/gpu", 1],
  disagg_tokens_per_s_per_gpu: ["disagg tokens/s/gpu", 1],
  options: ["Options", 0],
  next_system: ["Next best"],
  next_engine: ["Its engine"],
  times_next: ["Times the next", 2],
  cheapest_system: ["Cheapest system"],
  cheapest_usd_per_million_tokens: ["Its $ per million", "usd"],
  tpot_target_ms: ["TPOT target (ms)", "short"],
  speed: ["tokens/s/user at least", "short"],
  of_best: ["Of the best", "percent"],
  operator: ["Operator"],
  kind: ["Kind"],
  ms: ["ms", 3],
  of_step: ["Of the step", "percent"],
  step_total_ms: ["Step (ms)", 3],
  provenance: ["Provenance"],
  status: ["Status"],
  candidates: ["Candidates", 0],
  out_of_memory: ["Out of memory", 0],
  no_table: ["No table", 0],
  estimated: ["Estimated", 0],
  wide_ep: ["Wide EP", "yes"],
  change: ["Change"],
  because: ["Because of"],
  before_deployment: ["Before"],
  now_deployment: ["Now"],
  before_tokens_per_s_per_gpu: ["tokens/s/gpu before", 1],
  now_tokens_per_s_per_gpu: ["now", 1],
  now_over_before: ["now / before", 3],
  before_winner: ["Winner before"],
  now_winner: ["Winner now"],
  sla_probability: ["Probability of the SLA", "percent"],
  sla_probability_asked: ["SLA probability asked for", "percent"],
};

function format(name, value) {
  if (value === null || value === undefined) return "–";
  const kind = (COLUMNS[name] || known(name))[1];
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return value === "" ? "–" : value;
  if (kind === "usd")
    return value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(2) : value.toPrecision(2);
  if (kind === "percent") return `${(100 * value).toFixed(value < 0.0995 && value > 0 ? 1 : 0)} %`;
  if (kind === "short") return String(Number(value.toPrecision(4)));
  if (kind === "number") return Number.isInteger(value) ? String(value) : value.toFixed(2);
  return typeof kind === "number" ? value.toFixed(kind) : String(value);
}
// Columns of later versions that this page has no heading for: ttft_p90_ms is "TTFT p90 (ms)".
function known(name) {
  const words = name
    .replace(/^sim_/, "")
    .replace(/_ms$/, "")
    .replace("tokens_per_s_per_gpu", "tokens/s/gpu")
    .split("_")
    .map((word) => (/^(ttft|tpot|sla)$/.test(word) ? word.toUpperCase() : word));
  return [words.join(" ") + (name.endsWith("_ms") ? " (ms)" : ""), "number"];
}
function heading(name) {
  return (COLUMNS[name] || known(name))[0];
}
function load(table, row) {
  const name = table.get(row, "workload");
  return `${name ? `${name} ` : ""}${table.get(row, "isl")} / ${table.get(row, "osl")}`;
}
function loadKey(table, row) {
  const limit = table.has("tpot_limit_ms")
    ? `, TPOT ≤ ${format("tpot_limit_ms", table.get(row, "tpot_limit_ms"))} ms`
    : "";
  return `${load(table, row)}, TTFT ≤ ${format("ttft_limit_ms", table.get(row, "ttft_limit_ms"))} ms${limit}, ${table.get(row, "total_gpus")} GPUs`;
}
