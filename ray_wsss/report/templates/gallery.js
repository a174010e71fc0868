"use strict";
// The gallery of the report: facts to sort and filter images by, and pictures that are parsed when shown.
// Names from the data set are only ever set as text, never as HTML.

const PER_PAGE = 48;
const LAYERS = { cam: "CAM", masks: "SAM mask", label: "pseudo label", prediction: "prediction", truth: "ground truth" };
const KEYS = ["cam", "points", "masks", "label", "prediction", "truth"];
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const percent = (value) => (value === null ? "–" : (100 * value).toFixed(1));

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function option(value, text) {
  const element = make("option", "", text);
  element.value = value;
  return element;
}

class Gallery {
  constructor(data) {
    this.data = data;
    this.all = data.facts.map((facts, index) => ({ ...facts, index }));
    this.shown = [];
    this.page = 0;
    this.opened = -1;
    this.blocks = new Map();
    this.review = data.reviewKey ? new Review(data.reviewKey, this.all.map((image) => image.id)) : null;
    this.fillChoices();
    this.listen();
    if (this.review) this.listenToReview();
    this.update();
  }

  // Pictures come in blocks of JSON. Only the blocks parsed last stay in memory.
  picturesOf(image) {
    const number = Math.floor(image.index / this.data.perBlock);
    if (!this.blocks.has(number)) {
      if (this.blocks.size > 24) this.blocks.delete(this.blocks.keys().next().value);
      this.blocks.set(number, JSON.parse(byId(`pictures-${number}`).textContent));
    }
    return this.blocks.get(number)[image.index % this.data.perBlock];
  }

  className(index) {
    return this.data.classNames[index] ?? `class ${index}`;
  }

  fillChoices() {
    const present = new Set(this.all.flatMap((image) => image.classes));
    const classes = [...present].sort((a, b) => a - b);
    for (const index of classes) {
      byId("class").append(option(index, this.className(index)));
      const entry = make("li");
      const swatch = make("span", "swatch");
      swatch.style.background = this.data.colours[index];
      entry.append(swatch, this.className(index));
      byId("legend").append(entry);
    }
    const groups = [...new Set(this.all.map((image) => image.group))].filter(Boolean).sort();
    for (const group of groups) byId("group").append(option(group, group));
    byId("group").parentElement.hidden = groups.length === 0;
    for (const box of this.boxes()) {
      if (box.value in this.data.layers) continue;
      box.checked = false;
      box.disabled = true;
      box.parentElement.hidden = true;
    }
    for (const choice of [...byId("sort").options]) {
      const key = choice.value.replace("-", "");
      if (!["id", "class"].includes(key) && this.all.every((image) => image[key] === null)) choice.remove();
    }
    byId("sort").selectedIndex = 0;
  }

  boxes() {
    return [...document.querySelectorAll("#layers input[type=checkbox]")];
  }

  layers() {
    return new Set(this.boxes().filter((box) => box.checked).map((box) => box.value));
  }

  listen() {
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("layers").addEventListener("change", () => this.draw());
    byId("strength").addEventListener("input", (event) =>
      document.documentElement.style.setProperty("--strength", event.target.value));
    for (const id of ["sort", "class", "group"]) byId(id).addEventListener("change", () => this.update());
    byId("name").addEventListener("input", () => this.update());
    byId("previous").addEventListener("click", () => this.turn(-1));
    byId("next").addEventListener("click", () => this.turn(1));
    byId("detail-previous").addEventListener("click", () => this.open(this.opened - 1));
    byId("detail-next").addEventListener("click", () => this.open(this.opened + 1));
    byId("detail-close").addEventListener("click", () => byId("detail").close());
    byId("detail").addEventListener("close", () => this.closed());
    document.addEventListener("keydown", (event) => this.key(event));
  }

  listenToReview() {
    byId("reviewed").addEventListener("change", () => this.update());
    byId("review-start").addEventListener("click", () => this.open(this.page * PER_PAGE));
    byId("detail-accept").addEventListener("click", () => this.judge("accept"));
    byId("detail-reject").addEventListener("click", () => this.judge("reject"));
    byId("review-save").addEventListener("click", () => this.saveReview());
    byId("review-file").addEventListener("change", (event) => this.loadReview(event.target));
  }

