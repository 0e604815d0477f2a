// The package's public face.

export { Client, type ClientEvents, type ClientOptions, type ClientState, type Session, type TokenReason } from "./client.js";
export {
  Room,
  type CaughtUp,
  type Content,
  type HistoryOptions,
  type HistoryPage,
  type Joined,
  type JoinOptions,
  type Member,
  type MembersPage,
  type PresenceChanges,
  type RoomEvent,
  type RoomEvents,
  type RoomState,
  type Signal,
} from "./room.js";
export { Roster, type RosterEvents } from "./roster.js";
export { Payload, type Json, type PayloadFormat, type PayloadLike } from "./payload.js";
export { comparePositions, formatPosition, parsePosition, type Position } from "./position.js";
export { closeCode, errorCode, RoomfulError, type Retry } from "./errors.js";
export { placementKey } from "./placement.js";
export type { BackoffOptions } from "./backoff.js";
export type { Durability, Limits, OpId, Published, Recovery, Watch } from "./frames.js";
export type { QueueMax } from "./publish-queue.js";
export type { WebSocketConstructor, WebSocketLike } from "./socket.js";
export type { Encoding } from "./wire.js";
