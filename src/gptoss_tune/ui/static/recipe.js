// A recipe: the form is checked as it is filled, its result shown as YAML and as a plan.
import { agreed, get, post, redraw, tell } from "/static/ui.js";

const $ = (id) => document.getElementById(id);
const form = $("form");
const SETTLE_MS = 250;
let checks = 0;
let sound = false;
let savedYaml = null;
let savedPath = $("train-command").dataset.file;
let timer;

function method() {
  return form.elements["method.name"].value || "sft";
}

/** What the form says, by the keys of its settings. */
function filled() {
  const found = {};
  for (const field of form.querySelectorAll(".field")) {
    if (field.dataset.method && field.dataset.method !== method()) continue;
    const boxes = field.querySelector(".boxes");
    const control = field.querySelector("input, select, textarea");
    if (boxes) {
      const ticked = [...boxes.querySelectorAll("input:checked")].map((one) => one.value);
      found[field.dataset.key] = ticked;
    } else found[field.dataset.key] = control.value;
    const said = boxes ? false : control.value.trim() !== "" && control.name !== "method.name";
    field.classList.toggle("given", said);
  }
  return found;
}

function mark(mistakes) {
  for (const field of form.querySelectorAll(".field")) {
    const wrong = field.querySelector(".wrong");
    const own = mistakes.filter((one) => one.field === field.dataset.field);
    const text = own.map((one) => one.message).join("\n");
    if (wrong.textContent !== text) wrong.textContent = text;
    wrong.hidden = own.length === 0;
    for (const control of field.querySelectorAll("input, select, textarea")) {
      if (own.length) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    }
  }
  for (const group of form.querySelectorAll(".group")) {
    const count = group.querySelectorAll(".wrong:not([hidden])").length;
    const words = count ? `${count} mistake${count > 1 ? "s" : ""}` : "";
    const said = group.querySelector(".count");
    if (said.textContent !== words) said.textContent = words;
  }
  const others = $("others");
  others.replaceChildren(
    ...mistakes
      .filter((one) => !one.field)
      .map((one) => {
        const item = document.createElement("li");
        item.textContent = `${one.key ? `${one.key}: ` : ""}${one.message}`;
        return item;
      }),
  );
  others.hidden = others.children.length === 0;
}

function allowed() {
  const same = sound && savedYaml !== null && $("yaml").textContent === savedYaml && savedPath;
  for (const id of ["save", "preview", "check-data"]) $(id).disabled = !sound;
  $("train").disabled = !same || $("train").dataset.runs === "yes";
  $("train-note").textContent = same
    ? "A click starts this, as a process of its own:"
    : "Save the recipe; then this can be started:";
  $("train-command").textContent = `gptoss-tune train ${savedPath || "…"}`;
}

async function check() {
  const number = ++checks;
  $("yaml").classList.add("stale");
  const found = await post("/recipe/check", { form: filled() });
  if (!found || number !== checks) return; // a later one is on its way
  mark(found.mistakes);
  sound = found.mistakes.length === 0;
  $("verdict").textContent = sound
    ? "sound"
    : `${found.mistakes.length} mistake${found.mistakes.length > 1 ? "s" : ""}`;
  $("verdict").className = sound ? "good" : "bad";
  if (sound) {
    $("yaml").textContent = found.yaml;
    $("yaml").classList.remove("stale");
    // The file that was opened says this.
    if (savedYaml === null) savedYaml = found.yaml;
  } else if (savedYaml === null) savedYaml = "";
  allowed();
  await plan(number);
}

async function plan(number) {
  if (!sound) {
    redraw($("plan"), '<p class="soft">When the mistakes are mended.</p>');
    return;
  }
  const gpus = $("gpus").value ? Number($("gpus").value) : null;
  const body = { form: filled(), gpu: $("gpu").value, gpus };
  const found = await post("/recipe/plan", body, { quiet: true });
  if (number !== checks || !found) return;
  if (found.html) return redraw($("plan"), found.html);
  const said = document.createElement("p");
  said.className = "bad";
  said.textContent = found.error;
  $("plan").replaceChildren(said);
  delete $("plan").dataset.drawn;
}

function later() {
  clearTimeout(timer);
  checks++; // what is on its way is of an older form
  timer = setTimeout(check, SETTLE_MS);
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  if (event.target.id === "find") return find(event.target.value);
  if (event.target.name === "method.name") chooseMethod();
  if (event.target.tagName === "TEXTAREA") fit(event.target);
  later();
});
$("gpu").addEventListener("change", later);
$("gpus").addEventListener("input", later);

