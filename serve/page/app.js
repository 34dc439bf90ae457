// The chat page of spa serve: asks /v1/chat/completions as any client would, and marks what the plugin spoke.
"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = "spa-conversation";          // of this tab only, gone when it is closed
let models = [], base = null;             // names; base: the one without a plugin
let turns = [];                           // {question, answers: {model: {pieces: [{text, by}], stats, error}}}
let running = [];                         // AbortControllers of the answers under way

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

const headers = () => ({ "Content-Type": "application/json", ...($("key").value ? { Authorization: "Bearer " + $("key").value } : {}) });
const textOf = (answer) => answer.pieces.map((p) => p.text).join("");

async function sentenceOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return "the server answered with status " + response.status;
  }
}

// ---- models ----

async function loadModels() {
  const response = await fetch("v1/models", { headers: headers() });
  if (response.status === 401) {
    showOptions(true);
    $("key").focus();
    return;
  }
  if (!response.ok) throw new Error(await sentenceOf(response));
  const list = (await response.json()).data, chosen = $("model").value;
  models = list.map((m) => m.id);
  base = (list.find((m) => m.spa && !m.spa.plugin) || {}).id || null;
  $("model").replaceChildren(...models.map((name) => new Option(name === base ? name + " (base)" : name, name)));
  if (models.includes(chosen)) $("model").value = chosen;
  $("compare").disabled = models.length < 2;
}

// The models that answer the next question: the chosen one, and beside it the base.
function lanes() {
  const chosen = $("model").value;
  return $("compare").checked && base && chosen !== base ? [chosen, base] : [chosen];
}

// ---- what is shown ----

function bytes(n) {
  return n < 1000 ? n + " B" : n < 1e6 ? (n / 1e3).toFixed(1) + " kB" : (n / 1e6).toFixed(1) + " MB";
}

function statistics(s) {
  const line = element("p", "statistics"), rate = s.seconds > 0 ? (s.tokens / s.seconds).toFixed(1) + " tokens/s" : null;
  const share = s.tokens ? Math.round(100 * Math.min(1, s.plugin_tokens / s.tokens)) + " % by the plugin" : null;
  for (const text of [s.tokens + " tokens", share, s.round_trips + " round trips", bytes(s.bytes_down) + " down, " + bytes(s.bytes_up) + " up",
                      rate, s.cached_tokens ? s.cached_tokens + " tokens kept from before" : null, "seed " + s.seed])
    if (text) line.append(element("span", "", text));
  return line;
}

function addPiece(place, piece) {
  const last = place.lastChild, className = piece.by === "plugin" ? "plugin" : "base";
  if (last && last.className === className) last.firstChild.appendData(piece.text);
  else place.append(element("span", className, piece.text));
}

function showEnd(card, answer) {
  card.classList.remove("busy");
  if (answer.stopped) card.append(element("p", "statistics", "stopped"));
  if (answer.stats) card.append(statistics(answer.stats));
  if (answer.error) {
    const line = element("p", "error", answer.error);
    line.setAttribute("role", "alert");
    card.append(line);
  }
}

function showTurn(turn) {
  $("empty").hidden = true;
  const names = Object.keys(turn.answers), box = element("article", "turn"), cards = element("div", "answers" + (names.length > 1 ? " two" : ""));
  box.append(element("p", "mine", turn.question), cards);
  const shown = {};
  for (const name of names) {
    const card = element("section", "answer"), place = element("div", "text");
    card.append(element("h2", "", name === base ? name + " (base)" : name), place);
    for (const piece of turn.answers[name].pieces) addPiece(place, piece);
    cards.append(card);
    shown[name] = { card, place };
  }
  $("talk").append(box);
  follow(true);
  return shown;
}

// Stays at the end unless the reader has scrolled up.
function follow(always) {
  const t = $("talk");
  if (always || t.scrollHeight - t.scrollTop - t.clientHeight < 80) t.scrollTop = t.scrollHeight;
}

