// The page: what the writer does, what the server is asked then, and what is shown of the answer.

import { DEFAULTS, Shelf, children, fromFile, isBelow, merged, newDocument, newNode, ownText, removeBranch, toJson } from "./documents.js";
import { Editor } from "./editor.js";
import { History } from "./history.js";
import { Offline, Refused, answers, completions, countTokens, model, scores, suggestions, useKey } from "./server.js";
import { levelOf, linePath, percent, perplexity, piecesOf, readable, tokensOf } from "./thoughts.js";

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);

// Milliseconds without a key before something is asked or saved.
const PAUSE_SUGGEST = 250;
const PAUSE_SAVE = 300;
const PAUSE_SCORE = 700;
const RETRY = 2000;
const FIRST_GUESS = 3; // characters a token, until the server has counted some
const MOST_CHOICES = 8;

/** @type {import("./documents.js").Document} */
let open;
/** @type {import("./documents.js").Document} */
let base;
/** @type {History} */
let history;
/** @type {import("./thoughts.js").Token[]} */
let tokens = [];
/** What is known of pieces of the text. @type {Map<string, import("./thoughts.js").Token[] | undefined>} */
let known = new Map();
let pieceSize = 0;
let contextLength = 4096;
let charactersPerToken = FIRST_GUESS;
let isOffline = false;
let unsaved = false;
/** @type {Promise<void> | null} */
let saving = null;

const editor = new Editor($("sheet"), $("writing"));
const shelf = new Shelf(otherTabChanged);

// --- tasks: of each kind at most one runs

/** @type {Map<string, AbortController>} */
const running = new Map();
/** @type {Map<string, number>} */
const timers = new Map();

/** Do something after a pause, unless it is asked for again before. @param {string} name @param {number} pause @param {() => void} work */
function after(name, pause, work) {
  clearTimeout(timers.get(name));
  timers.set(name, setTimeout(work, pause));
}

/** End a task, and what waits to begin it. @param {string} name */
function end(name) {
  clearTimeout(timers.get(name));
  running.get(name)?.abort();
  running.delete(name);
  if (name === "write") showWriting();
}

/** Run a task in the place of an older one of its name. @param {string} name @param {(signal: AbortSignal) => Promise<void>} work */
async function run(name, work) {
  end(name);
  const controller = new AbortController();
  running.set(name, controller);
  try {
    await work(controller.signal);
    backOnline();
  } catch (error) {
    if (!controller.signal.aborted) report(error, name);
  } finally {
    // A next one may wait for its pause already.
    if (running.get(name) === controller) running.delete(name);
    if (name === "write") showWriting();
  }
}

/** @param {unknown} error @param {string} name */
function report(error, name) {
  if (error instanceof Offline) {
    goOffline();
  } else if (error instanceof Refused && error.status === 401) {
    $("key-dialog").showModal();
  } else if (error instanceof Refused && error.status === 503 && name !== "write") {
    // Busy: the next pause asks again.
  } else {
    say(error instanceof Error ? error.message : String(error));
  }
}

/** @param {string} text */
function say(text) {
  $("status").textContent = text;
}

function goOffline() {
  if (!isOffline) say("The server does not answer. Your text is safe; this goes on when it is back.");
  isOffline = true;
  after("retry", RETRY, async () => {
    if (await answers()) {
      backOnline();
      await meetModel();
      changed(false);
    } else goOffline();
  });
}

function backOnline() {
  if (isOffline) say("");
  isOffline = false;
}

// --- the text and its document

const node = () => open.nodes[open.current];

/** Note that the text has changed, and ask what there is to ask. @param {boolean} isTyping */
function changed(isTyping) {
  const text = editor.text;
  if (node().text !== text) {
    node().text = text;
    if (isTyping) node().by = "you";
    saveSoon();
  }
  history.note({ node: open.current, text, caret: editor.caret }, isTyping);
  showHistory();
  after("suggest", PAUSE_SUGGEST, suggest);
  after("score", PAUSE_SCORE, think);
}

