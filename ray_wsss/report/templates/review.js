// Verdicts on the gallery's images: kept in the browser for each run, saved as review.csv and loaded again.

const VERDICTS = ["accept", "reject"];

class Review {
  // ids: those of the gallery's images. Verdicts on other images of the run, from a loaded file, are kept too.
  constructor(key, ids) {
    this.slot = `ray-wsss-review-${key}`;
    this.ids = ids;
    this.verdicts = new Map();
    this.isKept = true;
    try {
      const kept = JSON.parse(localStorage.getItem(this.slot) || "[]");
      this.verdicts = new Map(kept.filter(([, entry]) => VERDICTS.includes(entry.verdict)));
    } catch { this.isKept = false; }
  }

  of(id) {
    return this.verdicts.get(id)?.verdict ?? "";
  }

  // The same verdict a second time takes it back.
  give(id, verdict) {
    if (this.of(id) === verdict) this.verdicts.delete(id);
    else this.verdicts.set(id, { verdict, time: new Date().toISOString().slice(0, 19) + "Z" });
    this.keep();
  }

  keep() {
    try {
      localStorage.setItem(this.slot, JSON.stringify([...this.verdicts]));
      this.isKept = true;
    } catch { this.isKept = false; }
  }

  told() {
    const count = (verdict) => this.ids.filter((id) => this.of(id) === verdict).length;
    const shown = new Set(this.ids), others = [...this.verdicts.keys()].filter((id) => !shown.has(id)).length;
    const parts = [`${count("accept")} accepted`, `${count("reject")} rejected`, `${count("")} left`];
    if (others) parts.push(`${others} verdicts on images that are not in this gallery`);
    if (!this.isKept) parts.push("this browser keeps nothing: save review.csv");
    return parts.join(", ");
  }

  csv() {
    const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [...this.verdicts].map(([id, entry]) => [cell(id), entry.verdict, entry.time].join(","));
    return ["image_id,verdict,time", ...lines, ""].join("\n");
  }

  // Add the verdicts of a file; they replace those on the same images. Throws an Error about what is wrong.
  load(text) {
    const rows = parseCsv(text.replace(/^\ufeff/, ""));
    const names = rows.length ? rows[0].cells : [];
    const at = Object.fromEntries(["image_id", "verdict", "time"].map((name) => [name, names.indexOf(name)]));
    if (at.image_id < 0 || at.verdict < 0) throw new Error("line 1: expected the columns image_id,verdict");
    const found = rows.slice(1).map(({ cells, line }) => {
      const verdict = cells[at.verdict];
      if (!VERDICTS.includes(verdict)) throw new Error(`line ${line}: the verdict is '${verdict ?? ""}'; expected accept or reject`);
      return [cells[at.image_id], { verdict, time: cells[at.time] ?? "" }];
    });
    for (const [id, entry] of found) this.verdicts.set(id, entry);
    this.keep();
    return found.length;
  }
}

// Rows of a CSV file (RFC 4180) without blank lines, each with the number of its first line.
function parseCsv(text) {
  const rows = [];
  let cells = [], cell = "", quoted = false, line = 1, first = 1;
  const endRow = () => {
    cells.push(cell);
    if (cells.length > 1 || cell) rows.push({ cells, line: first });
    cells = [];
    cell = "";
  };
  for (let at = 0; at < text.length; at += 1) {
    const sign = text[at];
    if (sign === "\n") line += 1;
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[at + 1] === '"') { cell += '"'; at += 1; }
      else quoted = false;
    } else if (sign === '"') quoted = true;
    else if (sign === ",") { cells.push(cell); cell = ""; }
    else if (sign === "\n") { endRow(); first = line; }
    else if (sign !== "\r") cell += sign;
  }
  if (cells.length || cell) endRow();
  return rows;
}
