// One visitor in a tab of their own, and what the tests in a browser share.

import { existsSync, mkdirSync } from "node:fs";
import { chromium } from "playwright-core";

export const DESKTOP = { width: 1280, height: 800 };
export const PHONE = { width: 390, height: 844 };

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

/** Chromium, and the folder for what it shows. CHROMIUM names another program. */
export async function launch(screenshots) {
  mkdirSync(screenshots, { recursive: true });
  const known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  const executablePath = process.env.CHROMIUM ?? known.find((path) => existsSync(path));
  return chromium.launch({ executablePath, args: FLAGS });
}

/** How long anything may take on a busy machine. */
const PATIENCE_MS = 60_000;

/** A tab with storage of its own. */
export class Tab {
  static async open(browser, name, { origin, room, view = "chat", viewport = DESKTOP, colorScheme = "light", isMobile = false }) {
    const tab = new Tab();
    tab.name = name;
    tab.context = await browser.newContext({ viewport, colorScheme, isMobile, hasTouch: isMobile, deviceScaleFactor: isMobile ? 2 : 1 });
    tab.page = await tab.context.newPage();
    tab.page.setDefaultTimeout(PATIENCE_MS);
    tab.errors = [];
    tab.page.on("pageerror", (error) => tab.errors.push(error));
    await tab.page.goto(`${origin}/#room=${room}&name=${name}&view=${view}`);
    await tab.isLive();
    return tab;
  }

  part(id) {
    return this.page.getByTestId(id);
  }

  async state() {
    return this.part("connection-state").getAttribute("data-state");
  }

  async isLive() {
    await eventually(`${this.name} is live`, async () => (await this.state()) === "live");
  }

  /** How much wider the page is than its window. */
  async overflow() {
    return this.page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  }
}

/** Waits until `test` gives true; what it gave last is in the error. */
export async function eventually(what, test, ms = PATIENCE_MS) {
  const end = Date.now() + ms;
  let last;
  while (Date.now() < end) {
    last = await test();
    if (last === true) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`after ${ms} ms still not: ${what} (${JSON.stringify(last)})`);
}
