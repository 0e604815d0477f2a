// The package's public face.

export { Client, type ClientEvents, type ClientOptions, type ClientState, type Session, type TokenReason } from "./client.js";
export { Room } from "./room.js";
export type {
  CaughtUp,
  Content,
  HistoryOptions,
  HistoryPage,
  Joined,
  JoinOptions,
  Member,
  MembersPage,
  PresenceChanges,
  RoomEvent,
  RoomEvents,
  RoomState,
  Signal,
  Timer,
  TimerEvent,
} from "./room-events.js";
export { Roster, type RosterEvents } from "./roster.js";
export { Payload, type Json, type PayloadFormat, type PayloadLike } from "./payload.js";
export { comparePositions, formatPosition, parsePosition, type Position } from "./position.js";
export { closeCode, errorCode, RoomfulError, type Retry } from "./errors.js";
export { placementKey } from "./placement.js";
export type { BackoffOptions } from "./backoff.js";
export { Locks, type Lock, type LockChange, type LocksEvents } from "./locks.js";
export { SharedValues, type Change, type Conditions, type SharedValuesEvents, type Value, type ValuesChange } from "./values.js";
export type { Cursors, Durability, Limits, OpId, Published, Recovery, Watch } from "./frames.js";
export type { QueueMax } from "./publish-queue.js";
export type { WebSocketConstructor, WebSocketLike } from "./socket.js";
export type { Encoding } from "./wire.js";