function chooseMethod() {
  for (const field of form.querySelectorAll(".field[data-method]"))
    field.hidden = field.dataset.method !== method();
}

function fit(area) {
  area.rows = Math.max(1, area.value.split("\n").length);
}

/** Show the settings whose name or help holds every word. */
function find(text) {
  const words = text.toLowerCase().replaceAll("_", " ").split(/\s+/).filter(Boolean);
  for (const group of form.querySelectorAll(".group")) {
    let any = false;
    for (const field of group.querySelectorAll(".field")) {
      const other = field.dataset.method && field.dataset.method !== method();
      const said = `${field.dataset.key} ${field.querySelector(".help").textContent}`;
      const plain = said.toLowerCase().replaceAll("_", " ");
      field.hidden = other || !words.every((word) => plain.includes(word));
      any ||= !field.hidden;
    }
    group.hidden = !any;
    if (!words.length) group.open = group.dataset.before === "open" || (group.open && !("before" in group.dataset));
    else {
      group.dataset.before ??= group.open ? "open" : "shut";
      group.open = any;
    }
    if (!words.length) delete group.dataset.before;
  }
}

$("save").addEventListener("click", async () => {
  const body = { form: filled(), path: $("path").value };
  let answer = await post("/recipe/save", body, { expected: [409] });
  if (answer?.asks) {
    $("overwrite-name").textContent = `${answer.asks}.`;
    if (!(await agreed($("ask-overwrite")))) return;
    answer = await post("/recipe/save", { ...body, overwrite: true });
  }
  if (!answer) return;
  savedPath = answer.path;
  savedYaml = $("yaml").textContent;
  $("saved").textContent = `saved as ${answer.path}`;
  allowed();
});

/** Follow a job: its output as it comes, a button that stops it, its page when it has one. */
function follow(place, job, ended) {
  const head = document.createElement("div");
  const what = document.createElement("code");
  const stop = document.createElement("button");
  const output = document.createElement("pre");
  head.className = "row";
  what.textContent = job.command.replace(/\/\S*\/recipe\.yaml/, "RECIPE").replace(/ --html.*/, "");
  stop.type = "button";
  stop.textContent = "Stop";
  output.tabIndex = 0;
  output.setAttribute("aria-label", "Output");
  head.append(what, stop);
  place.replaceChildren(head, output);
  place.hidden = false;
  stop.addEventListener("click", () => {
    stop.disabled = true;
    post("/job/stop", { number: job.number });
  });
  let from = 0;
  const look = async () => {
    const found = await get(`/job?number=${job.number}&from=${from}`);
    if (found?.output) {
      const below = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
      output.append(found.output);
      if (below) output.scrollTop = output.scrollHeight;
    }
    const more = found && found.end > from;
    if (found) from = found.end;
    if (!found || found.code === null || more) return setTimeout(look, more ? 100 : 700);
    stop.remove();
    const end = document.createElement("span");
    end.setAttribute("role", "status");
    end.className = found.code === 0 ? "good" : "bad";
    end.textContent = found.code === 0 ? "done" : `ended with code ${found.code}`;
    if (found.page) {
      const open = document.createElement("a");
      open.href = `/job/page?number=${job.number}`;
      open.target = "_blank";
      open.rel = "noopener";
      open.className = "button";
      open.textContent = "Open the preview";
      end.textContent = "";
      end.append(open);
    }
    head.append(end);
    ended?.();
  };
  look();
}

for (const kind of ["preview", "check-data"]) {
  $(kind).addEventListener("click", async () => {
    const job = await post(`/recipe/${kind}`, { form: filled() });
    if (job) follow($("job-data"), job);
  });
}

$("train").addEventListener("click", async () => {
  const job = await post("/recipe/train", { form: filled(), path: savedPath });
  if (!job) return;
  $("train").dataset.runs = "yes";
  allowed();
  follow($("job-train"), job, () => {
    delete $("train").dataset.runs;
    allowed();
  });
  const link = document.createElement("p");
  link.innerHTML = '<a href="/">Its curves, in the list of runs</a>';
  $("job-train").append(link);
});

form.querySelectorAll("textarea").forEach(fit);
check().catch((error) => tell(String(error)));
