// What a user is told when an answer fails, and what to do about it.

import { button, element } from "./elements.js";

/** Return {title, text, act}: act is "retry", "new" (ask in a new conversation) or null. */
function explained(error) {
  if (error.status === 0) return { title: "The server is gone.", text: "It does not answer any more; is mixq serve still running? The page looks for it by itself.", act: "retry" };
  if (error.code === "context_length_exceeded") {
    return { title: "This is longer than the model’s context.", text: `${error.message} Shorten an earlier message, or ask in a new conversation.`, act: "new" };
  }
  if (error.code === "queue_full") {
    const wait = error.retryAfter ? ` Try again in about ${error.retryAfter} s.` : " Try again in a moment.";
    return { title: "The server is busy.", text: `${error.message}${wait}`, act: "retry" };
  }
  if (error.status === 503) return { title: "The server is not ready.", text: error.message, act: "retry" };
  if (error.status === 401) return { title: "The server wants its key.", text: "Enter it above, then try again.", act: "retry" };
  if (error.code === "settings") return { title: "A setting is not right.", text: error.message, act: "retry" };
  if (error.status >= 500) return { title: "The answer was broken off.", text: error.message, act: "retry" };
  return { title: "The server refused this.", text: error.message, act: "retry" };
}

/** Return the box that says so; `acts` has the functions for retry and new. */
export function problemBox(error, acts) {
  const { title, text, act } = explained(error);
  const labels = { retry: "Try again", new: "Ask in a new conversation" };
  return element("div", { className: "problem", role: "alert" }, element("strong", { textContent: title }), element("p", { textContent: text }), button(labels[act], acts[act]));
}
