// Undo and redo over all that changes a document's text: typing, what was taken, and going to another branch.

/**
 * `removed` are nodes that were taken out when the state came about.
 * @typedef {{node: string, text: string, caret: number, removed?: import("./documents.js").Node[]}} State
 */

// Typing within so many milliseconds is one step.
const TYPING = 1000;
const MOST = 500;

/** The states of a document, of which one is now. */
export class History {
  /** @param {State} state */
  constructor(state) {
    this.states = [state];
    this.now = 0;
    this.typed = 0;
  }

  /** Note a new state. @param {State} state @param {boolean} isTyping */
  note(state, isTyping) {
    const time = performance.now();
    const last = this.states[this.now];
    if (last.node === state.node && last.text === state.text && !state.removed) return;
    const goesOn = isTyping && this.typed > 0 && time - this.typed < TYPING && last.node === state.node;
    this.typed = isTyping ? time : 0;
    this.states.length = this.now + 1;
    if (goesOn) {
      this.states[this.now] = state;
      return;
    }
    this.states.push(state);
    if (this.states.length > MOST) this.states.shift();
    this.now = this.states.length - 1;
  }

  /** The state so many steps away, which becomes now; null if there is none. @param {number} steps */
  go(steps) {
    const to = this.now + steps;
    if (to < 0 || to >= this.states.length) return null;
    this.now = to;
    this.typed = 0;
    return this.states[to];
  }

  get state() { return this.states[this.now]; }
  get canUndo() { return this.now > 0; }
  get canRedo() { return this.now < this.states.length - 1; }
}
