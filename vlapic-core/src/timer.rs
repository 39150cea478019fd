//! The APIC timer: one-shot, periodic and TSC-deadline.
//!
//! Time is the guest's TSC and always an argument. The page holds what the guest programmed
//! (LVT timer, initial count, divide configuration); here is only what it cannot hold: when the
//! count started and from what, and IA32_TSC_DEADLINE. SDM Vol. 3A 10.5.4.

use core::num::NonZero;

use crate::lvt::TimerMode;
use crate::profile::ClockRatio;

/// The number of IA32_TSC_DEADLINE.
pub const IA32_TSC_DEADLINE: u32 = 0x6E0;

/// The timer's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    counting: Option<Counting>,
    /// IA32_TSC_DEADLINE; zero is disarmed.
    deadline: u64,
    /// Before this time [`Self::advance`] has nothing to do, whatever the mode. Follows from the
    /// others and is looked at in every access, so it is worked out when they change.
    due: u64,
}

impl Default for Timer {
    fn default() -> Self {
        Self::of(None, 0)
    }
}

/// A count that runs: `count` divided ticks were left at time `origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counting {
    origin: u64,
    count: u32,
    /// log2 of the divider in force since `origin`.
    shift: u8,
    /// The first TSC value at which the count is zero. Follows from the others and is looked at in
    /// every entry's work, so the division is done once.
    expiry: u64,
}

/// What the page says about the timer, read when it is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) mode: TimerMode,
    pub(crate) initial_count: u32,
    pub(crate) shift: u8,
    pub(crate) clock: ClockRatio,
}

/// log2 of the divider that divide configuration `value` selects: 000 is 2, 111 is 1 (SDM Vol. 3A
/// Figure 10-10).
pub(crate) const fn divide_shift(value: u32) -> u8 {
    let code = value & 3 | (value & 8) >> 1;
    (code as u8 + 1) & 7
}

/// What a count that runs is made of: `count` divided ticks, of 2^`shift` ticks of the base clock
/// each, were left at time `origin`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) origin: u64,
    /// Zero: the count does not run.
    pub(crate) count: u32,
    pub(crate) shift: u8,
}

impl Timer {
    /// The timer of a restored state. `phase.shift` is below 8.
    pub(crate) fn from_parts(phase: Phase, deadline: u64, clock: ClockRatio) -> Self {
        let counting = Counting::new(phase.origin, phase.count, phase.shift & 7, clock);
        Self::of(counting, deadline)
    }

    fn of(counting: Option<Counting>, deadline: u64) -> Self {
        let expiry = counting.map_or(u64::MAX, |counting| counting.expiry);
        let armed = if deadline == 0 { u64::MAX } else { deadline };
        Self { counting, deadline, due: expiry.min(armed) }
    }

    /// Whether time has come to a point where [`Self::advance`] may have something to do.
    #[inline]
    pub(crate) const fn due(&self, now: u64) -> bool {
        now >= self.due
    }

    /// Whether no count runs and no deadline is set.
    #[inline]
    pub(crate) const fn idle(&self) -> bool {
        self.counting.is_none() && self.deadline == 0
    }

    /// The phase of the count; all zero if none runs.
    pub(crate) fn phase(&self) -> Phase {
        self.counting.map_or(Phase::default(), |Counting { origin, count, shift, .. }| Phase {
            origin,
            count,
            shift,
        })
    }

    /// Initial count written. In TSC-deadline mode the write is ignored, which the caller sees to.
    pub(crate) fn start(&mut self, now: u64, settings: Settings) {
        let count = settings.initial_count;
        *self = Self::of(Counting::new(now, count, settings.shift, settings.clock), self.deadline);
    }

    /// LVT timer written. One-shot and periodic change into each other without disturbing the
    /// count; in and out of TSC-deadline mode everything is disarmed.
    pub(crate) fn mode_written(&mut self, mode: TimerMode) {
        *self = match mode {
            TimerMode::TscDeadline => Self::of(None, self.deadline),
            _ => Self::of(self.counting, 0),
        };
    }

    /// Divide configuration written: the count goes on from where it stands, at the new rate.
    ///
    /// The manuals do not say; this is what other implementations do.
    pub(crate) fn divider_written(&mut self, now: u64, settings: Settings) {
        if let Some(counting) = self.counting
            && counting.shift != settings.shift
        {
            let count = self.current_count(now, settings);
            let counting = Counting::new(now, count, settings.shift, settings.clock);
            *self = Self::of(counting, self.deadline);
        }
    }

    /// WRMSR of IA32_TSC_DEADLINE; ignored outside TSC-deadline mode.
    pub(crate) fn set_deadline(&mut self, deadline: u64, mode: TimerMode) {
        if mode == TimerMode::TscDeadline {
            *self = Self::of(self.counting, deadline);
        }
    }