function showHistory() {
  $("undo").disabled = !history.canUndo;
  $("redo").disabled = !history.canRedo;
}

function saveSoon() {
  unsaved = true;
  $("saved").textContent = "";
  after("save", PAUSE_SAVE, save);
}

/** Save the document as it is now, once an older save has ended. */
async function save() {
  while (saving) await saving;
  if (!unsaved) return;
  unsaved = false;
  saving = store();
  await saving;
  saving = null;
}

async function store() {
  try {
    const sent = structuredClone(open);
    const saved = await shelf.save(sent, base);
    if (saved.id === open.id) take(saved, sent);
    if (!isListed(saved)) await listDocuments();
    if (!unsaved) $("saved").textContent = "Saved in this browser";
  } catch (error) {
    unsaved = true;
    say(`Not saved: ${error instanceof Error ? error.message : error}. Export the document.`);
  }
}

/**
 * Go on from what was saved: what has changed since it was sent stays, and branches of another tab come in.
 * @param {import("./documents.js").Document} saved @param {import("./documents.js").Document} sent
 */
function take(saved, sent) {
  base = structuredClone(saved);
  open = { ...merged(open, saved, sent), saved: saved.saved };
  if (node().text !== editor.text) editor.show(node().text, Math.min(editor.caret, node().text.length));
  drawTree();
}

/** @param {string} id */
async function otherTabChanged(id) {
  while (saving) await saving;
  const stored = await shelf.get(id);
  if (!stored || !isListed(stored)) await listDocuments();
  if (id !== open?.id) return;
  if (!stored) {
    // Deleted there, it stays here as long as this tab has it.
    saveSoon();
    return;
  }
  if (unsaved || saving || stored.saved === base.saved) return;
  const shown = node();
  const theirs = stored.nodes[shown.id];
  base = structuredClone(stored);
  open = { ...stored, current: theirs ? shown.id : stored.current };
  if (node().text !== editor.text) editor.show(node().text, Math.min(editor.caret, node().text.length));
  $("name").value = open.name;
  showSettings();
  drawTree();
}

/** @param {import("./documents.js").Document} found */
function openDocument(found) {
  end("write");
  end("suggest");
  open = structuredClone(found);
  open.settings = { ...DEFAULTS, ...open.settings };
  base = structuredClone(found);
  sessionStorage.setItem("helium-open", open.id);
  tokens = [];
  pieceSize = 0;
  const text = node().text;
  editor.show(text, text.length);
  history = new History({ node: open.current, text, caret: text.length });
  $("name").value = open.name;
  $("choices").replaceChildren();
  showSettings();
  drawTree();
  drawThoughts();
  changed(false);
}

/** The documents of this browser; none where it keeps none. */
async function allDocuments() {
  try {
    return await shelf.all();
  } catch {
    return [];
  }
}

/** Whether a document is in the list by its name. @param {import("./documents.js").Document} document */
function isListed(document) {
  const options = [...$("documents").options];
  return options.some((option) => option.value === document.id && option.textContent === shownName(document));
}

/** @param {import("./documents.js").Document} document */
const shownName = (document) => document.name || "Untitled";

async function listDocuments() {
  const all = await allDocuments();
  if (open && !all.some((found) => found.id === open.id)) all.unshift(open);
  $("documents").replaceChildren(
    ...all.map((found) => {
      const option = document.createElement("option");
      option.value = found.id;
      option.textContent = shownName(found);
      option.selected = found.id === open?.id;
      return option;
    }),
  );
  return all;
}

/** Go to another branch. @param {string} id */
function goTo(id) {
  if (id === open.current || !open.nodes[id]) return;
  end("write");
  end("suggest");
  open.current = id;
  const text = node().text;
  editor.show(text, text.length);
  tokens = [];
  saveSoon();
  drawTree();
  drawThoughts();
  changed(false);
  editor.area.focus();
}

