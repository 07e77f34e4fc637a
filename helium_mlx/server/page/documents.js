// Documents: a tree of texts each, with settings, kept in the browser; and how several tabs keep from losing any.
//
// A node has its whole text. Nodes have names that no other tab gives, so two versions of a document are merged by
// taking the nodes of both; a node that both changed is there twice.

/**
 * @typedef {{id: string, parent: string | null, text: string, by: "you" | "model", made: number}} Node
 * @typedef {{temperature: number, topP: number, length: number, seed: number | null, end: string, suggest: boolean,
 *   colour: boolean, count: number}} Settings
 * @typedef {{id: string, name: string, nodes: Record<string, Node>, current: string, settings: Settings, saved: number}}
 *   Document
 */

const FORMAT = "helium-document";
const NOTED = "helium-unsaved-";

/** @type {Settings} */
export const DEFAULTS = {
  temperature: 0.8, topP: 0.95, length: 60, seed: null, end: "", suggest: true, colour: false, count: 3,
};

/** @returns {string} */
export const newId = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** @param {string} name @param {string} [text] @returns {Document} */
export function newDocument(name, text = "") {
  const root = newNode(null, text, "you");
  return { id: newId(), name, nodes: { [root.id]: root }, current: root.id, settings: { ...DEFAULTS }, saved: 0 };
}

/** @param {string | null} parent @param {string} text @param {"you" | "model"} by @returns {Node} */
export function newNode(parent, text, by) {
  return { id: newId(), parent, text, by, made: Date.now() };
}

/** The nodes below one, the oldest first. @param {Document} document @param {string | null} parent @returns {Node[]} */
export function children(document, parent) {
  return Object.values(document.nodes).filter((node) => node.parent === parent).sort((a, b) => a.made - b.made);
}

/** Whether a node is another, or stands below it. @param {Document} document @param {string | null} id @param {string} above @returns {boolean} */
export function isBelow(document, id, above) {
  const seen = new Set();
  for (let at = id; at !== null && !seen.has(at); at = document.nodes[at]?.parent ?? null) {
    if (at === above) return true;
    seen.add(at);
  }
  return false;
}

/** Take a node and all below it out, and return them. @param {Document} document @param {string} id @returns {Node[]} */
export function removeBranch(document, id) {
  const removed = Object.values(document.nodes).filter((node) => isBelow(document, node.id, id));
  for (const node of removed) delete document.nodes[node.id];
  return removed;
}

/**
 * What tells a node from its parent: the text from where the two part.
 * @param {Document} document @param {Node} node @returns {string}
 */
export function ownText(document, node) {
  const parent = node.parent === null ? "" : document.nodes[node.parent]?.text ?? "";
  if (node.text.startsWith(parent) && node.text !== parent) return node.text.slice(parent.length);
  let same = 0;
  while (same < parent.length && parent[same] === node.text[same]) same += 1;
  return node.text.slice(same) || node.text;
}

/**
 * Return `mine` with what `theirs`, saved meanwhile by another tab, has besides. `base` is what both began with.
 * @param {Document} mine @param {Document} theirs @param {Document} base @returns {Document}
 */
export function merged(mine, theirs, base) {
  const nodes = { ...theirs.nodes };
  for (const [id, other] of Object.entries(theirs.nodes)) {
    // Removed here, and not changed there.
    if (!mine.nodes[id] && base.nodes[id]?.text === other.text) delete nodes[id];
  }
  for (const node of Object.values(mine.nodes)) {
    const other = theirs.nodes[node.id];
    const before = base.nodes[node.id];
    if (!other) {
      if (!before || before.text !== node.text || node.id === mine.current) nodes[node.id] = node;
    } else if (other.text !== node.text) {
      if (before && before.text === node.text) continue;
      nodes[node.id] = node;
      if (!before || before.text !== other.text) {
        const copy = { ...other, id: newId(), parent: node.id };
        nodes[copy.id] = copy;
      }
    }
  }
  for (const node of Object.values(nodes)) if (node.parent !== null && !nodes[node.parent]) node.parent = null;
  const name = mine.name === base.name ? theirs.name : mine.name;
  return { ...mine, name, nodes, current: nodes[mine.current] ? mine.current : theirs.current };
}

/** @param {Document} document @returns {string} */
export function toJson(document) {
  return JSON.stringify({ format: FORMAT, version: 1, ...document }, null, 1);
}

/**
 * Return the document in a file that was exported, or one that begins with a text.
 * @param {string} name @param {string} content @returns {Document}
 */