    /// RDMSR of IA32_TSC_DEADLINE: zero when disarmed, and after it fired.
    pub(crate) const fn deadline(&self) -> u64 {
        self.deadline
    }

    /// The current-count register: zero when stopped and in TSC-deadline mode.
    pub(crate) fn current_count(&self, now: u64, settings: Settings) -> u32 {
        let Some(counting) = self.counting else {
            return 0;
        };
        if settings.mode == TimerMode::TscDeadline {
            return 0;
        }
        let elapsed = counting.elapsed(now, settings.clock);
        match u128::from(counting.count).checked_sub(elapsed) {
            Some(left) if left > 0 => left as u32,
            // Expired, though `advance` has not been told yet.
            _ if settings.mode == TimerMode::Periodic && settings.initial_count != 0 => {
                let period = divisor(settings.initial_count);
                let into = (elapsed - u128::from(counting.count)) % period;
                (period.get() - into) as u32
            }
            _ => 0,
        }
    }

    /// Lets time pass to `now`; says whether the timer fired since it was last told.
    ///
    /// Several periods that passed unseen fire once, as IRR has one bit a vector. The phase is
    /// kept. A masked entry changes nothing here: count and deadline expire all the same.
    pub(crate) fn advance(&mut self, now: u64, settings: Settings) -> bool {
        match settings.mode {
            TimerMode::TscDeadline => {
                let fired = self.deadline != 0 && self.deadline <= now;
                if fired {
                    *self = Self::of(self.counting, 0);
                }
                fired
            }
            TimerMode::OneShot | TimerMode::Periodic => {
                let Some(counting) = self.counting else {
                    return false;
                };
                if now < counting.expiry {
                    return false;
                }
                let periodic = settings.mode == TimerMode::Periodic;
                let counting = if periodic { counting.reload(now, settings) } else { None };
                *self = Self::of(counting, self.deadline);
                true
            }
            TimerMode::Reserved => false,
        }
    }

    /// When `advance` will next say that the timer fired, in guest TSC ticks.
    #[inline]
    pub(crate) fn next_expiry(&self, mode: TimerMode) -> Option<u64> {
        match mode {
            TimerMode::TscDeadline => (self.deadline != 0).then_some(self.deadline),
            TimerMode::OneShot | TimerMode::Periodic => {
                self.counting.map(|counting| counting.expiry)
            }
            TimerMode::Reserved => None,
        }
    }
}

impl Counting {
    /// A count of `count` from `origin` on; none if it is zero.
    fn new(origin: u64, count: u32, shift: u8, clock: ClockRatio) -> Option<Self> {
        let ticks = u128::from(count) << shift;
        let tsc = div_ceil(ticks * u128::from(clock.tsc), divisor(clock.bus));
        let expiry = origin.saturating_add(u64::try_from(tsc).unwrap_or(u64::MAX));
        (count != 0).then_some(Self { origin, count, shift, expiry })
    }

    /// Divided ticks since `origin`.
    fn elapsed(&self, now: u64, clock: ClockRatio) -> u128 {
        let tsc = u128::from(now.saturating_sub(self.origin));
        (tsc * u128::from(clock.bus) / divisor(clock.tsc)) >> self.shift
    }

    /// The count that runs at `now`, after one or more expiries of a periodic timer.
    fn reload(&self, now: u64, settings: Settings) -> Option<Self> {
        if settings.initial_count == 0 {
            return None;
        }
        let period = divisor(settings.initial_count);
        let late = self.elapsed(now, settings.clock).saturating_sub(u128::from(self.count));
        let ticks_to_start = u128::from(self.count) + (late - late % period);
        // Rounded up, as `expiry` is: a period never begins before its predecessor ended.
        let tsc = div_ceil(
            (ticks_to_start << self.shift) * u128::from(settings.clock.tsc),
            divisor(settings.clock.bus),
        );
        let origin = self.origin.saturating_add(u64::try_from(tsc).unwrap_or(u64::MAX));
        Self::new(origin, settings.initial_count, self.shift, settings.clock)
    }
}

/// A number that is not zero: a side of the clock's ratio, which [`Profile`](crate::Profile) keeps
/// above zero, or an initial count already looked at. As a type, so that no division can panic.
const fn divisor(number: u32) -> NonZero<u128> {
    match NonZero::new(number as u128) {
        Some(divisor) => divisor,
        None => NonZero::<u128>::MIN,
    }
}