/** @param {number} steps */
function undo(steps) {
  const left = history.state;
  const state = history.go(steps);
  if (!state) return;
  for (const gone of (steps < 0 && left.removed) || []) open.nodes[gone.id] = gone;
  for (const gone of (steps > 0 && state.removed) || []) delete open.nodes[gone.id];
  end("write");
  if (!open.nodes[state.node]) open.nodes[state.node] = { ...newNode(null, state.text, "you"), id: state.node };
  open.current = state.node;
  node().text = state.text;
  const { area } = editor;
  if (area.value !== state.text) {
    area.value = state.text;
    editor.fit();
  }
  area.setSelectionRange(state.caret, state.caret);
  editor.setGhost("");
  saveSoon();
  drawTree();
  showHistory();
  after("suggest", PAUSE_SUGGEST, suggest);
  after("score", PAUSE_SCORE, think);
}

// --- what is sent: the end of a text that is longer than the context

/** How much text leaves room for so many tokens. @param {number} room */
function mostCharacters(room) {
  return Math.max(200, Math.floor((contextLength - room - 16) * charactersPerToken));
}

/** The end of a text that leaves room for so many tokens, and where it begins. @param {string} text @param {number} room */
function fitting(text, room) {
  const most = mostCharacters(room);
  if (text.length <= most) return { sent: text, start: 0 };
  let start = text.length - most;
  const line = text.indexOf("\n", start);
  const space = text.indexOf(" ", start);
  start = line >= 0 && line - start < most / 4 ? line + 1 : space >= 0 ? space : start;
  return { sent: text.slice(start), start };
}

/** Ask, and where the server says that it was too much, with less. @template T @param {() => Promise<T>} asking @returns {Promise<T>} */
async function withLess(asking) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await asking();
    } catch (error) {
      if (!(error instanceof Refused && error.code === "context_length_exceeded") || tries === 8) throw error;
      charactersPerToken *= 0.75;
      pieceSize = 0;
    }
  }
}

/** Ask with the end of a text. @template T @param {string} text @param {number} room @param {(sent: string, start: number) => Promise<T>} asking @returns {Promise<T>} */
function withEnd(text, room, asking) {
  return withLess(() => {
    const { sent, start } = fitting(text, room);
    return asking(sent, start);
  });
}

/** Show how full the context is. @param {number} count @param {string} sent @param {number} start */
function showContext(count, sent, start) {
  if (sent.length > 200) charactersPerToken = Math.max(1, Math.min(8, (0.9 * sent.length) / count));
  $("context").value = Math.min(1, count / contextLength);
  const whole = start ? ", the end of the text" : "";
  $("tokens").textContent = `${count.toLocaleString("en")} of ${contextLength.toLocaleString("en")} tokens${whole}`;
}

// --- suggestions

async function suggest() {
  editor.setGhost("");
  $("heard").textContent = "";
  const text = editor.text.slice(0, editor.caret);
  if (isOffline || running.has("write")) return;
  if (!open.settings.suggest || !editor.isAtEnd || !text.trim()) {
    await run("suggest", async (signal) => {
      await withEnd(text, 64, async (sent, start) => showContext(await countTokens(sent, signal), sent, start));
    });
    return;
  }
  await run("suggest", async (signal) => {
    await withEnd(text, 96, async (sent, start) => {
      let ghost = "";
      const asked = { prompt: sent, max_words: 8, time_budget_ms: 1500, handle: open.id };
      for await (const event of suggestions(asked, signal)) {
        if (event.object === "suggestions") {
          showContext(event.usage.prompt_tokens, sent, start);
          $("heard").textContent = editor.ghost && `Suggested: ${editor.ghost}`;
        } else if (event.index === 0 && editor.text.slice(0, editor.caret) === text) {
          ghost += event.text;
          editor.setGhost(ghost);
        }
      }
    });
  });
}

