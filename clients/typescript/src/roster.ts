// The members of a room, kept whole: pages and changes arrive side by side, and the revisions say which is newer.

import { Emitter } from "./emitter.js";
import { RoomfulError } from "./errors.js";
import type { Room } from "./room.js";
import type { Member, MembersPage, PresenceChanges } from "./room-events.js";

export type RosterEvents = {
  /** Somebody came, changed or went. */
  change: ReadonlyMap<number, Member>;
  /** The members could not be read; they are read again with the next join. */
  error: RoomfulError;
};

interface Row {
  /** Undefined for one that is gone: a page that is on its way may still name it. */
  readonly member: Member | undefined;
  readonly revision: number;
}

/** Follows a room that is joined with `watch: "members"`. */
export class Roster extends Emitter<RosterEvents> {
  readonly #room: Room;
  readonly #rows = new Map<number, Row>();
  readonly #offs: (() => void)[];
  #members: ReadonlyMap<number, Member> = new Map();
  /** The pages that are being read; their changes are shown when the last one has come. */
  #reading: object | undefined;

  constructor(room: Room) {
    super();
    this.#room = room;
    this.#offs = [
      room.on("joined", () => void this.#read()),
      room.on("presence", (changes) => this.#changed(changes)),
    ];
    if (room.alias !== undefined) void this.#read();
  }

  /** The members by number, in the order in which they joined. After a reconnect these are the last ones known, until all have been read again. */
  get members(): ReadonlyMap<number, Member> {
    return this.#members;
  }

  /** Stops following. */
  close(): void {
    this.#reading = undefined;
    for (const off of this.#offs) off();
  }

  async #read(): Promise<void> {
    // What was known before belongs to another membership, whose revisions may not compare with these.
    this.#rows.clear();
    const reading = {};
    this.#reading = reading;
    try {
      for (let after: number | null | undefined; after !== null; ) {
        const page: MembersPage = await this.#room.membersPage(after === undefined ? {} : { after });
        if (reading !== this.#reading) return;
        for (const member of page.members) this.#put(member.member, { member, revision: page.revision });
        after = page.next;
      }
      this.#reading = undefined;
      this.#show();
    } catch (error) {
      if (reading === this.#reading && error instanceof RoomfulError) this.emit("error", error);
    }
  }

  #changed({ revision, changes }: PresenceChanges): void {
    for (const change of changes) {
      this.#put(change.member, { member: change.kind === "present" ? change : undefined, revision });
    }
    if (!this.#reading && changes.length > 0) this.#show();
  }

  #put(number: number, row: Row): void {
    const known = this.#rows.get(number);
    if (!known || row.revision > known.revision) this.#rows.set(number, row);
  }

  #show(): void {
    for (const [number, row] of this.#rows) {
      if (!row.member) this.#rows.delete(number);
    }
    const present = [...this.#rows].map(([number, row]) => [number, row.member!] as const);
    this.#members = new Map(present.sort(([a], [b]) => a - b));
    this.emit("change", this.#members);
  }
}
