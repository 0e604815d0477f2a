// Two browser tabs in one room: messages, presence and typing, and a socket that is cut in three ways.
// `node browser.mjs http://127.0.0.1:7400 screenshots/`; CHROMIUM names another browser program.

import assert from "node:assert/strict";
import { join } from "node:path";
import { Network } from "./network.mjs";
import { run, within } from "./run.mjs";
import { eventually, launch, PHONE, Tab } from "./tab.mjs";

const [, , url, screenshots] = process.argv;
const room = "chat:tea-room";

/** Every message, by the tab that wrote it. No text is written twice. */
const said = [];

async function say(tab, text) {
  said.push({ tab, text });
  await tab.part("composer").fill(text);
  await tab.part("composer").press("Enter");
}

function messagesOf(tab) {
  return tab.part("message-text").allTextContents();
}

/** Both tabs show all that was said, each message once, in one order; those of one author in the order in which they were written. */
async function bothShowAll() {
  const expected = said.map(({ text }) => text);
  const sorted = JSON.stringify([...expected].sort());
  for (const tab of [ada, grace]) {
    const same = async () => {
      const shown = await messagesOf(tab);
      return JSON.stringify([...shown].sort()) === sorted || shown;
    };
    await eventually(`${tab.name} shows ${expected.length} messages, each once`, same);
  }
  const [first, second] = await Promise.all([messagesOf(ada), messagesOf(grace)]);
  assert.deepEqual(first, second);
  for (const tab of [ada, grace]) {
    const own = said.filter((message) => message.tab === tab).map(({ text }) => text);
    assert.deepEqual(first.filter((text) => own.includes(text)), own);
  }
}

const network = await Network.start(new URL(url));
const browser = await launch(screenshots);
let ada;
let grace;

await run([
  ["two tabs enter a room", async () => {
    ada = await Tab.open(browser, "Ada", { origin: url, room });
    // Grace's way to the server leads through a network that can be cut.
    grace = await Tab.open(browser, "Grace", { origin: network.origin, room, colorScheme: "dark" });
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
    await eventually("Ada is away", async () => (await ada.state()) === "offline");
    for (let number = 1; number <= 3; number += 1) {
      for (const tab of [grace, ada]) await say(tab, `${tab.name} while Ada is away, ${number}`);
    }
    await eventually("Grace's are stored", async () => (await messagesOf(grace)).filter((text) => text.includes("Grace while")).length === 3);
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
    await eventually("Grace is not live", async () => (await grace.state()) !== "live");
    await grace.context.setOffline(false);
    await grace.isLive();
    await bothShowAll();
  }],

  ["who comes later sees the history, on a phone too", async () => {
    const late = await Tab.open(browser, "Edsger", { origin: url, room, viewport: PHONE, isMobile: true });
    const last = (await messagesOf(ada)).at(-1);
    await eventually("the last message is there", async () => (await messagesOf(late)).at(-1) === last);
    await late.page.screenshot({ path: join(screenshots, "phone-light.png") });
    await late.page.emulateMedia({ colorScheme: "dark" });
    await late.page.screenshot({ path: join(screenshots, "phone-dark.png") });
    assert.equal(await late.overflow(), 0, "the page is wider than the phone");
    await late.context.close();
    await eventually("Ada sees the visitor go", async () => (await ada.part("people-count").textContent()) === "2");
  }],

  ["no script failed", async () => {
    assert.deepEqual([...ada.errors, ...grace.errors], []);
    await within("the browser closes", browser.close());
    network.stop();
  }],
]);
