// The page: asks who one is, joins the room of the address, and wires the views to it.

import { Client } from "../src/index.js";
import { ConnectionPanel } from "./connection-panel.js";
import { Conversation, type Views } from "./conversation.js";
import { Cursors } from "./cursors.js";
import { askPerson, startRoomDialog } from "./dialogs.js";
import { byId, paintAvatar } from "./dom.js";
import { MessageList } from "./message-list.js";
import { People } from "./people.js";
import { randomPerson, type Person } from "./person.js";
import { hashOf, knownPerson, OwnUsers, readAddress, rememberPerson, rememberView, type View } from "./settings.js";
import { startTheme } from "./theme.js";
import { Typing } from "./typing.js";
import { ViewTabs } from "./view-tabs.js";

const input = byId<HTMLTextAreaElement>("composer-input");
let address = readAddress();
let conversation: Conversation | undefined;
const tabs = new ViewTabs(address.view, viewChanged);

startTheme();
showRoom();
startRoomDialog(() => address.room);
startPanel();
byId("skip").addEventListener("click", (event) => {
  // The hash is the room's.
  event.preventDefault();
  focusView();
});
void start();

async function start(): Promise<void> {
  let person = knownPerson(address);
  if (!person) {
    person = (await askPerson(address.room, randomPerson(), true))!;
    rememberPerson(person);
  }
  showPerson(person);
  const client = connect();
  const views = makeViews(client);
  conversation = new Conversation(client, address.room, person, views);
  startComposer(views);
  byId("me-button").addEventListener("click", async () => {
    const changed = await askPerson(address.room, person!, false);
    if (!changed) return;
    person = changed;
    if (address.name === undefined) rememberPerson(person);
    showPerson(person);
    conversation?.rename(person);
  });
  addEventListener("hashchange", () => {
    const next = readAddress();
    if (next.room === address.room) return;
    address = next;
    tabs.show(address.view);
    showRoom();
    conversation?.leave();
    conversation = new Conversation(client, address.room, person!, views);
  });
  focusView();
}

/** What one most likely does next in what is shown. */
function focusView(): void {
  if (address.view === "chat") input.focus();
  else byId("board").focus();
}

function viewChanged(view: View): void {
  address = { ...address, view };
  rememberView(view);
  showRoom();
}

function connect(): Client {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const client = new Client(`${scheme}//${location.host}/v1/ws`, {
    agent: "roomful-page",
    getToken: () => address.token ?? null,
  });
  // Who closes the tab is gone for the others at once, and not only when the server has given up waiting.
  addEventListener("pagehide", () => void client.close());
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  return client;
}

function makeViews(client: Client): Views {
  const people = new People();
  return {
    people,
    messages: new MessageList(() => void conversation?.loadOlder()),
    typing: new Typing(people),
    cursors: new Cursors(people, () => conversation?.room),
    panel: new ConnectionPanel(client, () => conversation?.room.pending ?? 0),
    tabs,
    ownUsers: new OwnUsers(),
  };
}

function startComposer({ typing }: Views): void {
  const send = byId<HTMLButtonElement>("send");
  const changed = () => {
    send.disabled = input.value.trim() === "";
    input.style.height = "auto";
    input.style.height = `${input.scrollHeight}px`;
  };
  input.addEventListener("input", () => {
    changed();
    typing.wrote(conversation?.room, input.value);
  });
  input.addEventListener("keydown", (event) => {
    // While a text is being composed (as in Japanese), Enter ends the composition.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId<HTMLFormElement>("composer").requestSubmit();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (text === "") return;
    input.value = "";
    changed();
    conversation?.say(text);
    input.focus();
  });
  addEventListener("keydown", (event) => {
    const elsewhere = document.activeElement === document.body || document.activeElement === byId("scroller");
    if (event.key !== "/" || !elsewhere || address.view !== "chat") return;
    event.preventDefault();
    input.focus();
  });
}

/** On a narrow screen the panel is a drawer. */
function startPanel(): void {
  const [panel, scrim, opener] = [byId("panel"), byId("scrim"), byId("panel-open")];
  const set = (open: boolean) => {
    panel.classList.toggle("open", open);
    scrim.hidden = !open;
    opener.setAttribute("aria-expanded", String(open));
    (open ? byId("panel-close") : opener).focus();
  };
  opener.addEventListener("click", () => set(true));
  byId("panel-close").addEventListener("click", () => set(false));
  scrim.addEventListener("click", () => set(false));
  panel.addEventListener("keydown", (event) => event.key === "Escape" && panel.classList.contains("open") && set(false));
}

function showRoom(): void {
  byId("room-name").textContent = address.room;
  document.title = `${address.room} · Roomful`;
  input.placeholder = `Write to ${address.room}`;
  for (const link of document.querySelectorAll<HTMLAnchorElement>(".second-visitor")) link.href = hashOf(address.room, randomPerson().name, address.view);
}

function showPerson(person: Person): void {
  byId("me-name").textContent = person.name;
  paintAvatar(byId("me-avatar"), person);
}