  saveReview() {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([this.review.csv()], { type: "text/csv" }));
    link.download = "review.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  async loadReview(input) {
    const [file] = input.files;
    if (!file) return;
    let error = "";
    try {
      this.review.load(await file.text());
    } catch (problem) { error = `${file.name}, ${problem.message}`; }
    byId("review-error").textContent = error;
    byId("review-error").hidden = !error;
    input.value = "";
    this.update();
  }

  // A verdict on the image that is open, or whose card has the focus; then the next one follows.
  judge(verdict) {
    const cards = [...byId("cards").children], isOpen = byId("detail").open;
    const on = cards.indexOf(document.activeElement);
    const at = isOpen ? this.opened : on < 0 ? -1 : this.page * PER_PAGE + on;
    const image = this.shown[at];
    if (!image) return;
    this.review.give(image.id, verdict);
    const page = this.page;
    this.update();
    // With a filter, the image may be gone, and the next one is in its place.
    const next = this.shown[at] === image && this.review.of(image.id) ? at + 1 : at;
    const last = Math.min(next, this.shown.length - 1);
    this.page = Math.max(0, Math.min(page, this.pages() - 1));
    if (isOpen && last >= 0) { this.page = Math.floor(last / PER_PAGE); this.draw(); this.open(last); return; }
    if (isOpen) byId("detail").close();
    if (last >= 0) this.page = Math.floor(last / PER_PAGE);
    this.draw();
    const card = byId("cards").children[last % PER_PAGE];
    if (card) this.focus(card);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input[type=search], input[type=range], select");
    if (typing) return;
    const verdict = { a: "accept", r: "reject" }[event.key];
    if (verdict && this.review) { event.preventDefault(); this.judge(verdict); return; }
    if (byId("detail").open) {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) { event.preventDefault(); this.open(this.opened + step); }
      return;
    }
    const box = this.boxes().find((candidate) => candidate.value === KEYS[Number(event.key) - 1]);
    if (box && !box.disabled) { box.checked = !box.checked; this.draw(); return; }
    if (event.key === "n") this.turn(1);
    else if (event.key === "p") this.turn(-1);
    else if (event.key === "/") { event.preventDefault(); byId("name").focus(); }
    else if (event.target.matches(".image")) this.move(event);
  }

  // Arrow keys move between the cards; Tab stops at only one of them.
  move(event) {
    const cards = [...byId("cards").children];
    const at = cards.indexOf(event.target);
    const columns = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: cards.length - 1 - at };
    const to = cards[at + steps[event.key]];
    if (!(event.key in steps)) return;
    event.preventDefault();
    if (to) this.focus(to);
  }

  focus(card) {
    for (const other of byId("cards").children) other.tabIndex = other === card ? 0 : -1;
    card.focus();
  }

  update() {
    const wanted = byId("class").value, group = byId("group").value, name = byId("name").value.toLowerCase();
    this.shown = this.all.filter((image) =>
      (wanted === "" || image.classes.includes(Number(wanted)))
      && (group === "" || image.group === group)
      && this.passesReview(image)
      && image.id.toLowerCase().includes(name));
    this.shown.sort(this.order(byId("sort").value));
    this.page = 0;
    const of = this.shown.length === this.all.length ? "" : ` of ${this.all.length.toLocaleString("en")}`;
    byId("count").textContent = `${this.shown.length.toLocaleString("en")}${of} image${this.all.length === 1 ? "" : "s"}`;
    if (this.review) byId("review-told").textContent = this.review.told();
    this.draw();
  }

  passesReview(image) {
    const wanted = this.review ? byId("reviewed").value : "";
    return wanted === "" || this.review.of(image.id) === (wanted === "left" ? "" : wanted);
  }

  order(choice) {
    const collator = new Intl.Collator(undefined, { numeric: true });
    const byName = (a, b) => collator.compare(a.id, b.id) || a.index - b.index;
    if (choice === "id") return byName;
    if (choice === "class") return (a, b) => (a.classes[0] ?? Infinity) - (b.classes[0] ?? Infinity) || byName(a, b);
    const sign = choice.startsWith("-") ? -1 : 1, key = choice.replace("-", "");
    // Images without the value come last in either direction.
    return (a, b) => (a[key] === null) - (b[key] === null) || sign * (a[key] - b[key]) || byName(a, b);
  }

  turn(step) {
    const page = this.page + step;
    if (page < 0 || page >= this.pages()) return;
    this.page = page;
    this.draw();
    byId("count").scrollIntoView({ block: "start" });
  }

  pages() {
    return Math.max(1, Math.ceil(this.shown.length / PER_PAGE));
  }

  draw() {
    const layers = this.layers();
    const cards = this.shown.slice(this.page * PER_PAGE, (this.page + 1) * PER_PAGE).map((image, at) =>
      this.card(image, this.page * PER_PAGE + at, layers));
    const before = [...byId("cards").children].indexOf(document.activeElement);
    byId("cards").replaceChildren(...cards);
    if (cards.length) cards[0].tabIndex = 0;
    if (before >= 0 && cards[before]) this.focus(cards[before]);
    byId("page").textContent = `page ${this.page + 1} of ${this.pages()}`;
    byId("previous").disabled = this.page === 0;
    byId("next").disabled = this.page + 1 >= this.pages();
    byId("page").parentElement.hidden = this.pages() === 1;
  }

  card(image, at, layers) {
    const card = make("button", "image");
    card.type = "button";
    card.tabIndex = -1;
    const facts = make("span", "facts");
    facts.append(make("b", "", image.id), this.told(image));
    const stack = this.stack(image, layers);
    stack.classList.add("square");
    card.append(stack, facts);
    const verdict = this.review ? this.review.of(image.id) : "";
    if (verdict) {
      card.dataset.verdict = verdict;
      card.append(make("span", "verdict", verdict === "accept" ? "✓ accepted" : "✗ rejected"));
    }
    card.title = `${image.id}: ${image.classes.map((index) => this.className(index)).join(", ")}`;
    card.addEventListener("click", () => this.open(at));
    return card;
  }

  told(image) {
    const parts = [];
    if (image.doubt !== null) parts.push(`doubt ${image.doubt.toFixed(2)}`);
    if (image.score !== null) parts.push(`score ${image.score.toFixed(2)}`);
    if (image.iou !== null) parts.push(`IoU ${percent(image.iou)}`);
    if (image.predictionIou !== null) parts.push(`prediction IoU ${percent(image.predictionIou)}`);
    if (image.group) parts.push(image.group);
    return parts.join(", ");
  }

  // The image with layers over it; all pictures have the same proportions.
  stack(image, layers) {
    const stack = make("span", "stack");
    const pictures = this.picturesOf(image);
    for (const name of ["image", ...Object.keys(LAYERS)]) {
      if (!(name in pictures) || (name !== "image" && !layers.has(name))) continue;
      const picture = make("img", name);
      picture.alt = "";
      picture.src = pictures[name];
      stack.append(picture);
    }
    if (layers.has("points")) stack.append(this.points(image));
    return stack;
  }

  points(image) {
    const drawing = document.createElementNS(SVG, "svg");
    drawing.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    const side = Math.max(image.width, image.height);
    const add = (tag, attributes) => {
      const shape = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
      drawing.append(shape);
    };
    for (const mask of image.masks) {
      const colour = this.data.colours[mask.class];
      if (mask.box) {
        const [left, top, right, bottom] = mask.box;
        add("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "none", stroke: colour, "stroke-width": side / 90 });
      }
      mask.points.forEach(([x, y], at) => {
        // A point beside the object is hollow.
        const beside = mask.pointLabels[at] === 0;
        add("circle", beside ? { cx: x, cy: y, r: side / 50, fill: "none", stroke: colour, "stroke-width": side / 120 }
          : { cx: x, cy: y, r: side / 45, fill: colour });
      });
    }
    return drawing;
  }

  open(at) {
    if (at < 0 || at >= this.shown.length) return;
    this.opened = at;
    const image = this.shown[at], pictures = this.picturesOf(image);
    byId("detail-title").textContent = image.id;
    const names = image.classes.map((index) => this.className(index)).join(", ") || "no class";
    byId("detail-facts").textContent = [names, this.told(image), `${image.width} × ${image.height} pixels`].filter(Boolean).join("; ");
    const panels = [["image", new Set()]];
    if ("cam" in pictures) panels.push(["CAM", new Set(["cam"])]);
    if (image.masks.length) panels.push(["points", new Set(["points"])]);
    for (const name of ["masks", "label", "prediction", "truth"]) {
      if (name in pictures) panels.push([LAYERS[name], new Set([name])]);
    }
    byId("panels").replaceChildren(...panels.map(([title, layers]) => {
      const figure = make("figure");
      const stack = this.stack(image, layers);
      stack.style.aspectRatio = `${image.width} / ${image.height}`;
      figure.append(stack, make("figcaption", "", title));
      return figure;
    }));
    this.fillMasks(image);
    for (const verdict of this.review ? VERDICTS : []) {
      byId(`detail-${verdict}`).setAttribute("aria-pressed", this.review.of(image.id) === verdict);
    }
    byId("detail-previous").disabled = at === 0;
    byId("detail-next").disabled = at + 1 === this.shown.length;
    if (!byId("detail").open) byId("detail").showModal();
  }

  fillMasks(image) {
    const rows = image.masks.map((mask) => [this.className(mask.class), mask.score.toFixed(3), mask.samScore.toFixed(3),
      mask.stability === null ? "–" : mask.stability.toFixed(3), mask.camMean === null ? "–" : mask.camMean.toFixed(3),
      mask.points.length + (mask.box ? 1 : 0), mask.areaPx.toLocaleString("en")]);
    const line = (cells, tag) => {
      const row = make("tr");
      row.append(...cells.map((cell) => make(tag, "", cell)));
      return row;
    };
    const head = line(["class", "score", "SAM's predicted IoU", "stability", "mean CAM", "points", "pixels"], "th");
    byId("detail-masks").replaceChildren(...(rows.length ? [head, ...rows.map((row) => line(row, "td"))] : []));
  }

  // Focus the card of the image that was open last.
  closed() {
    const page = Math.floor(this.opened / PER_PAGE);
    if (page !== this.page) { this.page = page; this.draw(); }
    const card = byId("cards").children[this.opened % PER_PAGE];
    if (card) this.focus(card);
  }
}

if (byId("gallery")) new Gallery(JSON.parse(byId("data").textContent));