fn div_ceil(dividend: u128, divisor: NonZero<u128>) -> u128 {
    dividend / divisor + u128::from(dividend % divisor != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: TimerMode, initial_count: u32) -> Settings {
        Settings { mode, initial_count, shift: 0, clock: ClockRatio { tsc: 1, bus: 1 } }
    }

    #[test]
    fn divide_table() {
        let table = [
            (0b0000, 2),
            (0b0001, 4),
            (0b0010, 8),
            (0b0011, 16),
            (0b1000, 32),
            (0b1001, 64),
            (0b1010, 128),
            (0b1011, 1),
        ];
        for (value, divider) in table {
            assert_eq!(1u32 << divide_shift(value), divider, "{value:#06b}");
        }
    }

    #[test]
    fn one_shot_fires_once() {
        let mut timer = Timer::default();
        let one_shot = settings(TimerMode::OneShot, 100);
        timer.start(1000, one_shot);
        assert_eq!(timer.current_count(1040, one_shot), 60);
        assert_eq!(timer.next_expiry(one_shot.mode), Some(1100));
        assert!(!timer.advance(1099, one_shot));
        assert!(timer.advance(1100, one_shot));
        assert!(!timer.advance(5000, one_shot));
        assert_eq!(timer.current_count(5000, one_shot), 0);
        assert_eq!(timer.next_expiry(one_shot.mode), None);
    }

    #[test]
    fn periodic_keeps_its_phase() {
        let mut timer = Timer::default();
        let periodic = settings(TimerMode::Periodic, 100);
        timer.start(0, periodic);
        assert_eq!(timer.current_count(250, periodic), 50);
        assert!(timer.advance(250, periodic), "two expiries fire once");
        assert_eq!(timer.next_expiry(periodic.mode), Some(300));
        assert_eq!(timer.current_count(299, periodic), 1);
        assert!(timer.advance(300, periodic));
        assert_eq!(timer.current_count(300, periodic), 100);
    }

    #[test]
    fn switching_between_one_shot_and_periodic_keeps_counting() {
        let mut timer = Timer::default();
        timer.start(0, settings(TimerMode::OneShot, 100));
        timer.mode_written(TimerMode::Periodic);
        let periodic = settings(TimerMode::Periodic, 100);
        assert_eq!(timer.current_count(30, periodic), 70);
        assert!(timer.advance(100, periodic));
        assert_eq!(timer.current_count(130, periodic), 70);
        timer.mode_written(TimerMode::OneShot);
        assert!(timer.advance(200, settings(TimerMode::OneShot, 100)));
        timer.mode_written(TimerMode::Periodic);
        assert!(!timer.advance(1000, periodic), "a stopped count does not start again");
        assert_eq!(timer.current_count(1000, periodic), 0);
    }

    #[test]
    fn deadline() {
        let mut timer = Timer::default();
        let mode = settings(TimerMode::TscDeadline, 0);
        timer.set_deadline(500, TimerMode::OneShot);
        assert_eq!(timer.deadline(), 0, "ignored outside the mode");
        timer.set_deadline(500, TimerMode::TscDeadline);
        assert!(!timer.advance(499, mode));
        assert!(timer.advance(500, mode));
        assert_eq!(timer.deadline(), 0);
        timer.set_deadline(600, TimerMode::TscDeadline);
        timer.mode_written(TimerMode::OneShot);
        assert_eq!(timer.deadline(), 0, "leaving the mode disarms");
    }

    #[test]
    fn the_divider_and_the_clock_stretch_time() {
        let mut timer = Timer::default();
        let mut slow = settings(TimerMode::OneShot, 10);
        slow.shift = 4;
        slow.clock = ClockRatio { tsc: 3, bus: 2 };
        timer.start(0, slow);
        assert_eq!(timer.next_expiry(slow.mode), Some(240));
        assert_eq!(timer.current_count(239, slow), 1);
        slow.shift = 0;
        timer.divider_written(120, slow);
        assert_eq!(timer.current_count(120, slow), 5);
        assert_eq!(timer.next_expiry(slow.mode), Some(128));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut timer = Timer::default();
        let mut worst = settings(TimerMode::Periodic, u32::MAX);
        worst.shift = 7;
        worst.clock = ClockRatio { tsc: u32::MAX, bus: 1 };
        timer.start(u64::MAX - 1, worst);
        assert_eq!(timer.next_expiry(worst.mode), Some(u64::MAX));
        assert!(timer.advance(u64::MAX, worst));
        worst.clock = ClockRatio { tsc: 1, bus: u32::MAX };
        worst.initial_count = 1;
        worst.shift = 0;
        timer.start(0, worst);
        assert!(timer.advance(u64::MAX, worst));
        assert!(timer.current_count(0, worst) >= 1, "time running backwards is no fault");
    }
}
