// The catalogues of errors and close codes: number, name, and what a client does next; and the one error type that carries a row of them.

import type { Retry, StateItem } from "./frames.js";
import type { HandshakeRefusal } from "./socket.js";
import type { Value } from "./values.js";

/**
 * What to do after an error: `never` repeat it; repeat it `now` (once; then with back-off); repeat it `after_ms` (or with back-off where no time
 * stands beside it); get a fresh token and repeat it (`refresh`).
 */
export type { Retry };

interface Row {
  readonly name: string;
  readonly retry: Retry;
}

/** Why a request failed, or why a membership ended. */
const ERRORS = {
  100: { name: "bad_frame", retry: "never" },
  101: { name: "unknown_type", retry: "never" },
  102: { name: "bad_state", retry: "never" },
  103: { name: "bad_payload", retry: "never" },
  104: { name: "payload_too_large", retry: "never" },
  105: { name: "bad_value", retry: "never" },
  200: { name: "invalid_token", retry: "refresh" },
  201: { name: "token_expired", retry: "refresh" },
  202: { name: "token_mismatch", retry: "never" },
  203: { name: "forbidden", retry: "never" },
  204: { name: "revoked", retry: "refresh" },
  300: { name: "bad_room_name", retry: "never" },
  301: { name: "unknown_namespace", retry: "never" },
  302: { name: "not_joined", retry: "never" },
  303: { name: "already_joined", retry: "never" },
  304: { name: "too_many_rooms", retry: "never" },
  305: { name: "room_full", retry: "after_ms" },
  306: { name: "no_such_member", retry: "never" },
  307: { name: "room_reopened", retry: "now" },
  308: { name: "fell_behind", retry: "now" },
  309: { name: "membership_taken", retry: "never" },
  400: { name: "op_id_expired", retry: "never" },
  401: { name: "op_id_conflict", retry: "never" },
  402: { name: "outcome_unknown", retry: "now" },
  403: { name: "rejected", retry: "never" },
  404: { name: "conflict", retry: "never" },
  405: { name: "stale_fence", retry: "never" },
  406: { name: "lock_taken", retry: "after_ms" },
  407: { name: "lock_not_held", retry: "never" },
  408: { name: "quota_exceeded", retry: "never" },
  409: { name: "fence_required", retry: "never" },
  500: { name: "rate_limited", retry: "after_ms" },
  501: { name: "overloaded", retry: "after_ms" },
  502: { name: "internal", retry: "after_ms" },
  503: { name: "storage_full", retry: "after_ms" },
  504: { name: "storage_failed", retry: "after_ms" },
  505: { name: "storage_damaged", retry: "never" },
  // What this client finds itself, and never reads from the wire:
  /** The queue of publishes without an answer is at its bound. */
  900: { name: "queue_full", retry: "after_ms" },
  /** No answer came in time. */
  901: { name: "request_timeout", retry: "now" },
  /** The connection was lost before the answer. */
  902: { name: "connection_lost", retry: "now" },
  /** The client was closed, or the room left, by this side. */
  903: { name: "closed", retry: "never" },
  /** The server broke the protocol: a gap, a repetition, or a message that is no frame. */
  904: { name: "protocol_violation", retry: "after_ms" },
  /** `getToken` failed. */
  905: { name: "token_unavailable", retry: "after_ms" },
} as const satisfies Record<number, Row>;

/** Why the server closes a connection. */
const CLOSES = {
  1000: { name: "normal", retry: "never" },
  1002: { name: "protocol_error", retry: "never" },
  1003: { name: "unsupported_data", retry: "never" },
  1007: { name: "invalid_utf8", retry: "never" },
  1008: { name: "error_budget_spent", retry: "never" },
  1009: { name: "message_too_big", retry: "never" },
  1011: { name: "internal_error", retry: "after_ms" },
  1012: { name: "restart", retry: "after_ms" },
  1013: { name: "try_later", retry: "after_ms" },
  4401: { name: "not_authenticated", retry: "refresh" },
  4403: { name: "revoked", retry: "refresh" },
  4408: { name: "hello_timeout", retry: "after_ms" },
  4409: { name: "replaced", retry: "never" },
  4410: { name: "token_expired", retry: "refresh" },
  4411: { name: "heartbeat_timeout", retry: "now" },
  4429: { name: "rate_limited", retry: "after_ms" },
  4431: { name: "slow_consumer", retry: "now" },
} as const satisfies Record<number, Row>;

type Catalogue<R extends Record<number, Row>> = { readonly [C in keyof R & number as R[C]["name"]]: C };

/** The error codes by name: `errorCode.forbidden` is 203. */
export const errorCode = byName(ERRORS);
/** The close codes by name. */
export const closeCode = byName(CLOSES);

function byName<R extends Record<number, Row>>(rows: R): Catalogue<R> {
  return Object.fromEntries(Object.entries(rows).map(([code, row]) => [row.name, Number(code)])) as Catalogue<R>;
}

/** Everything that this package rejects or emits. `code` is one of {@link errorCode} or {@link closeCode}, `name` its name there. */
export class RoomfulError extends Error {
  override readonly name: string;

  constructor(
    /** The number; one that this version doesn't know has the name `error_` or `close_` and the number. */
    readonly code: number,
    message: string,
    /** What to do next. */
    readonly retry: Retry,
    /** How long to wait first, in milliseconds, where the server said so. */
    readonly afterMs?: number,
    options?: ErrorOptions,
    /** With `conflict`: the keys whose conditions did not hold, as they are. */
    readonly current: readonly Value[] = [],
  ) {
    super(message, options);
    this.name = (code < 1000 ? row(ERRORS, code)?.name : row(CLOSES, code)?.name) ?? `${code < 1000 ? "error" : "close"}_${code}`;
  }

  /** An error of the catalogue, found by this side. */
  static local(code: keyof typeof ERRORS, message: string, options?: ErrorOptions): RoomfulError {
    return new RoomfulError(code, message, ERRORS[code].retry, undefined, options);
  }

  /** What an `error` or `left` frame says. */
  static fromFrame(frame: { code: number; text: string; retry: Retry; afterMs: number | null; current?: readonly StateItem[] }): RoomfulError {
    const current = frame.current?.map(({ key, version, value: raw }) => ({ key, version, value: raw?.value, raw }));
    return new RoomfulError(frame.code, frame.text, frame.retry, frame.afterMs ?? undefined, undefined, current);
  }

  /** What the HTTP answer to a handshake says, where it can be seen. */
  static fromRefusal({ statusCode, headers }: HandshakeRefusal): RoomfulError {
    const seconds = Number.parseInt(headers["retry-after"] ?? "", 10);
    const afterMs = Number.isNaN(seconds) ? undefined : seconds * 1_000;
    return new RoomfulError(902, `the handshake was answered with ${statusCode}`, "after_ms", afterMs);
  }

  /** What a close frame says; 1006 where there was none. A code that is none of ours is a fault on the way (RFC 6455 §7.4), and those pass. */
  static fromClose(code: number, reason: string): RoomfulError {
    if (code === 1006) return RoomfulError.local(902, "the connection was lost");
    const known = row(CLOSES, code);
    return new RoomfulError(code, reason || known?.name || "the connection was closed", known?.retry ?? "after_ms");
  }
}

function row(rows: Record<number, Row>, code: number): Row | undefined {
  return rows[code];
}
