// Errors for the user: what failed and what to do.

import { button, element } from "./elements.js";

/** Return {title, text, act}: act is "retry", "new" (send in a new conversation) or null. */
function explained(error) {
  if (error.status === 0) return { title: "The server does not respond.", text: "Is mixq serve still running? The page keeps trying to reach it.", act: "retry" };
  if (error.code === "context_length_exceeded") {
    return { title: "The conversation is longer than the model’s context.", text: `${error.message} Shorten an earlier message, or start a new conversation.`, act: "new" };
  }
  if (error.code === "queue_full") {
    const wait = error.retryAfter ? ` Try again in about ${error.retryAfter} s.` : " Try again in a moment.";
    return { title: "The server is busy.", text: `${error.message}${wait}`, act: "retry" };
  }
  if (error.status === 503) return { title: "The server is not ready.", text: error.message, act: "retry" };
  if (error.status === 401) return { title: "API key required", text: "Enter it above, then try again.", act: "retry" };
  if (error.code === "settings") return { title: "A setting is invalid.", text: error.message, act: "retry" };
  if (error.status >= 500) return { title: "The reply was interrupted.", text: error.message, act: "retry" };
  return { title: "The server refused the request.", text: error.message, act: "retry" };
}

/** Return the box that shows an error; `acts` has the functions for retry and new. */
export function problemBox(error, acts) {
  const { title, text, act } = explained(error);
  const labels = { retry: "Try again", new: "Send in a new conversation" };
  return element("div", { className: "problem", role: "alert" }, element("strong", { textContent: title }), element("p", { textContent: text }), button(labels[act], acts[act]));
}
