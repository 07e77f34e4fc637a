// The sheet: a textarea that grows with its text, colours beneath it and a suggestion over it.
//
// The browser lays the textarea out itself. What lies beneath and above is drawn for the paragraphs in view alone,
// whose places are known from heights that are measured once a paragraph. A keystroke measures one paragraph, however
// long the text is.

/** @typedef {{start: number, end: number, level: number, index: number}} Mark a token: its place and its colour */

// Pixels above and below the window, and characters of a paragraph beyond them, that are drawn too.
const NEAR = 400;
const SPARE = 500;

/** The writer's text, and what is shown about it. */
export class Editor {
  /** @param {HTMLElement} sheet @param {HTMLElement} scroller */
  constructor(sheet, scroller) {
    this.area = /** @type {HTMLTextAreaElement} */ (sheet.querySelector("textarea"));
    this.layer = /** @type {HTMLElement} */ (sheet.querySelector("#layer"));
    this.ghostBox = /** @type {HTMLElement} */ (sheet.querySelector("#ghost"));
    this.scroller = scroller;
    this.ruler = document.createElement("div");
    this.ruler.id = "ruler";
    sheet.append(this.ruler);
    /** @type {Map<string, number>} */
    this.heights = new Map();
    /** @type {string[]} */
    this.paragraphs = [""];
    /** @type {number[]} */
    this.tops = [0];
    /** @type {Mark[]} */
    this.marks = [];
    this.ghost = "";
    this.here = -1;
    this.frame = 0;
    new ResizeObserver(() => this.measureAll()).observe(sheet);
    const redraw = () => this.drawSoon();
    scroller.addEventListener("scroll", redraw, { passive: true });
    addEventListener("scroll", redraw, { passive: true });
  }

  get text() { return this.area.value; }
  get caret() { return this.area.selectionStart; }
  get isAtEnd() {
    const { selectionStart, selectionEnd, value } = this.area;
    return selectionStart === selectionEnd && (selectionEnd === value.length || value[selectionEnd] === "\n");
  }

  /** Show another text. @param {string} text @param {number} caret */
  show(text, caret) {
    this.area.value = text;
    this.marks = [];
    this.setGhost("");
    this.fit();
    this.area.setSelectionRange(caret, caret);
  }

  /** Put a text in the place of another, and the caret after it. @param {number} start @param {number} end @param {string} text */
  replace(start, end, text) {
    this.area.setRangeText(text, start, end, "end");
    this.fit();
  }

  /** Note that the text has changed: its marks are kept up to where it does. */
  fit() {
    const text = this.area.value;
    const paragraphs = text.split("\n");
    let same = 0;
    while (same < paragraphs.length && paragraphs[same] === this.paragraphs[same]) same += 1;
    const changed = paragraphs.slice(0, same).reduce((sum, paragraph) => sum + paragraph.length + 1, 0);
    const oldText = this.paragraphs[same] ?? "";
    const newText = paragraphs[same] ?? "";
    let inside = 0;
    while (inside < newText.length && newText[inside] === oldText[inside]) inside += 1;
    if (same < paragraphs.length || this.paragraphs.length !== paragraphs.length) {
      this.marks = this.marks.slice(0, firstAfter(this.marks, changed + inside));
    }
    this.paragraphs = paragraphs;
    this.place(same);
    this.drawSoon();
  }

  measureAll() {
    if (this.ruler.clientWidth === this.width) return;
    this.width = this.ruler.clientWidth;
    this.heights.clear();
    this.place(0);
    this.drawSoon();
  }

  /** Find where the paragraphs from `first` on lie. @param {number} first */
  place(first) {
    const missing = new Set(this.paragraphs.slice(first).filter((paragraph) => !this.heights.has(paragraph)));
    if (missing.size) {
      if (this.heights.size > 20_000) this.heights.clear();
      const measured = [...missing].map((paragraph) => {
        const line = document.createElement("div");
        line.textContent = paragraph || " ";
        return line;
      });
      this.ruler.replaceChildren(...measured);
      [...missing].forEach((paragraph, index) => this.heights.set(paragraph, measured[index].getBoundingClientRect().height));
      this.ruler.replaceChildren();
    }
    this.tops.length = first;
    let top = first ? this.tops[first - 1] + this.heightOf(first - 1) : 0;
    for (let index = first; index < this.paragraphs.length; index += 1) {
      this.tops.push(top);
      top += this.heightOf(index);
    }
    const style = getComputedStyle(this.area);
    const height = Math.ceil(top + parseFloat(style.paddingTop) + parseFloat(style.paddingBottom));
    if (height !== this.height) this.area.style.height = `${height}px`;
    this.height = height;
  }

  /** @param {number} index @returns {number} */
  heightOf(index) {
    return this.heights.get(this.paragraphs[index]) ?? 0;
  }

  /** Colour tokens. @param {Mark[]} marks in their order */
  setMarks(marks) {
    this.marks = marks;
    this.drawSoon();
  }

