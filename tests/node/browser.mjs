// Two browser tabs in one room: messages, presence and typing, and a socket that is cut in three ways.
// `node browser.mjs http://127.0.0.1:7400 screenshots/`; CHROMIUM names another browser program.

import assert from "node:assert/strict";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { Network } from "./network.mjs";
import { run, within } from "./run.mjs";

const [, , url, screenshots] = process.argv;
const room = "chat:tea-room";
const DESKTOP = { width: 1280, height: 800 };
const PHONE = { width: 390, height: 844 };

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

/** One visitor in a tab of their own, with storage of their own. */
class Tab {
  static async open(browser, name, { origin = url, viewport = DESKTOP, colorScheme = "light", isMobile = false } = {}) {
    const tab = new Tab();
    tab.name = name;
    tab.context = await browser.newContext({ viewport, colorScheme, isMobile, hasTouch: isMobile, deviceScaleFactor: isMobile ? 2 : 1 });
    tab.page = await tab.context.newPage();
    tab.errors = [];
    tab.page.on("pageerror", (error) => tab.errors.push(error));
    await tab.page.goto(`${origin}/#room=${room}&name=${name}`);
    await tab.isLive();
    return tab;
  }

  part(id) {
    return this.page.getByTestId(id);
  }

  async isLive() {
    await eventually(`${this.name} is live`, async () => (await this.part("connection-state").getAttribute("data-state")) === "live");
  }

  async say(text) {
    await this.part("composer").fill(text);
    await this.part("composer").press("Enter");
  }

  messages() {
    return this.part("message-text").allTextContents();
  }
}

async function eventually(what, test, ms = 20_000) {
  const end = Date.now() + ms;
  let last;
  while (Date.now() < end) {
    last = await test();
    if (last === true) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`after ${ms} ms still not: ${what} (${JSON.stringify(last)})`);
}

/** Every message, by the tab that wrote it. No text is written twice. */
const said = [];

async function say(tab, text) {
  said.push({ tab, text });
  await tab.say(text);
}

/** Both tabs show all that was said, each message once, in one order; those of one author in the order in which they were written. */
async function bothShowAll() {
  const expected = said.map(({ text }) => text);
  const sorted = JSON.stringify([...expected].sort());
  for (const tab of [ada, grace]) {
    const same = async () => {
      const shown = await tab.messages();
      return JSON.stringify([...shown].sort()) === sorted || shown;
    };
    await eventually(`${tab.name} shows ${expected.length} messages, each once`, same);
  }
  const [first, second] = await Promise.all([ada.messages(), grace.messages()]);
  assert.deepEqual(first, second);
  for (const tab of [ada, grace]) {
    const own = said.filter((message) => message.tab === tab).map(({ text }) => text);
    assert.deepEqual(first.filter((text) => own.includes(text)), own);
  }
}

function program() {
  const known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  return process.env.CHROMIUM ?? known.find((path) => existsSync(path));
}

mkdirSync(screenshots, { recursive: true });
const network = await Network.start(new URL(url));
const browser = await chromium.launch({ executablePath: program(), args: FLAGS });
let ada;
let grace;

