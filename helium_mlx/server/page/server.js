// What the page asks the server. Every call may be aborted; where the server does not answer, Offline is thrown.

/** The server does not answer: it has ended, or the network has. */
export class Offline extends Error {}

/** The server answered with an error, one line. `code` is OpenAI's. */
export class Refused extends Error {
  /** @param {number} status @param {{message: string, code: string | null}} error */
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
  }
}

const KEY = "helium-api-key";

/** Remember the key for this tab. @param {string} key */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/**
 * @param {string} path @param {object | null} body @param {AbortSignal} [signal]
 * @returns {Promise<Response>}
 */
async function ask(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  let answer;
  try {
    const sent = body === null ? {} : { method: "POST", body: JSON.stringify(body) };
    answer = await fetch(path, { ...sent, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Offline("the server does not answer");
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({ error: { message: `status ${answer.status}`, code: null } }));
  throw new Refused(answer.status, error);
}

/**
 * Yield the events of an answer that streams.
 * @param {string} path @param {object} body @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 */
async function* events(path, body, signal) {
  const answer = await ask(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const whole = held.split("\n\n");
      held = whole.pop();
      for (const event of whole) {
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const read = JSON.parse(data);
        signal.throwIfAborted();
        if (read.error) throw new Refused(200, read.error);
        yield read;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refused) throw error;
    throw new Offline("the server does not answer");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @returns {Promise<{id: string, max_model_len: number}>} */
export async function model() {
  return (await (await ask("/v1/models", null)).json()).data[0];
}

/** Whether the server answers. @returns {Promise<boolean>} */
export async function answers() {
  return ask("/health", null).then(() => true, (error) => !(error instanceof Offline));
}

/** @param {string} prompt @param {AbortSignal} signal @returns {Promise<number>} */
export async function countTokens(prompt, signal) {
  return (await (await ask("/tokenize", { prompt }, signal)).json()).count;
}

/** Words that may follow, one by one, and at the end the whole. @param {object} asked @param {AbortSignal} signal */
export function suggestions(asked, signal) {
  return events("/v1/suggestions", asked, signal);
}

/** Events of completions. @param {object} asked @param {AbortSignal} signal */
export function completions(asked, signal) {
  return events("/v1/completions", asked, signal);
}

/**
 * The tokens of a text with their log-probabilities and the ten likeliest in the place of each.
 * @param {string} prompt @param {AbortSignal} signal
 */
export async function scores(prompt, signal) {
  const asked = { prompt, max_tokens: 0, echo: true, logprobs: 10 };
  const answer = await (await ask("/v1/completions", asked, signal)).json();
  return { ...answer.choices[0].logprobs, promptTokens: answer.usage.prompt_tokens };
}
