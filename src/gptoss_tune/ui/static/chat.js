// The chat: one long question to the server for what is new, and the conversation drawn from it.
import { get, post, tell } from "/static/ui.js";

const $ = (id) => document.getElementById(id);
const talk = $("talk");
const NAMES = { analysis: "thinking", commentary: "to tools", final: "answer" };
const ENDS = { length: "cut at the longest answer", interrupt: "stopped", error: "ended by an error" };
let session = -1;
let next = 0;
let state = "none";
let turn = null;
let part = null;
let begun = false;

function make(tag, css, text = "") {
  const element = document.createElement(tag);
  element.className = css;
  element.textContent = text;
  return element;
}

function below() {
  return talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
}

function note(text, css = "soft empty") {
  talk.append(make("p", css, text));
}

function opened(who) {
  const made = make("div", `turn ${who}`);
  made.append(make("b", "", who === "user" ? "you" : "model"));
  talk.append(made);
  return made;
}

/** Add text of a channel to the answer; a new block where the channel changes. */
function said(channel, text) {
  turn ??= opened("assistant");
  if (!part || part.channel !== channel) {
    // The thoughts fold away when the answer begins.
    if (part?.fold) part.fold.open = false;
    const block = make("div", "text");
    part = { channel, block, fold: null };
    if (channel === "final") turn.append(block);
    else {
      const fold = make("details", channel.split(" ")[0]);
      fold.open = true;
      fold.append(make("summary", "", NAMES[channel] || channel), block);
      part.fold = fold;
      turn.append(fold);
    }
  }
  part.block.append(text);
}

const events = {
  ready: () => note("Loaded. Ask something."),
  asked: (event) => {
    opened("user").append(make("div", "text", event.text));
    turn = part = null;
  },
  said: (event) => said(event.channel, event.text),
  trouble: (event) => note(event.message, "bad"),
  answered: (event) => {
    if (ENDS[event.ended]) (turn ?? talk).append(make("p", "ended", ENDS[event.ended]));
    turn = part = null;
  },
  failed: (event) => note(event.message, "bad words"),
};

function allowed() {
  const ready = state === "ready";
  const loaded = ready || state === "answering";
  $("text").disabled = !loaded;
  $("send").disabled = !ready;
  $("stop").hidden = state !== "answering";
  $("new").disabled = !ready;
  $("fields").disabled = begun && loaded;
  $("unload").hidden = state === "none";
  $("load").disabled = state === "loading";
}

async function listen() {
  const found = await get(`/chat/events?session=${Math.max(session, 0)}&from=${next}`);
  if (!found) {
    setTimeout(listen, 2000);
    return;
  }
  if (found.session !== session) {
    if (session !== -1 || found.events.length) talk.replaceChildren();
    session = found.session;
    turn = part = null;
    begun = found.events.some((event) => event.event === "asked");
  }
  next = found.next;
  const follows = below();
  for (const event of found.events) events[event.event]?.(event);
  if (follows) talk.scrollTop = talk.scrollHeight;
  if (found.state !== state || found.events.length) {
    const before = state;
    state = found.state;
    const words = { none: "", loading: "loading …", ready: "ready", answering: "answering …", failed: "not loaded" };
    if (before !== state) $("state").textContent = words[state];
    if (before === "loading" && state === "ready") $("text").disabled = false;
    allowed();
    if (before === "loading" && state === "ready") $("text").focus();
  }
  setTimeout(listen, 0);
}

function ofModel() {
  $("effort").value = $("model").selectedOptions[0]?.dataset.effort || "medium";
}

function settings() {
  return {
    effort: $("effort").value,
    instructions: $("instructions").value,
    max_new_tokens: Number($("tokens").value),
    temperature: Number($("temperature").value),
  };
}

async function ask() {
  const text = $("text").value.trim();
  if (!text || state !== "ready") return;
  if (!begun && !(await post("/chat/begin", settings()))) return;
  begun = true;
  if (await post("/chat/ask", { text })) $("text").value = "";
}

if (talk) {
  ofModel();
  allowed();
  $("model").addEventListener("change", ofModel);
  $("model-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    begun = false;
    if (await post("/chat/load", { model: $("model").value })) talk.replaceChildren();
  });
  $("unload").addEventListener("click", () => post("/chat/unload"));
  $("stop").addEventListener("click", () => post("/chat/stop"));
  $("new").addEventListener("click", () => {
    begun = false;
    talk.replaceChildren();
    note("A new conversation.");
    allowed();
    $("text").focus();
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask().catch((error) => tell(String(error)));
  });
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("ask").requestSubmit();
    }
  });
  listen();
}
