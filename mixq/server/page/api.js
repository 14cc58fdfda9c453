// Calls the server: JSON requests and server-sent events.
//
// Contract: a failure is an `ApiError` whose `status` is HTTP's, or 0 if the server did not answer or the connection
// was lost. The API key is kept for this tab only and sent only to the server of this page.

const KEY = "mixq.key";

export class ApiError extends Error {
  constructor(status, { message, code = null }, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

export const setKey = (key) => sessionStorage.setItem(KEY, key);

async function send(path, { body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw gone();
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

const gone = () => new ApiError(0, { message: "The server does not respond.", code: "server_gone" });

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    error = {}; // an error page of a proxy, not of our server
  }
  const message = typeof error.message === "string" ? error.message : `The server responded with status ${response.status}.`;
  const wait = Number(response.headers.get("Retry-After"));
  return new ApiError(response.status, { message, code: error.code ?? null }, wait > 0 ? wait : null);
}

export const getStatus = async (signal) => (await send("/mixq/status", { signal })).json();
export const reload = (vram) => send("/mixq/reload", { body: { vram } });

/** Yield the documents of a stream; throws ApiError for an error event, or if the end is missing. */
export async function* stream(path, body, signal) {
  const response = await send(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw gone();
      buffer += value;
      const events = buffer.split(/\r?\n\r?\n/);
      buffer = events.pop();
      for (const event of events) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (!data) continue;
        const document = JSON.parse(data);
        if (document.error) throw new ApiError(document.error.code === "context_length_exceeded" ? 400 : 500, document.error);
        yield document;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    if (error instanceof TypeError) throw gone(); // the connection was lost
    throw error;
  } finally {
    reader.cancel().catch(() => {}); // the connection is closed already
  }
}