  /** Show which token is spoken of. @param {number} index its number, -1 for none */
  setHere(index) {
    if (index === this.here) return;
    this.here = index;
    this.drawSoon();
  }

  /** Show a suggestion after the caret; it is drawn where there is one. @param {string} text */
  setGhost(text) {
    this.ghost = text;
    this.drawGhost();
  }

  drawSoon() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  /** The heights of the text between which it lies within so many pixels of the window. @param {number} margin */
  inView(margin) {
    const box = this.layer.getBoundingClientRect();
    return { from: -box.top - margin, to: innerHeight - box.top + margin };
  }

  /** The place of the text in the window's middle. */
  get middleInView() {
    const { from, to } = this.inView(0);
    const height = (from + to) / 2;
    let offset = 0;
    for (let index = 0; index < this.paragraphs.length; index += 1) {
      const share = (height - this.tops[index]) / this.heightOf(index);
      if (share < 1) return offset + Math.round(Math.max(share, 0) * this.paragraphs[index].length);
      offset += this.paragraphs[index].length + 1;
    }
    return offset;
  }

  draw() {
    this.drawGhost();
    if (!this.marks.length) {
      this.layer.replaceChildren();
      return;
    }
    const { from, to } = this.inView(NEAR);
    /** @type {HTMLElement[]} */
    const shown = [];
    let offset = 0;
    for (let index = 0; index < this.paragraphs.length; index += 1) {
      const length = this.paragraphs[index].length;
      if (this.tops[index] > to) break;
      if (this.tops[index] + this.heightOf(index) >= from) shown.push(this.drawnParagraph(index, offset, from, to));
      offset += length + 1;
    }
    this.layer.replaceChildren(...shown);
  }

  /** @param {number} index @param {number} offset @param {number} top @param {number} bottom @returns {HTMLElement} */
  drawnParagraph(index, offset, top, bottom) {
    const line = document.createElement("p");
    line.style.top = `${this.tops[index]}px`;
    const { length } = this.paragraphs[index];
    const end = offset + length;
    // Of a long paragraph what is far from the window has no colours; its letters are about as wide everywhere.
    const placeAt = (/** @type {number} */ height) =>
      offset + Math.round(((height - this.tops[index]) / this.heightOf(index)) * length);
    const first = Math.max(offset, placeAt(top) - SPARE);
    const last = Math.min(end, placeAt(bottom) + SPARE);
    let at = offset;
    for (let place = firstAfter(this.marks, first); place < this.marks.length; place += 1) {
      const mark = this.marks[place];
      if (mark.start >= last) break;
      const start = Math.max(mark.start, offset);
      if (start > at) line.append(this.area.value.slice(at, start));
      const span = document.createElement("span");
      span.className = `p${mark.level}${mark.index === this.here ? " here" : ""}`;
      span.dataset.index = String(mark.index);
      span.textContent = this.area.value.slice(start, Math.min(mark.end, end));
      line.append(span);
      at = Math.min(mark.end, end);
    }
    return line;
  }

  drawGhost() {
    if (!this.ghost) {
      this.ghostBox.replaceChildren();
      return;
    }
    // The paragraph up to the caret, unseen, with the suggestion after it.
    let index = 0;
    let offset = 0;
    while (offset + this.paragraphs[index].length < this.caret) {
      offset += this.paragraphs[index].length + 1;
      index += 1;
    }
    const before = document.createElement("span");
    before.style.visibility = "hidden";
    before.textContent = this.paragraphs[index].slice(0, this.caret - offset);
    const word = /^\s*\S+/.exec(this.ghost)?.[0] ?? this.ghost;
    const first = document.createElement("b");
    first.textContent = word;
    const padding = parseFloat(getComputedStyle(this.area).paddingTop);
    this.ghostBox.style.top = `${this.tops[index] + padding}px`;
    const rest = document.createElement("span");
    rest.textContent = this.ghost.slice(word.length);
    this.ghostBox.replaceChildren(before, first, rest);
  }

  /** The number of the token at a place of the window, -1 for none. @param {number} x @param {number} y */
  tokenAt(x, y) {
    const found = document.elementsFromPoint(x, y).find((element) => element instanceof HTMLElement && element.dataset.index);
    return found ? Number(/** @type {HTMLElement} */ (found).dataset.index) : -1;
  }

  /** The number of the token that holds a place of the text, -1 for none. @param {number} offset */
  tokenOf(offset) {
    const mark = this.marks[firstAfter(this.marks, Math.max(offset - 1, 0))];
    return mark && mark.start < Math.max(offset, 1) ? mark.index : -1;
  }
}

/** The place of the first mark that ends after an offset. @param {Mark[]} marks @param {number} offset */
function firstAfter(marks, offset) {
  let low = 0;
  let high = marks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (marks[middle].end > offset) high = middle;
    else low = middle + 1;
  }
  return low;
}