/** Take the suggestion, or a word of it. @param {boolean} isWhole @returns {boolean} whether there was one */
function takeGhost(isWhole) {
  const ghost = editor.ghost;
  if (!ghost) return false;
  $("heard").textContent = "";
  const taken = isWhole ? ghost : (/^\s*\S+/.exec(ghost)?.[0] ?? ghost);
  editor.replace(editor.caret, editor.caret, taken);
  const rest = ghost.slice(taken.length);
  changed(false);
  if (rest) {
    editor.setGhost(rest);
    end("suggest");
    after("suggest", 4 * PAUSE_SUGGEST, suggest);
  } else editor.setGhost("");
  reveal();
  return true;
}

function dropGhost() {
  const had = Boolean(editor.ghost) || running.has("suggest");
  end("suggest");
  editor.setGhost("");
  $("heard").textContent = "";
  return had;
}

function reveal() {
  if (editor.caret === editor.text.length) $("sheet").scrollIntoView({ block: "end" });
}

// --- going on

/** What a completion is asked with. @param {string} prompt */
function asked(prompt) {
  const { temperature, topP, length, seed, end: stop } = open.settings;
  return {
    prompt,
    max_tokens: length,
    temperature,
    top_p: topP,
    heal: true,
    ...(seed === null ? {} : { seed }),
    ...(stop ? { stop: [stop.replaceAll("\\n", "\n")] } : {}),
  };
}

/** Count tokens and say how fast they come. */
class Speed {
  constructor() {
    this.count = 0;
    this.first = 0;
  }

  token() {
    this.count += 1;
    this.first ||= performance.now();
    const seconds = (performance.now() - this.first) / 1000;
    if (this.count > 4 && seconds > 0) $("speed").textContent = `${((this.count - 1) / seconds).toFixed(0)} tokens/s`;
  }
}

function showWriting() {
  const isWriting = running.has("write");
  $("stop").hidden = !isWriting;
  $("continue").disabled = $("branch").disabled = isWriting;
}

/** Write on from the caret into the text. */
async function goOn() {
  dropGhost();
  const before = editor.text.slice(0, editor.caret);
  const behind = editor.text.slice(editor.caret);
  if (behind.trim()) startBranch(before);
  await run("write", async (signal) => {
    showWriting();
    const speed = new Speed();
    await withEnd(before, open.settings.length, async (sent) => {
      for await (const event of completions(asked(sent), signal)) {
        const { text } = event.choices[0];
        if (!text) continue;
        speed.token();
        editor.replace(editor.text.length, editor.text.length, text);
        node().text = editor.text;
        reveal();
      }
    });
  });
  changed(false);
  drawTree();
}

/** Go to a new branch below this one. @param {string} text @param {"you" | "model"} [by] */
function startBranch(text, by = "you") {
  const child = newNode(open.current, text, by);
  open.nodes[child.id] = child;
  open.current = child.id;
  editor.show(text, text.length);
  drawTree();
}

/** Show several continuations side by side, each a branch. */
async function showChoices() {
  dropGhost();
  const parent = open.current;
  const before = editor.text.slice(0, editor.caret);
  const made = Array.from({ length: open.settings.count }, () => newNode(parent, before, "model"));
  const cards = made.map((child, index) => choiceCard(child, index));
  $("choices").replaceChildren(...cards.map((card) => card.item));
  await run("write", async (signal) => {
    showWriting();
    const speed = new Speed();
    await withEnd(before, open.settings.length, async (sent) => {
      const several = { ...asked(sent), n: made.length, temperature: Math.max(open.settings.temperature, 0.3) };
      for await (const event of completions(several, signal)) {
        for (const choice of event.choices) {
          if (choice.text) speed.token();
          made[choice.index].text += choice.text;
          cards[choice.index].text.textContent = made[choice.index].text.slice(before.length).trimStart();
        }
      }
    });
  });
  for (const child of made) if (child.text !== before && open.nodes[parent]) open.nodes[child.id] = child;
  for (const card of cards) card.take.disabled = card.text.textContent === "";
  cards.find((card) => !card.take.disabled)?.take.focus();
  saveSoon();
  drawTree();
}

