// What every page uses: asking the server, telling what went wrong, copying.

const token = document.querySelector("meta[name=action-token]").content;
const toast = document.getElementById("toast");

/** Show a message that stays until the next click. */
export function tell(message) {
  toast.textContent = message;
  toast.hidden = false;
}

document.addEventListener("click", () => (toast.hidden = true), true);

/** Ask the server to do something; returns its answer, or null where it refused and said why. */
export async function post(path, body = {}, { quiet = false, expected = [] } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-gptoss-tune-action": token },
      body: JSON.stringify(body),
    });
  } catch {
    if (!quiet) tell("The server does not answer: was `gptoss-tune ui` ended?");
    return null;
  }
  const type = answer.headers.get("content-type") || "";
  const said = type.includes("json") ? await answer.json() : { error: await answer.text() };
  if (answer.ok || expected.includes(answer.status)) return said;
  if (quiet) return said;
  tell(said.error || "The server could not do that.");
  return null;
}

/** Read JSON; null where nothing has changed or the server is gone. */
export async function get(path) {
  try {
    const answer = await fetch(path);
    return answer.status === 200 ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** Open a dialog; resolves to whether it was agreed to. */
export function agreed(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    } catch {
      tell("The browser does not let this page copy: mark the command and copy it yourself.");
    }
  });
}

/** Replace an element's content and keep what is folded open in it, and the focus. */
export function redraw(element, html) {
  if (element.dataset.drawn === html) return;
  const open = [...element.querySelectorAll("details")].map((one) => one.open);
  const marked = [...element.querySelectorAll("a, button, summary, [tabindex]")];
  const place = marked.indexOf(document.activeElement);
  element.innerHTML = html;
  element.dataset.drawn = html;
  element.querySelectorAll("details").forEach((one, n) => (one.open = open[n] ?? one.open));
  if (place >= 0) element.querySelectorAll("a, button, summary, [tabindex]")[place]?.focus();
}

/** Call again and again while the page is seen. */
export function whileSeen(act, seconds) {
  const again = async () => {
    if (!document.hidden && (await act()) === false) return;
    setTimeout(again, seconds * 1000);
  };
  setTimeout(again, seconds * 1000);
}