function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ turns, model: $("model").value, compare: $("compare").checked }));
  } catch {
    // full or forbidden: then a reload forgets
  }
}

// ---- asking ----

// The conversation as this model has seen it: turns that it did not answer are not its own.
function messagesFor(name, question) {
  const messages = $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
  for (const turn of turns) {
    const answer = turn.answers[name];
    if (answer && textOf(answer)) messages.push({ role: "user", content: turn.question }, { role: "assistant", content: textOf(answer) });
  }
  return [...messages, { role: "user", content: question }];
}

// Server-sent events, one parsed chunk after the other.
async function* chunksOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines)
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

async function ask(name, body, answer, shown) {
  const stopper = new AbortController();
  running.push(stopper);
  shown.card.classList.add("busy");
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify({ ...body, model: name }), signal: stopper.signal });
    if (!response.ok) throw new Error(await sentenceOf(response));
    for await (const chunk of chunksOf(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0], text = choice && choice.delta.content;
      if (text) {
        const piece = { text, by: chunk.spa && chunk.spa.by };
        answer.pieces.push(piece);
        addPiece(shown.place, piece);
        follow(false);
      }
      if (choice && choice.finish_reason) answer.stats = chunk.spa;
    }
  } catch (e) {
    if (e.name === "AbortError") answer.stopped = true;
    else answer.error = e.message;
  }
  running = running.filter((r) => r !== stopper);
  showEnd(shown.card, answer);
}

function showBusy(busy) {
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("fresh").disabled = busy;
}

async function send() {
  const question = $("prompt").value, names = lanes();
  if (!question.trim() || running.length || !names[0]) return;
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const settings = { stream: true, temperature: number("temperature"), max_tokens: number("max-tokens"), seed: number("seed") };
  const asked = names.map((name) => ({ ...settings, messages: messagesFor(name, question) }));
  const turn = { question, answers: Object.fromEntries(names.map((name) => [name, { pieces: [] }])) };
  turns.push(turn);
  const shown = showTurn(turn);
  $("prompt").value = "";
  grow();
  showBusy(true);
  await Promise.all(names.map((name, i) => ask(name, asked[i], turn.answers[name], shown[name])));
  showBusy(false);
  follow(false);
  keep();
  $("prompt").focus();
}

function stop() {
  for (const r of running) r.abort();
}

function fresh() {
  turns = [];
  for (const box of document.querySelectorAll(".turn")) box.remove();
  $("empty").hidden = false;
  keep();
  $("prompt").focus();
}

// ---- the page ----

function grow() {
  const p = $("prompt");
  p.rows = Math.min(12, p.value.split("\n").length);
}

function showOptions(open) {
  $("options").hidden = !open;
  $("options-button").setAttribute("aria-expanded", String(open));
}

function switchTheme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("spa-theme", document.documentElement.dataset.theme);
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) || "null");
  if (!kept) return;
  turns = kept.turns;
  $("compare").checked = kept.compare;
  if (models.includes(kept.model)) $("model").value = kept.model;
  for (const turn of turns) {
    const shown = showTurn(turn);
    for (const name of Object.keys(shown)) showEnd(shown[name].card, turn.answers[name]);
  }
}

async function begin() {
  const theme = localStorage.getItem("spa-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  $("ask").addEventListener("submit", (e) => { e.preventDefault(); send(); });
  $("prompt").addEventListener("input", grow);
  $("prompt").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); send(); }
  });
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") stop(); });
  $("stop").addEventListener("click", stop);
  $("fresh").addEventListener("click", fresh);
  $("theme").addEventListener("click", switchTheme);
  $("options-button").addEventListener("click", () => showOptions($("options").hidden));
  $("key").addEventListener("change", () => loadModels().catch(report));
  try {
    await loadModels();
    restore();
  } catch (e) {
    report(e);
  }
}

function report(e) {
  const line = element("p", "error", e.message);
  line.setAttribute("role", "alert");
  $("talk").append(line);
}

begin();