/** @param {import("./documents.js").Node} child @param {number} index */
function choiceCard(child, index) {
  const item = document.createElement("li");
  const text = document.createElement("p");
  const take = document.createElement("button");
  take.type = "button";
  take.textContent = `Take ${index + 1}`;
  take.disabled = true;
  take.addEventListener("click", () => {
    $("choices").replaceChildren();
    goTo(child.id);
  });
  text.id = `choice-${index + 1}`;
  take.setAttribute("aria-describedby", text.id);
  item.append(text, take);
  return { item, text, take };
}

// --- branches

function drawTree() {
  $("tree").replaceChildren(...children(open, null).map(drawNode));
}

/** @param {import("./documents.js").Node} drawn @returns {HTMLLIElement} */
function drawNode(drawn) {
  const item = document.createElement("li");
  const row = document.createElement("div");
  row.className = "row";
  const go = document.createElement("button");
  go.type = "button";
  go.textContent = ownText(open, drawn).trim().slice(0, 60) || "Empty";
  if (drawn.id === open.current) go.setAttribute("aria-current", "true");
  go.addEventListener("click", () => goTo(drawn.id));
  row.append(go);
  if (Object.keys(open.nodes).length > 1 && !isBelow(open, open.current, drawn.id)) {
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "✕";
    remove.setAttribute("aria-label", `Remove the branch ${go.textContent}`);
    remove.addEventListener("click", () => {
      const removed = removeBranch(open, drawn.id);
      history.note({ node: open.current, text: editor.text, caret: editor.caret, removed }, false);
      showHistory();
      saveSoon();
      drawTree();
      editor.area.focus();
    });
    row.append(remove);
  }
  item.append(row);
  const below = children(open, drawn.id);
  if (below.length) {
    const list = document.createElement("ul");
    // A line of texts without a fork goes straight down.
    if (below.length === 1) list.className = "straight";
    list.append(...below.map(drawNode));
    item.append(list);
  }
  return item;
}

// --- what the model thinks

async function think() {
  if (!open.settings.colour || isOffline) return;
  const text = editor.text;
  if (!text.trim()) {
    tokens = [];
    drawThoughts();
    return;
  }
  await run("score", (signal) => withLess(() => thinkOf(text, signal)));
}

/** Ask about a text piece by piece, what is in view first; what was asked before is known. @param {string} text @param {AbortSignal} signal */
async function thinkOf(text, signal) {
  // Another size has other pieces, so that it stays unless it was too large.
  pieceSize ||= mostCharacters(2);
  const pieces = piecesOf(text, pieceSize).map((piece) => ({ ...piece, sent: text.slice(piece.start, piece.end) }));
  const found = new Map(pieces.map(({ sent }) => [sent, known.get(sent)]));
  const middle = editor.middleInView;
  const away = (/** @type {{from: number, end: number}} */ piece) => Math.max(piece.from - middle, middle - piece.end, 0);
  const missing = pieces.filter(({ sent }) => !found.get(sent)).sort((a, b) => away(a) - away(b));
  known = found;
  for (const piece of [null, ...missing]) {
    if (piece) {
      const listed = await scores(piece.sent, signal);
      const from = piece.from - piece.start;
      known.set(piece.sent, tokensOf(listed, piece.sent, 0).filter((token) => token.start >= from));
      if (pieces.length === 1) showContext(listed.promptTokens, text, 0);
    }
    if (editor.text !== text) return;
    tokens = pieces.flatMap(({ start, sent }) =>
      (known.get(sent) ?? []).map((token) => ({ ...token, start: token.start + start, end: token.end + start })),
    );
    if (piece || !missing.length) drawThoughts();
  }
}

