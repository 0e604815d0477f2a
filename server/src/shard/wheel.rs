//! The timers of a shard: a hierarchical timing wheel of 1 ms (Varghese and Lauck 1987, scheme 7).
//!
//! Setting a timer and firing it cost the same whatever their number. A timer can't be cancelled: whoever set
//! it looks, when it fires, whether it still matters; what is far away and may not matter by then is looked at again
//! and again, so that the wheel keeps nothing for long of what has gone. A timer never fires early; how late depends on how often
//! [`Wheel::advance`] is called. Timers of the same millisecond fire in the order in which they were set.

/// Timers that carry a `T`.
#[derive(Debug)]
pub struct Wheel<T> {
    /// Up to which millisecond timers have fired.
    now_ms: u64,
    /// Each level's slots are 64 times as long as those of the level below.
    levels: [Level<T>; LEVELS],
    len: usize,
}

#[derive(Debug)]
struct Level<T> {
    slots: [Vec<Timer<T>>; SLOTS],
    /// Bit n is set while slot n has timers.
    occupied: u64,
}

#[derive(Debug)]
struct Timer<T> {
    due_ms: u64,
    what: T,
}

/// Six levels reach 64^6 ms, over two years; what is further away waits in the last slot and is placed again.
const LEVELS: usize = 6;
const SLOTS: usize = 64;
const SLOT_BITS: u32 = 6;

impl<T> Wheel<T> {
    /// An empty wheel whose time is `now_ms`.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self {
            now_ms,
            levels: std::array::from_fn(|_| Level::new()),
            len: 0,
        }
    }

    /// How many timers are set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets a timer; one that is due already fires at the next millisecond.
    pub fn set(&mut self, due_ms: u64, what: T) {
        self.len += 1;
        let due_ms = due_ms.max(self.now_ms + 1);
        self.place(Timer { due_ms, what });
    }

    /// When to call [`Wheel::advance`] next: never after the first timer is due. It may be before, where
    /// timers have to move to a finer level.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        (0..LEVELS)
            .filter_map(|level| self.next_of_level(level))
            .min()
    }

    /// Moves to `now_ms` and appends what is due to `fired`.
    pub fn advance(&mut self, now_ms: u64, fired: &mut Vec<T>) {
        while let Some(next_ms) = self.next_ms().filter(|next_ms| *next_ms <= now_ms) {
            self.now_ms = next_ms;
            for level in (0..LEVELS).rev() {
                self.visit(level, fired);
            }
        }
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// Empties the slot of a level that the time has just entered: what is due fires, the rest moves down.
    fn visit(&mut self, level: usize, fired: &mut Vec<T>) {
        let span_bits = SLOT_BITS * u32::try_from(level).unwrap_or(0);
        if !self.now_ms.is_multiple_of(1 << span_bits) {
            return;
        }
        for timer in self.levels[level].take(slot(self.now_ms, level)) {
            if timer.due_ms <= self.now_ms {
                self.len -= 1;
                fired.push(timer.what);
            } else {
                self.place(timer);
            }
        }
    }

    fn place(&mut self, timer: Timer<T>) {
        // The level is the highest in which due time and now differ: there the slot lies ahead of the current one.
        let differing = (timer.due_ms ^ self.now_ms) | 1;
        let level = usize::try_from(differing.ilog2() / SLOT_BITS)
            .unwrap_or(0)
            .min(LEVELS - 1);
        let slot = slot(timer.due_ms, level);
        self.levels[level].put(slot, timer);
    }

    /// When the time enters the next occupied slot of a level.
    fn next_of_level(&self, level: usize) -> Option<u64> {
        let occupied = self.levels[level].occupied;
        if occupied == 0 {
            return None;
        }
        let span_bits = SLOT_BITS * u32::try_from(level).unwrap_or(0);
        let current = slot(self.now_ms, level);
        let ahead = occupied.rotate_right(u32::try_from(current).unwrap_or(0));
        // Slot 0 of the rotated word is the current one, which is a whole round away once it has been visited.
        let distance = (ahead & !1).trailing_zeros();
        let start = self.now_ms >> span_bits;
        Some((start + u64::from(distance)) << span_bits)
    }
}

impl<T> Level<T> {
    fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| Vec::new()),
            occupied: 0,
        }
    }

    fn put(&mut self, slot: usize, timer: Timer<T>) {
        self.occupied |= 1 << slot;
        self.slots[slot].push(timer);
    }

    fn take(&mut self, slot: usize) -> Vec<Timer<T>> {
        self.occupied &= !(1 << slot);
        std::mem::take(&mut self.slots[slot])
    }
}

fn slot(ms: u64, level: usize) -> usize {
    let span_bits = SLOT_BITS * u32::try_from(level).unwrap_or(0);
    usize::try_from((ms >> span_bits) % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fire(wheel: &mut Wheel<u64>, now_ms: u64) -> Vec<u64> {
        let mut fired = Vec::new();
        wheel.advance(now_ms, &mut fired);
        fired
    }

    #[test]
    fn a_timer_fires_when_it_is_due_and_not_before() {
        for due_ms in [
            1,
            2,
            63,
            64,
            65,
            127,
            128,
            4095,
            4096,
            4097,
            262_144,
            25_000,
            20_000_000,
            69_000_000_000,
        ] {
            for start_ms in [0, 1, 63, 64, 4095, 1_000_000] {
                let mut wheel = Wheel::new(start_ms);
                wheel.set(start_ms + due_ms, due_ms);
                assert_eq!(
                    fire(&mut wheel, start_ms + due_ms - 1),
                    Vec::<u64>::new(),
                    "due in {due_ms} from {start_ms}"
                );
                assert_eq!(
                    fire(&mut wheel, start_ms + due_ms),
                    [due_ms],
                    "due in {due_ms} from {start_ms}"
                );
                assert!(wheel.is_empty());
            }
        }
    }

    /// Against a sorted list, with times and jumps from a fixed sequence.
    #[test]
    fn many_timers_fire_in_order_of_their_time() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut wheel = Wheel::new(777);
        let mut expected: Vec<u64> = Vec::new();
        let mut now_ms = 777;
        for _ in 0..20_000 {
            let range = 1 << next(20);
            let due_ms = now_ms + 1 + next(range);
            wheel.set(due_ms, due_ms);
            expected.push(due_ms);
            now_ms += next(200);
            let fired = fire(&mut wheel, now_ms);
            expected.sort_unstable();
            let due = expected.partition_point(|due_ms| *due_ms <= now_ms);
            assert_eq!(fired, expected.drain(..due).collect::<Vec<_>>());
            assert_eq!(wheel.len(), expected.len());
            assert!(wheel.next_ms().is_none_or(|next_ms| next_ms <= expected[0]));
        }
    }
}
