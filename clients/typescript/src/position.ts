// Positions: where something stands in a room's history. An offset without its epoch means nothing, so the two travel as one.

/** `(epoch, offset)`; as text `epoch-offset`. Both are integers from 0 to 2^53 − 1. */
export interface Position {
  /** Generation of the history. A new one makes older positions meaningless. */
  readonly epoch: number;
  /** Place in it, from 1; 0 is before the first entry. */
  readonly offset: number;
}

/** The text form, for example `7-42`. */
export function formatPosition(position: Position): string {
  return `${position.epoch}-${position.offset}`;
}

/** Reads the text form; `undefined` for anything else. */
export function parsePosition(text: string): Position | undefined {
  const parts = /^(0|[1-9]\d*)-(0|[1-9]\d*)$/.exec(text);
  if (!parts) return undefined;
  const position = { epoch: Number(parts[1]), offset: Number(parts[2]) };
  return Number.isSafeInteger(position.epoch) && Number.isSafeInteger(position.offset) ? position : undefined;
}

/** Negative when `a` comes before `b`, 0 when they are the same, positive otherwise. */
export function comparePositions(a: Position, b: Position): number {
  return a.epoch - b.epoch || a.offset - b.offset;
}