function drawThoughts() {
  $("thoughts").hidden = !open.settings.colour;
  const marks = tokens.flatMap((token, index) =>
    token.logprob === null || token.end <= token.start
      ? []
      : [{ start: token.start, end: token.end, level: levelOf(token.logprob), index }],
  );
  editor.setMarks(open.settings.colour ? marks : []);
  const value = perplexity(tokens);
  $("perplexity").textContent = Number.isNaN(value) ? "" : `Perplexity ${value.toFixed(value < 100 ? 1 : 0)} a token`;
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", linePath(tokens, 300, 60));
  $("line").replaceChildren(path);
  showToken(editor.tokenOf(editor.caret));
}

/** Show what could have stood in the place of a token. @param {number} index */
function showToken(index) {
  const token = tokens[index];
  editor.setHere(token ? index : -1);
  if (!token || token.logprob === null) {
    $("token-title").textContent = "Put the cursor on a token, or the mouse over it.";
    $("alternatives").replaceChildren();
    return;
  }
  const rank = token.top.findIndex(([text]) => text === token.text);
  const place = rank < 0 ? "below the ten likeliest" : `number ${rank + 1}`;
  $("token-title").textContent = `${readable(token.text)} had ${percent(token.logprob)}, ${place}`;
  $("alternatives").replaceChildren(
    ...token.top.map(([text, logprob], number) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      const parts = [`${number + 1}`, readable(text), percent(logprob)].map((part) => {
        const span = document.createElement("span");
        span.textContent = part;
        return span;
      });
      button.append(...parts);
      button.setAttribute("aria-label", `Put ${readable(text)} here and go on, ${percent(logprob)}`);
      if (text === token.text) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => putInstead(token, text));
      item.append(button);
      return item;
    }),
  );
}

/** Put an alternative in a token's place, on a branch of its own, and go on from it. @param {import("./thoughts.js").Token} token @param {string} text */
async function putInstead(token, text) {
  if (text.startsWith("bytes:")) {
    say("That token is a part of a character; take another.");
    return;
  }
  const before = editor.text.slice(0, token.start);
  startBranch(before + (token.isBare || !before ? text.replace(/^ /, "") : text));
  saveSoon();
  // The button that was pressed goes.
  editor.area.focus();
  await goOn();
}

// --- settings

const FIELDS = { temperature: "temperature", "top-p": "topP", length: "length", seed: "seed", end: "end" };
const SWITCHES = { suggest: "suggest", colour: "colour" };

function showSettings() {
  for (const [id, name] of Object.entries(FIELDS)) $(id).value = open.settings[name] ?? "";
  for (const [id, name] of Object.entries(SWITCHES)) $(id).checked = open.settings[name];
  $("count").value = String(open.settings.count);
  $("temperature-value").textContent = open.settings.temperature.toFixed(1);
  $("top-p-value").textContent = open.settings.topP.toFixed(2);
}

function readSettings() {
  // What is no number that there is stays as it was.
  const { settings } = open;
  const number = (/** @type {string} */ id, /** @type {number | null} */ before, /** @type {number | null} */ none) =>
    !$(id).checkValidity() ? before : $(id).value === "" ? none : Number($(id).value);
  Object.assign(settings, {
    temperature: number("temperature", settings.temperature, settings.temperature),
    topP: number("top-p", settings.topP, settings.topP),
    length: number("length", settings.length, settings.length),
    seed: number("seed", settings.seed, null),
    end: $("end").value,
    suggest: $("suggest").checked,
    colour: $("colour").checked,
    count: Number($("count").value),
  });
  $("temperature-value").textContent = open.settings.temperature.toFixed(1);
  $("top-p-value").textContent = open.settings.topP.toFixed(2);
  saveSoon();
}

