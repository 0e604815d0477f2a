// Browser tabs at one board: locks, conflicts, and a server that is killed and started again while they edit.
// `node board.mjs http://127.0.0.1:7400 screenshots/ 127.0.0.1:7499`; the last one is where with-server takes orders.

import assert from "node:assert/strict";
import { join } from "node:path";
import { Control } from "./control.mjs";
import { Network } from "./network.mjs";
import { run, within } from "./run.mjs";
import { eventually, launch, PHONE, Tab } from "./tab.mjs";

const [, , url, screenshots, controlAddress] = process.argv;
const room = "chat:kitchen";

/** What is on the board, by list: each card's text. */
const board = [["Order more tea", "Ask Charles for the drawings"], ["Read the notes"], ["Boil water"]];

function open(name, options = {}) {
  return Tab.open(browser, name, { origin: url, room, view: "board", ...options });
}

/** The card with this text, also while a conflict about it is shown. */
function card(tab, text) {
  return tab.part("card").filter({ hasText: text });
}

async function add(tab, list, text) {
  const input = tab.part("card-add").nth(list);
  await input.fill(text);
  await input.press("Enter");
}

/** Opens a card's editor; the text in it is selected for what comes next. */
async function edit(tab, text) {
  await card(tab, text).getByTestId("card-edit").click();
  await tab.part("card-input").filter({ visible: true }).selectText();
}

async function type(tab, text) {
  await tab.page.keyboard.type(text);
}

async function save(tab) {
  await tab.page.keyboard.press("Enter");
}

async function change(tab, from, to) {
  await edit(tab, from);
  await type(tab, to);
  await save(tab);
}

async function isHeld(tab) {
  const held = async () => (await tab.part("card-note").filter({ visible: true }).textContent()) === "Held for you while you edit";
  await eventually(`${tab.name} holds a card`, held);
}

/** Who is said to edit a card; empty for nobody. */
function holderOf(tab, text) {
  return card(tab, text).getByTestId("card-lock").textContent();
}

async function shown(tab) {
  return tab.part("list").evaluateAll((lists) =>
    lists.map((list) => [...list.querySelectorAll("[data-testid=card-text]")].map((text) => text.textContent)));
}

function versions(tab) {
  return tab.part("card").evaluateAll((cards) => cards.map((item) => item.dataset.version).sort());
}

/** All these tabs show the board as it should be, everything stored, each card at the same version. */
async function allShow(...tabs) {
  for (const tab of tabs) {
    await eventually(`${tab.name} shows the board`, async () => {
      const now = await shown(tab);
      return JSON.stringify(now) === JSON.stringify(board) || now;
    });
    await eventually(`${tab.name} has nothing left to store`, async () => (await tab.page.locator("[data-testid=card]:not([data-state=stored])").count()) === 0);
  }
  const [first, ...others] = await Promise.all(tabs.map(versions));
  assert.ok(first.every((version) => /^\d+-\d+$/.test(version)), String(first));
  for (const other of others) assert.deepEqual(other, first);
}

async function screenshot(tab, name) {
  await tab.page.screenshot({ path: join(screenshots, `board-${name}.png`) });
}

/** Takes a tab's network away, or gives it back. */
async function setAway(tab, away) {
  await tab.context.setOffline(away);
  if (away) network.cut();
  else await tab.isLive();
}

const network = await Network.start(new URL(url));
const control = await Control.connect(controlAddress);
const browser = await launch(screenshots);
let ada;
let grace;

