// A client of a case, and what its rooms have been given, in lanes.

import { WebSocket } from "ws";

import { Client, type Joined, type JoinOptions, type PresenceChanges, type Position, type Published, type Room, type RoomEvent, type RoomfulError, type Session, type Signal, type TimerEvent } from "../../src/index.js";
import type { Encoding } from "../../src/wire.js";

export type LaneItem =
  | { kind: "event"; event: RoomEvent }
  | { kind: "joined"; joined: Joined }
  | { kind: "caught_up"; position: Position }
  | { kind: "reset"; position: Position }
  | { kind: "left"; error: RoomfulError }
  | { kind: "timer"; timer: TimerEvent }
  | { kind: "lost"; lock: string }
  | { kind: "signal"; signal: Signal }
  | { kind: "presence"; change: PresenceChanges["changes"][number] };

/** Things in the order in which they came. */
export class Lane {
  readonly items: LaneItem[] = [];
  #wake = () => {};

  put(item: LaneItem): void {
    this.items.push(item);
    this.#wake();
  }

  async take(withinMs: number): Promise<LaneItem> {
    const deadline = performance.now() + withinMs;
    while (this.items.length === 0 && performance.now() < deadline) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, deadline - performance.now());
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    const item = this.items.shift();
    if (!item) throw new Error("nothing came");
    return item;
  }
}

/** What a client has been given of a room, over all its memberships. */
export class LaneRoom {
  readonly log = new Lane();
  readonly signals = new Lane();
  readonly presence = new Lane();
  readonly lost = new Lane();
  room!: Room;
  occupancy = 0;
  readonly #watchers = new Set<() => void>();

  /** Follows a membership. The first `joined` belongs to the step that joins. */
  follow(room: Room): void {
    this.room = room;
    let first = true;
    room.on("joined", (joined) => {
      this.occupancy = joined.occupancy;
      if (!first) this.log.put({ kind: "joined", joined });
      first = false;
    });
    room.on("event", (event) => this.log.put({ kind: "event", event }));
    room.on("timer", (timer) => this.log.put({ kind: "timer", timer }));
    room.locks.on("lost", ({ lock }) => this.lost.put({ kind: "lost", lock }));
    room.on("caughtUp", ({ position }) => this.log.put({ kind: "caught_up", position }));
    room.on("reset", ({ position }) => this.log.put({ kind: "reset", position }));
    room.on("left", ({ error }) => this.log.put({ kind: "left", error }));
    room.on("signal", (signal) => this.signals.put({ kind: "signal", signal }));
    room.on("presence", ({ occupancy, changes }) => {
      this.occupancy = occupancy;
      for (const change of changes) if (change.member !== room.member) this.presence.put({ kind: "presence", change });
    });
    for (const name of ["joined", "event", "advance", "presence"] as const) room.on(name, () => this.#watchers.forEach((watch) => watch()));
  }

  /** Waits until it is so; the step's deadline ends it. */
  until(condition: () => boolean): Promise<void> {
    if (condition()) return Promise.resolve();
    return new Promise((resolve) => {
      const watch = () => {
        if (!condition()) return;
        this.#watchers.delete(watch);
        resolve();
      };
      this.#watchers.add(watch);
    });
  }
}

export class CaseClient {
  readonly client: Client;
  readonly #rooms = new Map<string, LaneRoom>();
  readonly #published = new Map<string, Promise<Published>[]>();
  readonly #waiting: Promise<Position>[] = [];
  readonly #sessions: Session[] = [];
  /** How many connections there had been when the last one was cut. */
  #connectionsBefore = 0;
  #lastJoined: LaneRoom | undefined;

  constructor(url: string, encoding: Encoding) {
    this.client = new Client(url, { webSocket: WebSocket, encoding, backoff: { baseMs: 50, capMs: 200 } });
    this.client.on("state", ({ state }) => state === "connected" && this.#sessions.push(this.client.session!));
  }

  get user(): string {
    return this.client.session!.user;
  }

  /** The own member number in the room that was joined last. */
  get member(): number {
    return this.#lastJoined!.room.member!;
  }

  async join(name: string, options: JoinOptions): Promise<Joined> {
    const room = this.client.join(name, options);
    const lanes = this.#rooms.get(name) ?? new LaneRoom();
    this.#rooms.set(name, lanes);
    lanes.follow(room);
    const joined = await room.whenJoined();
    this.#lastJoined = lanes;
    return joined;
  }

  room(name: string): LaneRoom {
    const room = this.#rooms.get(name);
    if (!room) throw new Error(`the client never joined ${name}`);
    return room;
  }

  published(room: string, outcomes: Promise<Published>[]): void {
    // Whether they fail is looked at when a step asks for them.
    for (const outcome of outcomes) outcome.catch(() => {});
    this.#published.set(room, [...(this.#published.get(room) ?? []), ...outcomes]);
  }

  takePublished(room: string, count: number): Promise<Published>[] {
    const taken = this.#published.get(room)?.splice(0, count) ?? [];
    if (taken.length < count) throw new Error(`only ${taken.length} publishes have no step that awaits them`);
    return taken;
  }

  /** A lock that is asked for, for a later step. */
  waitsFor(granted: Promise<Position>): void {
    granted.catch(() => {});
    this.#waiting.push(granted);
  }

  takeWaiting(): Promise<Position> {
    const granted = this.#waiting.shift();
    if (!granted) throw new Error("no lock is waited for");
    return granted;
  }

  cut(): void {
    this.#connectionsBefore = this.#sessions.length;
    this.client.dropConnection();
  }

  offline(): void {
    this.#connectionsBefore = this.#sessions.length;
    this.client.offline();
  }

  /** Waits until it is connected again; whether it is the same session of the same user. */
  async reconnected(): Promise<boolean> {
    while (this.#sessions.length <= this.#connectionsBefore) {
      await new Promise<void>((resolve) => {
        const off = this.client.on("state", () => {
          off();
          resolve();
        });
      });
    }
    const [before, now] = this.#sessions.slice(-2) as [Session, Session];
    return now.resumed && now.id === before.id && now.user === before.user;
  }
}