function download(/** @type {string} */ name, /** @type {string} */ content, /** @type {string} */ type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = () => (open.name || "document").replace(/[^\p{L}\p{N} _-]/gu, "").trim() || "document";

// --- what the writer does

editor.area.addEventListener("input", () => {
  editor.setGhost("");
  $("heard").textContent = "";
  end("suggest");
  editor.fit();
  changed(true);
});

editor.area.addEventListener("keydown", (event) => {
  const isCommand = event.ctrlKey || event.metaKey;
  if (event.isComposing) return;
  if (event.key === "Tab" && !event.shiftKey && !isCommand && !event.altKey) {
    if (takeGhost(true)) event.preventDefault();
  } else if (event.key === "ArrowRight" && (isCommand || event.altKey) && !event.shiftKey) {
    if (takeGhost(false)) event.preventDefault();
  }
});

document.addEventListener("keydown", (event) => {
  const isCommand = event.ctrlKey || event.metaKey;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (running.has("write")) end("write");
    else dropGhost();
  } else if (event.key === "Enter" && isCommand) {
    event.preventDefault();
    if (running.has("write")) return;
    if (event.shiftKey) showChoices();
    else goOn();
  } else if (isCommand && event.key.toLowerCase() === "z") {
    if (event.target instanceof HTMLInputElement) return;
    event.preventDefault();
    undo(event.shiftKey ? 1 : -1);
  } else if (isCommand && event.key.toLowerCase() === "y" && !(event.target instanceof HTMLInputElement)) {
    event.preventDefault();
    undo(1);
  } else if (/^[1-8]$/.test(event.key) && !isField(event.target) && $("choices").children.length) {
    event.preventDefault();
    $("choices").children[Number(event.key) - 1]?.querySelector("button")?.click();
  }
});

/** Whether keys are typed there. @param {EventTarget | null} target */
function isField(target) {
  return target instanceof HTMLTextAreaElement || target instanceof HTMLInputElement || target instanceof HTMLSelectElement;
}

// From the text to what else could have stood at the caret, and back.
editor.area.addEventListener("keydown", (event) => {
  if (event.key !== "." || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if (open.settings.colour) $("alternatives").querySelector("button")?.focus();
  else $("colour").click();
});
$("alternatives").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  const buttons = [...$("alternatives").querySelectorAll("button")];
  const at = buttons.indexOf(event.target);
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) buttons[(at + step + buttons.length) % buttons.length]?.focus();
  else if (event.key === "Escape") editor.area.focus();
  else return;
  event.preventDefault();
});

document.addEventListener("selectionchange", () => {
  if (document.activeElement !== editor.area) return;
  if (editor.ghost && !editor.isAtEnd) editor.setGhost("");
  if (open?.settings.colour) showToken(editor.tokenOf(editor.caret));
});

// To choose an alternative the mouse leaves the text, over other tokens: the one that was clicked is shown again.
editor.area.addEventListener("mouseleave", () => {
  cancelAnimationFrame(hovering);
  if (open.settings.colour) showToken(editor.tokenOf(editor.caret));
});

let hovering = 0;
editor.area.addEventListener("mousemove", (event) => {
  if (!open.settings.colour || !tokens.length) return;
  cancelAnimationFrame(hovering);
  hovering = requestAnimationFrame(() => {
    const index = editor.tokenAt(event.clientX, event.clientY);
    if (index >= 0) showToken(index);
  });
});

$("sheet").addEventListener("click", (/** @type {MouseEvent} */ event) => {
  if (event.target === $("sheet")) editor.area.focus();
});

