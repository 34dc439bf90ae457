// The chat page in headless Chromium. argv: URL, folder for screenshots, Chromium. Prints one line a check; ends with 1 at the first that fails,
// and also when the page said anything on its console.
"use strict";
const assert = require("node:assert/strict");
const path = require("node:path");
const { chromium } = require("playwright-core");

const [url, folder, executablePath] = process.argv.slice(2);
const complaints = [];
const shot = (page, name) => page.screenshot({ path: path.join(folder, name + ".png") });

function watch(page) {
  page.on("console", (m) => { if (m.type() === "error" || m.type() === "warning") complaints.push(m.text()); });
  page.on("pageerror", (e) => complaints.push(String(e)));
  page.on("request", (r) => { if (!r.url().startsWith(url) && !r.url().startsWith("data:")) complaints.push("asked " + r.url()); });
  page.on("response", (r) => { if (r.status() >= 400) complaints.push(r.status() + " " + r.url()); });
}

async function say(page, text) {
  await page.fill("#prompt", text);
  await page.press("#prompt", "Enter");
}

async function main() {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: { width: 1100, height: 760 } });
  page.setDefaultTimeout(120000);   // a busy machine
  watch(page);
  await page.goto(url);
  await page.waitForSelector("#model option", { state: "attached" });
  assert.ok(await page.evaluate(() => document.activeElement.id === "prompt"), "one may type at once");
  await shot(page, "empty");
  await page.click("#options-button");
  await page.fill("#temperature", "0");
  await page.fill("#max-tokens", "40");
  await page.click("#options-button");

  await say(page, "What is my dog called?");
  await page.waitForSelector(".statistics");
  const answer = await page.textContent(".answer .text");
  assert.ok(answer.length > 0);
  assert.ok(await page.locator(".answer .text .plugin").count() > 0, "the plugin's words are marked");
  assert.match(await page.textContent(".statistics"), /tokens.*by the plugin.*round trips.*down.*up/);
  console.log("answer: " + answer);
  await shot(page, "answer");

  await page.check("#compare");
  await say(page, "Where do I live? <b>&amp;</b>");
  await page.waitForFunction(() => document.querySelectorAll(".turn:last-child .statistics").length === 2);
  const sides = await page.locator(".turn:last-child .answer").evaluateAll((e) => e.map((x) => x.getBoundingClientRect().left));
  assert.ok(sides[1] > sides[0] + 200, "side by side");
  assert.equal(await page.locator(".turn:last-child .answer:nth-child(2) .plugin").count(), 0, "the base alone has no plugin");
  assert.equal(await page.textContent(".turn:last-child .mine"), "Where do I live? <b>&amp;</b>");
  await shot(page, "compare");

  await page.click("#options-button");
  await page.fill("#max-tokens", "2000");
  await page.click("#options-button");
  await page.uncheck("#compare");
  await say(page, "Write a very long story about the sea, with many chapters.");
  await page.waitForFunction(() => document.querySelector(".turn:last-child .text").textContent.length > 20);
  assert.ok(await page.isVisible("#stop"));
  await shot(page, "streaming");
  await page.keyboard.press("Escape");
  await page.waitForSelector("#send:visible");
  assert.match(await page.textContent(".turn:last-child .answer"), /stopped/);

  const before = await page.locator(".turn").count();
  await page.reload();
  await page.waitForFunction((n) => document.querySelectorAll(".turn").length === n, before);
  assert.equal(await page.textContent(".turn:first-of-type .answer .text"), answer, "a reload keeps the conversation");
  await page.click("#theme");
  await shot(page, "dark");
  await page.setViewportSize({ width: 360, height: 700 });
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "a phone's width is enough");
  await shot(page, "phone");
  await page.click("#fresh");
  assert.equal(await page.locator(".turn").count(), 0);
  await page.click("#options-button");
  await page.fill("#max-tokens", "10");
  await page.click("#options-button");
  await say(page, "Hello");
  await page.waitForSelector(".statistics");
  await browser.close();
  assert.deepEqual(complaints, []);
  console.log("page: all well");
}

main().catch((e) => { console.error(e, complaints); process.exit(1); });