await run([
  ["two tabs enter a room", async () => {
    ada = await Tab.open(browser, "Ada");
    // Grace's way to the server leads through a network that can be cut.
    grace = await Tab.open(browser, "Grace", { origin: network.origin, colorScheme: "dark" });
    for (const tab of [ada, grace]) assert.equal(await tab.part("room-name").textContent(), room);
  }],

  ["each sees the other's messages, in one order", async () => {
    for (const [tab, text] of [
      [ada, "Good morning! The kettle is on."],
      [grace, "Morning Ada 👋 What are we reading today?"],
      [ada, "Notes on the <Analytical Engine>, if nobody minds."],
      [grace, "As long as nobody finds a moth in it."],
    ]) {
      await say(tab, text);
      await bothShowAll();
    }
  }],

  ["each sees that the other is there", async () => {
    for (const [tab, other] of [[ada, "Grace"], [grace, "Ada"]]) {
      await eventually("two people are counted", async () => (await tab.part("people-count").textContent()) === "2");
      await eventually(`${other} is named`, async () => (await tab.part("person-name").allTextContents()).some((name) => name.includes(other)));
    }
  }],

  ["one sees the other typing, and stop", async () => {
    await grace.part("composer").pressSequentially("I bring bis", { delay: 20 });
    await eventually("Ada sees Grace typing", async () => ((await ada.part("typing").textContent()) ?? "").includes("Grace"));
    await grace.page.screenshot({ path: join(screenshots, "desktop-dark.png") });
    await grace.part("composer").pressSequentially("cuits");
    await grace.part("composer").press("Enter");
    said.push({ tab: grace, text: "I bring biscuits" });
    await bothShowAll();
    await eventually("nobody types", async () => ((await ada.part("typing").textContent()) ?? "").trim() === "");
  }],

  ["one sees the other's cursor", async () => {
    for (let step = 0; step < 10; step += 1) await grace.page.mouse.move(400 + 20 * step, 300 + 10 * step);
    await eventually("Ada sees a cursor", async () => (await ada.part("cursor").count()) === 1);
    await ada.page.screenshot({ path: join(screenshots, "desktop-light.png") });
  }],

  ["a dropped connection resumes without a missing or doubled message", async () => {
    await ada.part("drop").click();
    await eventually("Ada is away", async () => (await ada.part("connection-state").getAttribute("data-state")) === "offline");
    for (let number = 1; number <= 3; number += 1) {
      for (const tab of [grace, ada]) await say(tab, `${tab.name} while Ada is away, ${number}`);
    }
    await eventually("Grace's are stored", async () => (await grace.messages()).filter((text) => text.includes("Grace while")).length === 3);
    await ada.isLive();
    await bothShowAll();
    const told = (await ada.part("timeline-entry").allTextContents()).find((text) => text.includes("recovered"));
    assert.match(told ?? "", /recovered, 0 lost/);
    await ada.page.screenshot({ path: join(screenshots, "desktop-resumed.png") });
    // The member never left: Grace counted two people all the time.
    assert.equal(await grace.part("people-count").textContent(), "2");
  }],

  ["a socket that the network cuts resumes without a missing or doubled message", async () => {
    for (let number = 1; number <= 30; number += 1) {
      for (const tab of [grace, ada]) await say(tab, `${tab.name} through a bad network, ${number}`);
      if (number % 6 !== 0) continue;
      assert.equal(network.cut(), 1);
      await eventually("Grace has another socket", async () => network.webSockets().length === 1);
    }
    await bothShowAll();
  }],

  ["a browser that goes offline resumes without a missing or doubled message", async () => {
    await grace.context.setOffline(true);
    network.cut();
    for (let number = 1; number <= 3; number += 1) {
      for (const tab of [ada, grace]) await say(tab, `${tab.name} while Grace is in the tunnel, ${number}`);
    }
    await eventually("Grace is not live", async () => (await grace.part("connection-state").getAttribute("data-state")) !== "live");
    await grace.context.setOffline(false);
    await grace.isLive();
    await bothShowAll();
  }],

  ["who comes later sees the history, on a phone too", async () => {
    const late = await Tab.open(browser, "Edsger", { viewport: PHONE, isMobile: true });
    const last = (await ada.messages()).at(-1);
    await eventually("the last message is there", async () => (await late.messages()).at(-1) === last);
    await late.page.screenshot({ path: join(screenshots, "phone-light.png") });
    await late.page.emulateMedia({ colorScheme: "dark" });
    await late.page.screenshot({ path: join(screenshots, "phone-dark.png") });
    const overflow = await late.page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(overflow, 0, "the page is wider than the phone");
    await late.context.close();
    await eventually("Ada sees the visitor go", async () => (await ada.part("people-count").textContent()) === "2", 30_000);
  }],

  ["no script failed", async () => {
    assert.deepEqual([...ada.errors, ...grace.errors], []);
    await within("the browser closes", browser.close());
    network.stop();
  }],
]);