await run([
  ["two tabs see the same cards at the same versions", async () => {
    ada = await open("Ada");
    // Grace's way to the server leads through a network that can be cut.
    grace = await open("Grace", { origin: network.origin, colorScheme: "dark" });
    for (const [list, texts] of board.entries()) {
      for (const [index, text] of texts.entries()) await add(index % 2 === 0 ? ada : grace, list, text);
    }
    await allShow(ada, grace);
  }],

  ["a card that somebody edits shows who, and nobody else can edit it", async () => {
    await edit(grace, "Read the notes");
    await isHeld(grace);
    await eventually("Ada sees who edits", async () => (await holderOf(ada, "Read the notes")) === "Grace is editing");
    const held = card(ada, "Read the notes");
    await held.getByTestId("card-edit").click({ force: true });
    await held.getByTestId("card-text").click();
    await held.getByTestId("card-on").click({ force: true });
    assert.equal(await ada.part("card-input").filter({ visible: true }).count(), 0);
    await eventually("Ada is told why", async () => (await ada.part("toast").allTextContents()).includes("Grace is editing this card"));
    await type(grace, "Read the notes on the engine");
    await screenshot(ada, "locked-light");
    await screenshot(grace, "editing-dark");
    await save(grace);
    board[1][0] = "Read the notes on the engine";
    await allShow(ada, grace);
    await eventually("the card is free", async () => (await holderOf(ada, "Read the notes")) === "");
  }],

  ["cards are moved by button, key and pointer, and deleted", async () => {
    await card(ada, "Order more tea").getByTestId("card-on").click();
    board[1].push(...board[0].splice(0, 1));
    await allShow(ada, grace);
    await card(grace, "Order more tea").getByTestId("card-edit").focus();
    await grace.page.keyboard.press("Alt+ArrowUp");
    board[1].reverse();
    await allShow(ada, grace);
    await card(ada, "Boil water").dragTo(ada.part("list").nth(0));
    board[0].push(...board[2].splice(0, 1));
    await allShow(ada, grace);
    await edit(grace, "Boil water");
    await card(grace, "Boil water").getByTestId("card-delete").click();
    board[0].pop();
    await allShow(ada, grace);
  }],

  ["what is edited without a connection is stored when it is back", async () => {
    await edit(ada, "Read the notes");
    await eventually("Grace sees who edits", async () => (await holderOf(grace, "Read the notes")) === "Ada is editing");
    await setAway(grace, true);
    await eventually("Grace is told", async () => (await grace.part("board-note").textContent()).startsWith("You are away"));
    // Who is away doesn't know how long somebody edits.
    assert.equal(await holderOf(grace, "Read the notes"), "");
    await edit(grace, "Read the notes");
    for (const tab of [ada, grace]) await tab.page.keyboard.press("Escape");
    await change(grace, "Ask Charles", "Ask Charles for the plans");
    await add(grace, 0, "Wash the cups");
    board[0] = ["Ask Charles for the plans", "Wash the cups"];
    await eventually("two changes wait", async () => (await grace.part("board-note").textContent()).includes("2 changes wait"));
    await change(grace, "Wash the cups", "Wash all the cups");
    board[0][1] = "Wash all the cups";
    await screenshot(grace, "away-dark");
    await setAway(grace, false);
    await allShow(ada, grace);
  }],

  ["a change that comes too late is merged where nobody loses by it", async () => {
    await setAway(grace, true);
    await change(grace, "Order more tea", "Order more green tea");
    await card(ada, "Order more tea").getByTestId("card-on").click();
    board[2] = ["Order more green tea"];
    board[1].shift();
    await eventually("Ada's move is stored", async () => (await shown(ada))[2].length === 1);
    await setAway(grace, false);
    await allShow(ada, grace);
  }],

  ["two changes of one text are a conflict, and each side can be taken", async () => {
    for (const [button, taken] of [["take-theirs", "Wash the cups, said Ada"], ["take-mine", "Wash the cups, said Grace"]]) {
      const before = board[0][1];
      await setAway(grace, true);
      await change(grace, before, "Wash the cups, said Grace");
      await change(ada, before, "Wash the cups, said Ada");
      await eventually("Ada's is stored", async () => (await card(ada, "said Ada").getAttribute("data-state")) === "stored");
      await setAway(grace, false);
      const conflict = grace.part("card-conflict").filter({ visible: true });
      await eventually("Grace sees the conflict", async () => (await conflict.count()) === 1);
      assert.match(await conflict.getByTestId("card-theirs").textContent(), /^Ada · v\d+Wash the cups, said Ada$/);
      assert.match(await conflict.getByTestId("card-mine").textContent(), /Wash the cups, said Grace$/);
      await screenshot(grace, "conflict-dark");
      await conflict.getByTestId(button).click();
      board[0][1] = taken;
      await allShow(ada, grace);
      // The next round begins from another text.
      board[0][1] = `Wash the cups after ${button}`;
      await change(ada, taken, board[0][1]);
      await allShow(ada, grace);
    }
  }],

  ["the lock of a tab that sleeps ends, and what it saves then is a conflict", async () => {
    const [before] = board[0];
    await edit(grace, before);
    await type(grace, "Ask Ada for the plans");
    await isHeld(grace);
    // A script that stands still is what a sleeping tab is to everybody else.
    const devtools = await grace.context.newCDPSession(grace.page);
    await devtools.send("Debugger.enable");
    await devtools.send("Debugger.pause");
    await eventually("Ada sees the lock", async () => (await holderOf(ada, before)) === "Grace is editing");
    await eventually("Ada sees it end", async () => (await holderOf(ada, before)) === "");
    await edit(ada, before);
    await type(ada, "Ask Mary for the plans");
    await isHeld(ada);
    await devtools.send("Debugger.resume");
    await devtools.send("Debugger.disable");
    await eventually("Grace is told", async () => (await grace.part("card-note").filter({ visible: true }).textContent()).startsWith("Your hold has ended: Ada"));
    await screenshot(grace, "lost-dark");
    await save(grace);
    await eventually("Grace's change is refused", async () => (await grace.part("card-why").filter({ visible: true }).textContent()).startsWith("Your hold on this card had ended"));
    await grace.part("take-mine").filter({ visible: true }).click();
    await eventually("Grace waits for her turn", async () => (await grace.part("take-mine").filter({ visible: true }).textContent()) === "Waiting for Ada");
    await ada.page.keyboard.press("Escape");
    board[0][0] = "Ask Ada for the plans";
    await allShow(ada, grace);
  }],

  ["edits of both survive a server that is killed under them", async () => {
    // Ada is in the middle of one card, and keeps its lock over the restart.
    await edit(ada, "Ask Ada for the plans");
    await type(ada, "Ask Ada for her plans");
    await isHeld(ada);
    for (let number = 1; number <= 5; number += 1) {
      await add(grace, 1, `Before the end, ${number}`);
      board[1].push(`Before the end, ${number}`);
    }
    await control.kill();
    for (const tab of [ada, grace]) await eventually(`${tab.name} is told`, async () => (await tab.part("board-note").textContent()).startsWith("You are away"));
    await save(ada);
    board[0][0] = "Ask Ada for her plans";
    await change(grace, "Order more green tea", "Order black tea");
    board[2][0] = "Order black tea";
    await add(ada, 2, "Written while the server was dead");
    board[2].push("Written while the server was dead");
    assert.equal(await holderOf(ada, "Ask Ada for her plans"), "");
    await screenshot(ada, "server-gone-light");
    await control.start();
    for (const tab of [ada, grace]) await tab.isLive();
    const edsger = await open("Edsger");
    await allShow(ada, grace, edsger);
    await edsger.context.close();
    const told = await Promise.all([ada, grace].map((tab) => tab.part("timeline-entry").allTextContents()));
    for (const lines of told) assert.ok(!lines.some((line) => line.includes("history was replaced")), String(lines));
  }],

  ["what is changed in the moment of the kill is stored once", async () => {
    const adding = Promise.all([ada, grace].map(async (tab, list) => {
      for (let number = 1; number <= 12; number += 1) await add(tab, list, `${tab.name}, card ${number}`);
    }));
    await eventually("some are stored", async () => (await shown(ada))[1].includes("Grace, card 4"));
    await control.kill();
    await adding;
    await control.start();
    for (const [list, name] of ["Ada", "Grace"].entries()) {
      for (let number = 1; number <= 12; number += 1) board[list].push(`${name}, card ${number}`);
    }
    for (const tab of [ada, grace]) await tab.isLive();
    const fresh = await open("Barbara");
    await allShow(ada, grace, fresh);
    await fresh.context.close();
  }],

  ["a tab that closes frees the card that it held", async () => {
    const late = await open("Edsger", { viewport: PHONE, isMobile: true });
    await allShow(late);
    await edit(late, "Order black tea");
    await isHeld(late);
    await eventually("Ada sees who edits", async () => (await holderOf(ada, "Order black tea")) === "Edsger is editing");
    await screenshot(late, "phone-light");
    assert.equal(await late.overflow(), 0, "the page is wider than the phone");
    await late.page.close({ runBeforeUnload: true });
    await eventually("the card is free", async () => (await holderOf(ada, "Order black tea")) === "");
    await change(ada, "Order black tea", "Order Earl Grey");
    board[2][0] = "Order Earl Grey";
    await allShow(ada, grace);
  }],

  ["the conversation is where it was, and counts what one has not seen", async () => {
    await grace.part("tab-chat").click();
    await grace.part("composer").fill("The board is in order.");
    await grace.part("composer").press("Enter");
    await eventually("Ada sees that something was said", async () => (await ada.part("unread").textContent()) === "1 new");
    await ada.part("tab-chat").click();
    await eventually("Ada reads it", async () => (await ada.part("message-text").allTextContents()).join() === "The board is in order.");
    await ada.page.reload();
    await ada.isLive();
    // Entries of cards and locks lie between this message and the end of the log.
    await eventually("it is found in the history", async () => (await ada.part("message-text").allTextContents()).join() === "The board is in order.");
  }],

  ["no script failed", async () => {
    assert.deepEqual([...ada.errors, ...grace.errors], []);
    await within("the browser closes", browser.close());
    network.stop();
  }],
]);
