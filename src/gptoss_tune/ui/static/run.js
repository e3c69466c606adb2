// One run: what has changed of its page is fetched while it moves; the button that stops it.
import { agreed, get, post, redraw, tell, whileSeen } from "/static/ui.js";

const page = document.getElementById("run");
const run = page.dataset.run;
const spoken = document.getElementById("spoken");
const SPEAK_EVERY_MS = 30000;
let spokenAt = Date.now();

function show(found) {
  page.dataset.version = found.version;
  document.getElementById("words").textContent = found.words;
  redraw(document.getElementById("badge"), found.badge);
  const bar = document.getElementById("progress");
  bar.max = found.steps || 1;
  bar.value = found.steps ? found.step : 0;
  for (const [name, html] of Object.entries(found.parts)) {
    redraw(page.querySelector(`[data-part="${name}"]`), html);
    const section = page.querySelector(`[data-section="${name}"]`);
    if (section) section.hidden = !html;
  }
  if (!found.moves || Date.now() - spokenAt > SPEAK_EVERY_MS) {
    spoken.textContent = found.words;
    spokenAt = Date.now();
  }
}

if (page.hasAttribute("data-moves")) {
  whileSeen(async () => {
    const version = page.dataset.version;
    const found = await get(`/run/live?run=${encodeURIComponent(run)}&version=${version}`);
    if (!found) return true;
    show(found);
    if (found.moves) return true;
    // It has ended: what is to be done next stands in the page as the server makes it.
    location.reload();
    return false;
  }, 2);
}

const stop = document.getElementById("stop");
stop?.addEventListener("click", async () => {
  if (!(await agreed(document.getElementById("ask-stop")))) return;
  stop.disabled = true;
  const answer = await post("/run/stop", { run });
  if (answer) {
    stop.textContent = "Stopping";
    tell(`Process ${answer.process} was asked to stop; it saves a checkpoint first.`);
  } else stop.disabled = false;
});
