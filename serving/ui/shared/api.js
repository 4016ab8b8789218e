// Requests to the service beside this page: the key, patience where it is busy, errors as sentences.

import { parse } from "./npy.js";

export const KEY_NAME = "canvas-fm key";
const BASE = new URL("../../v1/", import.meta.url);
const PATIENCE_S = 180;
const NPY = "application/x-npy";

/** What the service said to a request that it did not answer. */
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

let askForKey = async () => false;
let asking = null;
let waiting = () => {};

/** How to get a key from the person (true once there is one), and whom to tell that the service is busy. */
export function onNeed(forKey, whileBusy) {
  askForKey = forKey;
  waiting = whileBusy;
}

export const heldKey = () => sessionStorage.getItem(KEY_NAME);
export const holdKey = (key) => sessionStorage.setItem(KEY_NAME, key);
export const dropKey = () => sessionStorage.removeItem(KEY_NAME);

/** A good reply, however many tries it takes; Refused otherwise, AbortError where `signal` says so. */
export async function ask(path, { query = {}, json, npy, accept, signal, patience = PATIENCE_S } = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== undefined && each !== null && each !== "") url.searchParams.append(name, each);
    }
  }
  const headers = { Accept: accept ?? "application/json" };
  if (json !== undefined) headers["Content-Type"] = "application/json";
  if (npy !== undefined) headers["Content-Type"] = NPY;
  const body = json === undefined ? npy : JSON.stringify(json);
  const end = Date.now() + 1000 * patience;
  for (;;) {
    const key = heldKey();
    if (key) headers.Authorization = `Bearer ${key}`;
    let reply;
    try {
      reply = await fetch(url, { method: body === undefined ? "GET" : "POST", headers, body, signal, cache: "no-store" });
    } catch (problem) {
      if (problem.name === "AbortError") throw problem;
      throw new Refused(0, "the service cannot be reached; is it still running?");
    }
    if (reply.ok) return reply;
    const sentence = await sentenceOf(reply);
    if (reply.status === 401) {
      asking ??= askForKey(Boolean(key)).finally(() => { asking = null; });
      if (await asking) continue;
    } else if ((reply.status === 429 || reply.status === 503) && Date.now() < end) {
      await pause(1000 * (Number(reply.headers.get("Retry-After")) || 1), sentence, signal);
      continue;
    }
    throw new Refused(reply.status, sentence);
  }
}

async function sentenceOf(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `the service answered ${reply.status}`;
  }
}

function pause(ms, sentence, signal) {
  waiting(sentence);
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("given up", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  }).finally(() => waiting(""));
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** `{data, shape, headers}` of a reply in `.npy`. */
export async function askArray(path, options = {}) {
  const reply = await ask(path, { accept: NPY, ...options });
  return { ...parse(await reply.arrayBuffer()), headers: reply.headers };
}

/** One job at a time: `run(signal)` is given up when the next begins; its abandonment is no error. */
export class Latest {
  #current = null;

  async run(job) {
    this.#current?.abort();
    const mine = (this.#current = new AbortController());
    try {
      const result = await job(mine.signal);
      return mine.signal.aborted ? undefined : result;
    } catch (problem) {
      if (problem.name === "AbortError") return undefined;
      throw problem;
    }
  }
}