for (const [id, isWhole] of [["take", true], ["take-word", false]]) {
  // The text keeps the focus, and a phone its keyboard.
  $(id).addEventListener("pointerdown", (/** @type {Event} */ event) => event.preventDefault());
  $(id).addEventListener("click", () => takeGhost(isWhole));
}
$("continue").addEventListener("click", () => goOn());
$("stop").addEventListener("click", () => end("write"));
$("branch").addEventListener("click", () => showChoices());
$("undo").addEventListener("click", () => undo(-1));
$("redo").addEventListener("click", () => undo(1));
$("help").addEventListener("click", () => $("help-dialog").showModal());
$("key-dialog").addEventListener("close", () => {
  if (!$("key").value) return;
  useKey($("key").value);
  $("key").value = "";
  meetModel().then(() => changed(false));
});
$("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
  localStorage.setItem("helium-theme", (document.documentElement.dataset.theme = isDark ? "light" : "dark"));
});
$("settings").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
for (const id of [...Object.keys(FIELDS), "suggest", "count"]) $(id).addEventListener("input", readSettings);
$("suggest").addEventListener("input", () => suggest());
$("colour").addEventListener("input", () => {
  readSettings();
  drawThoughts();
  think();
});
$("name").addEventListener("input", () => {
  open.name = $("name").value;
  saveSoon();
});
$("documents").addEventListener("change", async () => {
  // Saving lists the documents anew.
  const chosen = $("documents").value;
  await save();
  const found = await shelf.get(chosen);
  if (found) openDocument(found);
});
$("new").addEventListener("click", async () => {
  await save();
  await openNew();
});
$("export-json").addEventListener("click", () => download(`${fileName()}.json`, toJson(open), "application/json"));
$("export-text").addEventListener("click", () => download(`${fileName()}.txt`, node().text, "text/plain"));
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  try {
    const made = fromFile(file.name, await file.text());
    await save();
    openDocument(made);
    saveSoon();
    say("");
  } catch (error) {
    say(`Not imported: ${error instanceof Error ? error.message : error}`);
  }
});
$("delete").addEventListener("click", async () => {
  if (!confirm(`Delete “${open.name}” and all its branches from this browser?`)) return;
  clearTimeout(timers.get("save"));
  unsaved = false;
  await shelf.remove(open.id);
  const [next] = (await shelf.all()).filter((found) => found.id !== open.id);
  if (next) openDocument(next);
  else await openNew();
  await listDocuments();
});
for (const menu of document.querySelectorAll("details.menu")) {
  menu.addEventListener("click", (event) => {
    if (event.target instanceof HTMLButtonElement) menu.removeAttribute("open");
  });
  menu.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape") return;
    menu.removeAttribute("open");
    menu.querySelector("summary")?.focus();
  });
  menu.addEventListener("focusout", (/** @type {FocusEvent} */ event) => {
    if (event.relatedTarget instanceof Node && !menu.contains(event.relatedTarget)) menu.removeAttribute("open");
  });
}
document.addEventListener("visibilitychange", () => save());
addEventListener("pagehide", () => {
  if (unsaved || saving) shelf.note(open, base);
});

// --- the beginning

new ResizeObserver(() => {
  document.documentElement.style.setProperty("--foot", `${document.querySelector("footer")?.offsetHeight}px`);
}).observe(/** @type {HTMLElement} */ (document.querySelector("footer")));

async function openNew() {
  const names = new Set((await allDocuments()).map((found) => found.name));
  let number = 1;
  while (names.has(`Text ${number}`)) number += 1;
  openDocument(newDocument(`Text ${number}`));
  saveSoon();
  editor.area.focus();
}

async function meetModel() {
  try {
    const found = await model();
    contextLength = found.max_model_len;
    $("model").textContent = found.id;
    backOnline();
  } catch (error) {
    report(error, "model");
  }
}

async function begin() {
  const theme = localStorage.getItem("helium-theme");
  if (theme) document.documentElement.dataset.theme = theme;
  $("count").replaceChildren(
    ...Array.from({ length: MOST_CHOICES - 1 }, (_, index) => {
      const option = document.createElement("option");
      option.value = option.textContent = String(index + 2);
      return option;
    }),
  );
  await shelf.takeNoted().catch(() => {});
  const all = await allDocuments();
  const last = sessionStorage.getItem("helium-open");
  const found = all.find((one) => one.id === last) ?? all[0];
  if (found) openDocument(found);
  else await openNew();
  await listDocuments();
  editor.area.focus();
  await meetModel();
  document.documentElement.dataset.ready = "true";
}

begin();
