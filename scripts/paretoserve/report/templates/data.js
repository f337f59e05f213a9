// The report's tables, unpacked from the page.

const FACTS = JSON.parse(document.getElementById("facts").textContent);

class Table {
  constructor(name, spec) {
    this.name = name;
    this.rows = spec.rows;
    this.specs = spec.columns;
    this.unpacked = {};
    this.indices = {};
  }
  has(name) {
    return name in this.specs;
  }
  column(name) {
    if (!(name in this.unpacked)) {
      const spec = this.specs[name];
      this.unpacked[name] = Array.isArray(spec)
        ? spec
        : spec.at.map((code) => (code < 0 ? null : spec.of[code]));
    }
    return this.unpacked[name];
  }
  get(row, name) {
    return this.column(name)[row];
  }
  all() {
    return Array.from({ length: this.rows }, (_, i) => i);
  }
  some(name) {
    return this.has(name) && this.column(name).some((value) => value !== null && value !== "");
  }
  // Rows in which a column has a value; the index is made once.
  where(name, value) {
    if (!(name in this.indices)) {
      const index = new Map();
      this.column(name).forEach((key, row) => {
        index.has(key) ? index.get(key).push(row) : index.set(key, [row]);
      });
      this.indices[name] = index;
    }
    return this.indices[name].get(value) || [];
  }
}

async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) =>
    c.charCodeAt(0),
  );
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const tables = {};
async function unpackTables(id) {
  for (const [name, spec] of Object.entries(JSON.parse(await unpack(id))))
    tables[name] = new Table(name, spec);
}
function once(make) {
  let made;
  return () => (made ??= make());
}
const details = once(() => unpackTables("details"));
const plotly = once(async () => {
  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
  return library();
});
function library() {
  return globalThis.Plotly;
}
