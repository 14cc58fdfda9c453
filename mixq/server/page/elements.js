// Creates elements. All text is set with textContent, so that text of a model, a file or a server is never read as HTML.

/** Return a new element; `properties` are set as properties, those with a dash or "role" as attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Return a button that calls `act`. */
export function button(label, act, properties = {}) {
  const made = element("button", { type: "button", textContent: label, ...properties });
  made.addEventListener("click", act);
  return made;
}

/** Return an icon; the button around it has the label. */
export function icon(path) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" })) made.setAttribute(name, value);
  made.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  made.firstChild.setAttribute("d", path);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Copy a text, and show the outcome on the button. */
export async function copyText(text, from) {
  const done = await copied(text, from);
  const label = from.textContent;
  if (from.dataset.busy) return;
  from.dataset.busy = "1";
  from.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => { from.textContent = label; delete from.dataset.busy; }, 1500);
}

async function copied(text, from) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch (error) {
      if (!(error instanceof DOMException)) throw error; // refused: try the older method
    }
  }
  const field = element("textarea", { value: text, className: "unseen", "aria-hidden": "true" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy"); // browsers allow the clipboard only for https and localhost
  field.remove();
  from.focus();
  return done;
}
