// What the model thinks of a text: how probable each token was, what else could have stood there, and how surprising
// the text is along its way.

/**
 * `isBare` is a token whose text begins with a space that is not written.
 * @typedef {{start: number, end: number, text: string, isBare: boolean, logprob: number | null,
 *   top: [string, number][]}} Token
 */

const LEVELS = 8;
const MOST_POINTS = 150;

/** The tokens that a server's answer lists, with places in UTF-16 as the page counts. @param {any} listed @param {string} text @param {number} shift @returns {Token[]} */
export function tokensOf(listed, text, shift) {
  // The server counts characters, JavaScript halves of them where they are large.
  const places = [];
  let place = 0;
  for (const character of text) {
    places.push(place);
    place += character.length;
  }
  places.push(place);
  const at = (/** @type {number} */ offset) => places[offset] ?? text.length;
  // A tokenizer may put a space before each line, which is none of the text.
  let added = 0;
  const starts = listed.tokens.map((/** @type {string} */ shown, /** @type {number} */ index) => {
    const start = at(listed.text_offset[index] - added);
    if (shown.startsWith(" ") && text[start] !== " ") added += 1;
    return start;
  });
  return listed.tokens.map((/** @type {string} */ shown, /** @type {number} */ index) => ({
    start: starts[index] + shift,
    end: (starts[index + 1] ?? text.length) + shift,
    text: shown,
    isBare: shown.startsWith(" ") && text[starts[index]] !== " ",
    logprob: listed.token_logprobs[index],
    top: Object.entries(listed.top_logprobs?.[index] ?? {}).sort((a, b) => b[1] - a[1]).slice(0, 10),
  }));
}

/**
 * The pieces in which a text is asked about, none longer than `size`: all tokens from `from` on, which but in the first
 * piece have half of it before them. While a text grows at its end, all pieces but the last ones stay as they are.
 * @param {string} text @param {number} size @returns {{start: number, from: number, end: number}[]}
 */
export function piecesOf(text, size) {
  if (text.length <= size) return [{ start: 0, from: 0, end: text.length }];
  const half = Math.floor(size / 2);
  const cuts = [0];
  for (let last = 0; text.length - last > half; cuts.push(last)) last = cutNear(text, last, last + half);
  cuts.push(text.length);
  return cuts.slice(2).map((end, index) => ({ start: cuts[index], from: index ? cuts[index + 1] : 0, end }));
}

/** Where a word begins, after one place and not after another. @param {string} text @param {number} after @param {number} most */
function cutNear(text, after, most) {
  const found = Math.max(text.lastIndexOf(" ", most), text.lastIndexOf("\n", most));
  if (found > after) return found;
  // Not within a pair of UTF-16.
  return /[\udc00-\udfff]/.test(text[most]) ? most - 1 : most;
}

/** How a token is coloured, 0 for an unlikely one. @param {number} logprob @returns {number} */
export function levelOf(logprob) {
  // Halves of the way: a probability of 1 in 256 or less is the first, of 1 the last.
  return Math.max(0, Math.min(LEVELS - 1, Math.round(LEVELS - 1 + (logprob / Math.LN2) * 0.875)));
}

/** @param {Token[]} tokens @returns {number} */
export function perplexity(tokens) {
  const known = tokens.filter((token) => token.logprob !== null);
  return known.length ? Math.exp(-known.reduce((sum, token) => sum + Number(token.logprob), 0) / known.length) : NaN;
}

/** The path of a line of surprise along the text, smoothed, in a box of so many units. @param {Token[]} tokens @param {number} width @param {number} height */
export function linePath(tokens, width, height) {
  const known = tokens.filter((token) => token.logprob !== null);
  if (known.length < 2) return "";
  const size = Math.max(1, Math.ceil(known.length / MOST_POINTS));
  const means = [];
  for (let at = 0; at < known.length; at += size) {
    const part = known.slice(at, at + size);
    means.push(part.reduce((sum, token) => sum - Number(token.logprob), 0) / part.length);
  }
  const smooth = means.map((_, index) => {
    const near = means.slice(Math.max(0, index - 2), index + 3);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
  const most = Math.max(4, ...smooth);
  const points = smooth.map((value, index) => {
    const x = (index / Math.max(1, smooth.length - 1)) * width;
    return `${x.toFixed(1)} ${(height - 3 - (value / most) * (height - 6)).toFixed(1)}`;
  });
  return `M${points.join("L")}`;
}

/** A token as it can be read: spaces and line ends are shown. @param {string} text */
export function readable(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎");
}

/** A probability in per cent. @param {number} logprob */
export function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value >= 10 ? `${value.toFixed(0)} %` : value >= 0.1 ? `${value.toFixed(1)} %` : "< 0.1 %";
}
