// One room on the page: what happens in it goes to the views, and what the visitor does goes to it.

import { Roster, type Client, type Position, type Room, type RoomEvent, type Signal } from "../src/index.js";
import { Board } from "./board.js";
import { CARD_PREFIX } from "./card.js";
import type { ConnectionPanel } from "./connection-panel.js";
import { CURSOR_KEY, type Cursors } from "./cursors.js";
import { messageOf, publication } from "./message.js";
import type { MessageList, StoredMessage } from "./message-list.js";
import type { People } from "./people.js";
import type { Person } from "./person.js";
import type { OwnUsers } from "./settings.js";
import { TYPING_KEY, type Typing } from "./typing.js";
import type { ViewTabs } from "./view-tabs.js";

export interface Views {
  readonly messages: MessageList;
  readonly people: People;
  readonly typing: Typing;
  readonly cursors: Cursors;
  readonly panel: ConnectionPanel;
  readonly tabs: ViewTabs;
  readonly ownUsers: OwnUsers;
}

export class Conversation {
  readonly room: Room;
  readonly #client: Client;
  readonly #views: Views;
  readonly #roster: Roster;
  readonly #board: Board;
  #person: Person;
  /** Where the next older page starts; undefined while nothing has been read, null when there is no more. */
  #older: Position | null | undefined;
  #reading = false;

  constructor(client: Client, name: string, person: Person, views: Views) {
    this.#client = client;
    this.#views = views;
    this.#person = person;
    this.room = client.join(name, { watch: "members", presence: presenceOf(person), values: [CARD_PREFIX], locks: true });
    this.#roster = new Roster(this.room);
    const { people, panel, tabs } = views;
    this.#board = new Board(this.room, { people, panel, person: () => this.#person, counted: (cards) => tabs.counted(cards) });
    this.#listen();
  }

  /** Says something. It is shown at once, and marked when it is stored. */
  say(text: string): void {
    const id = crypto.randomUUID();
    const message = { id, by: this.#person, user: this.#client.session?.user ?? "", text, timeMs: Date.now() };
    const shown = this.#views.messages.addPending(message, this.#client.state === "connected");
    this.#views.typing.stopped(this.room);
    this.room.publish(publication(id, this.#person, text)).then(
      ({ position }) => shown.stored(position),
      (error: Error) => shown.failed(error.message, () => this.say(text)),
    );
  }

  /** Takes another name or colour. */
  rename(person: Person): void {
    this.#person = person;
    this.room.setPresence(presenceOf(person)).catch((error: Error) => this.#views.panel.log("warning", error.message));
  }

  /** Reads what is before what is shown, unless that is going on already. */
  async loadOlder(): Promise<void> {
    const { messages } = this.#views;
    const { position } = this.room;
    if (this.#reading || !position || (this.#older === null && !messages.trimmed)) return;
    // The oldest entry that was read may be older than the oldest message: not every entry is one.
    const read = messages.trimmed ? undefined : this.#older;
    const before = read ?? messages.oldest ?? { epoch: position.epoch, offset: position.offset + 1 };
    const stale = () => before.epoch !== this.room.position?.epoch;
    let more = false;
    this.#reading = true;
    messages.setLoading(true);
    try {
      const page = await this.room.history({ before, limit: PAGE });
      if (stale() || this.room.state === "left") return;
      this.#older = page.next;
      const said = page.events.filter(({ kind }) => kind === "publish");
      messages.prepend(said.map((event) => this.#stored(event)));
      more = page.next !== null && said.length < FEW;
      if (page.next === null) messages.setBeginning("This is as far back as the room remembers.");
    } catch {
      // Away at the moment, or the history has been replaced meanwhile. The next scroll, or the next join, asks again.
    } finally {
      this.#reading = false;
      messages.setLoading(false);
      if ((more || stale()) && this.room.state !== "left") void this.loadOlder();
    }
  }

  leave(): void {
    this.#roster.close();
    this.#board.close();
    this.#views.typing.clear();
    this.#views.cursors.clear();
    this.#views.people.show(new Map(), undefined);
    this.#views.messages.clearAll();
    this.room.leave().catch(() => {});
  }

  #listen(): void {
    const { room } = this;
    const { messages, panel, people, typing, cursors, ownUsers, tabs } = this.#views;
    room.on("joined", (joined) => {
      if (this.#client.session) ownUsers.add(this.#client.session.user);
      panel.joined(joined);
      if (this.#older === undefined && joined.recovery !== "reset") void this.loadOlder();
    });
    room.on("event", (event) => {
      panel.moved(event.position);
      messages.append(this.#stored(event));
      if (!event.recovered) this.#hasSpoken(event.user);
      tabs.spoken();
    });
    room.on("advance", (position) => panel.moved(position));
    room.values.on("change", ({ position }) => panel.moved(position));
    room.locks.on("change", ({ position }) => panel.moved(position));
    room.on("caughtUp", (caughtUp) => panel.caughtUp(caughtUp));
    room.on("reset", ({ position, previous }) => {
      messages.clear();
      panel.reset(position, previous);
      messages.notice("The room's history was replaced. What was here before is gone.");
      this.#older = undefined;
      void this.loadOlder();
    });
    room.on("signal", (signal) => this.#signalled(signal));
    room.on("state", (state) => {
      // Who writes and points is not known any more.
      if (state !== "waiting") return;
      typing.clear();
      cursors.clear();
    });
    room.on("left", ({ error, rejoining }) => panel.left(error, rejoining));
    this.#roster.on("change", (members) => {
      people.show(members, room.member);
      this.#board.refresh();
    });
    room.on("presence", ({ changes }) => {
      for (const { member, kind } of changes) {
        if (kind === "present") continue;
        typing.forget(member);
        cursors.forget(member);
      }
    });
  }

  /** Who has just sent a message is not writing it any more. */
  #hasSpoken(user: string): void {
    for (const [number, member] of this.#roster.members) {
      if (member.user === user) this.#views.typing.forget(number);
    }
  }

  #signalled(signal: Signal): void {
    if (signal.key === TYPING_KEY) this.#views.typing.received(signal);
    if (signal.key === CURSOR_KEY) this.#views.cursors.received(signal);
  }

  #stored(event: RoomEvent): StoredMessage {
    return { ...messageOf(event), position: event.position, own: event.own || this.#views.ownUsers.has(event.user) };
  }
}

function presenceOf({ name, hue }: Person): { name: string; hue: number } {
  return { name, hue };
}

const PAGE = 100;
/** A page with fewer messages than this is not worth a scroll: the next one follows by itself. */
const FEW = 10;