export function fromFile(name, content) {
  const plain = name.replace(/\.[^.]*$/, "") || "Imported";
  if (!/\.json$/i.test(name)) return newDocument(plain, content.replaceAll("\r\n", "\n"));
  const read = JSON.parse(content);
  if (read?.format !== FORMAT || typeof read.nodes !== "object") throw new Error(`${name} is no document of this page`);
  const made = newDocument(String(read.name ?? plain));
  made.nodes = {};
  for (const [id, node] of Object.entries(read.nodes)) {
    if (typeof node?.text !== "string") throw new Error(`${name} has a branch without a text`);
    const parent = typeof node.parent === "string" && node.parent in read.nodes ? node.parent : null;
    made.nodes[id] = { id, parent, text: node.text, by: node.by === "model" ? "model" : "you", made: Number(node.made) || 0 };
  }
  for (const node of Object.values(made.nodes)) if (isBelow(made, node.parent, node.id)) node.parent = null;
  made.current = read.current in made.nodes ? read.current : Object.keys(made.nodes)[0];
  if (!made.current) throw new Error(`${name} has no text`);
  const given = Object.entries(read.settings ?? {}).filter(
    ([key, value]) => key in DEFAULTS && (typeof value === typeof DEFAULTS[key] || key === "seed"),
  );
  made.settings = { ...DEFAULTS, ...Object.fromEntries(given) };
  return made;
}

/** The documents of this browser, and what other tabs do to them. */
export class Shelf {
  /** @param {(id: string) => void} onChange told of a document that another tab has saved or deleted */
  constructor(onChange) {
    this.opened = open();
    // What asks for it is told.
    this.opened.catch(() => {});
    this.others = new BroadcastChannel("helium-documents");
    this.others.onmessage = (event) => onChange(event.data);
  }

  /** @returns {Promise<Document[]>} the newest first */
  async all() {
    const found = await request((await this.opened).transaction("documents").objectStore("documents").getAll());
    return found.sort((a, b) => b.saved - a.saved);
  }

  /** @param {string} id @returns {Promise<Document | undefined>} */
  async get(id) {
    return request((await this.opened).transaction("documents").objectStore("documents").get(id));
  }

  /**
   * Save a document, merged with what another tab has saved since `base`; return what was saved.
   * @param {Document} document @param {Document} base @returns {Promise<Document>}
   */
  async save(document, base) {
    const transaction = (await this.opened).transaction("documents", "readwrite");
    const store = transaction.objectStore("documents");
    const stored = await request(store.get(document.id));
    const whole = stored && stored.saved !== base.saved ? merged(document, stored, base) : document;
    const saved = { ...structuredClone(whole), saved: Math.max(Date.now(), (stored?.saved ?? 0) + 1) };
    store.put(saved);
    await new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    this.others.postMessage(document.id);
    return saved;
  }

  /**
   * Note what is not saved yet, at once: for a page that goes.
   * @param {Document} document @param {Document} base
   */
  note(document, base) {
    const nodes = Object.values(document.nodes).filter((node) => base.nodes[node.id]?.text !== node.text);
    if (!nodes.length) return;
    const noted = { id: document.id, name: document.name, settings: document.settings, saved: base.saved, nodes };
    localStorage.setItem(NOTED + document.id, JSON.stringify(noted));
  }

  /** Save what pages have noted that went. */
  async takeNoted() {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(NOTED));
    for (const key of keys) {
      const noted = JSON.parse(localStorage.getItem(key) ?? "null");
      const stored = (await this.get(noted.id)) ?? { id: noted.id, name: noted.name, nodes: {}, current: "", settings: noted.settings, saved: 0 };
      const base = structuredClone(stored);
      const texts = new Set(Object.values(stored.nodes).map((node) => node.text));
      for (const node of noted.nodes) {
        if (texts.has(node.text)) continue;
        // Another tab has saved since: its text stays, and this is a branch of its own.
        const isOther = node.id in stored.nodes && stored.saved !== noted.saved;
        const made = isOther ? { ...node, id: newId(), parent: node.id } : node;
        stored.nodes[made.id] = made;
        if (!(stored.current in stored.nodes)) stored.current = made.id;
      }
      await this.save(stored, base);
      localStorage.removeItem(key);
    }
  }

  /** @param {string} id */
  async remove(id) {
    await request((await this.opened).transaction("documents", "readwrite").objectStore("documents").delete(id));
    this.others.postMessage(id);
  }
}

/** @returns {Promise<IDBDatabase>} */
async function open() {
  const opening = indexedDB.open("helium", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("documents", { keyPath: "id" });
  return request(opening);
}

/** @template T @param {IDBRequest<T>} asked @returns {Promise<T>} */
function request(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}
