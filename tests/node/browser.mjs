// Two browser tabs in one room: messages, presence and typing, and a socket that is cut in three ways.
// `node browser.mjs http://127.0.0.1:7400 screenshots/`; CHROMIUM names another browser program.

import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { Network } from "./network.mjs";
import { run, within } from "./run.mjs";

const [, , url, screenshots] = process.argv;
const room = `chat:browser-${randomInt(1e9)}`;
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

/** Both tabs show exactly these messages in one order; those of one author in the order in which they were written. */
async function bothShow(tabs, expected) {
  const sorted = [...expected].sort();
  for (const tab of tabs) {
    const same = async () => {
      const shown = await tab.messages();
      return JSON.stringify([...shown].sort()) === JSON.stringify(sorted) || shown;
    };
    await eventually(`${tab.name} shows ${expected.length} messages, each once`, same);
  }
  const [first, second] = await Promise.all(tabs.map((tab) => tab.messages()));
  assert.deepEqual(first, second);
  for (const author of ["ada", "grace"]) {
    const own = (list) => list.filter((text) => text.startsWith(author));
    assert.deepEqual(own(first), own(expected));
  }
}

function program() {
  const known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  return process.env.CHROMIUM ?? known.find((path) => existsSync(path));
}

mkdirSync(screenshots, { recursive: true });
const network = await Network.start(new URL(url));
const browser = await chromium.launch({ executablePath: program(), args: FLAGS });
const said = [];
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
    for (const [tab, text] of [[ada, "ada: Good morning"], [grace, "grace: Hello Ada"], [ada, "ada: Shall we begin?"], [grace, "grace: <b>Yes</b> 👋"]]) {
      said.push(text);
      await tab.say(text);
      await bothShow([ada, grace], said);
    }
  }],

  ["each sees that the other is there", async () => {
    for (const [tab, other] of [[ada, "Grace"], [grace, "Ada"]]) {
      await eventually("two people are counted", async () => (await tab.part("people-count").textContent()) === "2");
      await eventually(`${other} is named`, async () => (await tab.part("person-name").allTextContents()).some((name) => name.includes(other)));
    }
  }],

  ["one sees the other typing, and stop", async () => {
    await grace.part("composer").pressSequentially("grace: I am wri", { delay: 20 });
    await eventually("Ada sees Grace typing", async () => ((await ada.part("typing").textContent()) ?? "").includes("Grace"));
    await grace.page.screenshot({ path: join(screenshots, "desktop-dark.png") });
    await grace.part("composer").pressSequentially("ting");
    await grace.part("composer").press("Enter");
    said.push("grace: I am writing");
    await bothShow([ada, grace], said);
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
      for (const [tab, author] of [[grace, "grace"], [ada, "ada"]]) {
        const text = `${author}: while Ada is away ${number}`;
        said.push(text);
        await tab.say(text);
      }
    }
    await eventually("Grace's are stored", async () => (await grace.messages()).filter((text) => text.includes("away")).length === 3);
    await ada.isLive();
    await bothShow([ada, grace], said);
    const told = (await ada.part("timeline-entry").allTextContents()).find((text) => text.includes("recovered"));
    assert.match(told ?? "", /recovered, 0 lost/);
    await ada.page.screenshot({ path: join(screenshots, "desktop-resumed.png") });
    // The member never left: Grace counted two people all the time.
    assert.equal(await grace.part("people-count").textContent(), "2");
  }],

  ["a socket that the network cuts resumes without a missing or doubled message", async () => {
    for (let number = 1; number <= 30; number += 1) {
      for (const [tab, author] of [[grace, "grace"], [ada, "ada"]]) {
        const text = `${author}: through a bad network ${number}`;
        said.push(text);
        await tab.say(text);
      }
      if (number % 6 === 0) assert.ok(network.cut() > 0, "there was nothing to cut");
      if (number % 6 === 0) await grace.isLive();
    }
    await bothShow([ada, grace], said);
  }],

  ["a browser that goes offline resumes without a missing or doubled message", async () => {
    await grace.context.setOffline(true);
    network.cut();
    for (let number = 1; number <= 3; number += 1) {
      for (const [tab, author] of [[ada, "ada"], [grace, "grace"]]) {
        const text = `${author}: in the tunnel ${number}`;
        said.push(text);
        await tab.say(text);
      }
    }
    await eventually("Grace is not live", async () => (await grace.part("connection-state").getAttribute("data-state")) !== "live");
    await grace.context.setOffline(false);
    await grace.isLive();
    await bothShow([ada, grace], said);
  }],

  ["who comes later sees the history, on a phone too", async () => {
    const late = await Tab.open(browser, "Edsger", { viewport: PHONE, isMobile: true });
    await eventually("the last message is there", async () => (await late.messages()).at(-1) === said.at(-1) || late.messages());
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
