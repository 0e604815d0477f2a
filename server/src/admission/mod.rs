//! Who may come in, and how many at a time.
//!
//! Each listener asks it about every socket: when it is accepted, when it has to wait for the rest of its request,
//! when its handshake is good, and when its session is open. What was let in holds a [`Ticket`], which counts it at its
//! address and among those of its stage until the socket is closed. Everything is bounded: sockets of an address,
//! sockets without a WebSocket, WebSockets without a session, and WebSockets per second. Who is refused is told when
//! to come again. Answers, sockets and what is said over them are left to `http` and `transport`.
//!
//! Read on in [`client`] (who is behind a proxy), [`proxy`] (the PROXY protocol), [`budget`] (the rate of
//! handshakes), [`address`] (counts per address) and [`descriptors`].

pub mod address;
pub mod budget;
pub mod client;
pub mod descriptors;
pub mod proxy;

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use address::{Address, Addresses, Crowded};
use budget::{Budget, Rate};
use client::Trust;

/// How many may come in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Sockets of one address.
    pub connections_per_address_max: u32,
    /// Sockets of one address that have no session.
    pub unauthenticated_per_address_max: u32,
    /// Whether the limits of an address are those of loopback addresses too.
    pub limit_loopback: bool,
    /// Sockets that have not become a WebSocket with the first bytes that they sent.
    pub http_connections_max: usize,
    /// WebSockets without a session.
    pub unauthenticated_max: usize,
    /// WebSockets that are let in, over time.
    pub connects: Rate,
    /// Descriptors of the process that this listener leaves to others.
    pub descriptors_reserved: u64,
}

/// What a listener asks; clones share their counts.
#[derive(Debug, Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Read for each socket, and replaced by a reload.
    limits: RwLock<Limits>,
    trust: Trust,
    addresses: Addresses,
    http: AtomicUsize,
    unauthenticated: AtomicUsize,
    budget: Mutex<Budget>,
}

/// Why somebody may not come in now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The server has as many connections as it may have.
    Full,
    /// The memory is above its soft mark.
    Memory,
    /// The server is about to end.
    Draining,
    /// The address has as many sockets as it may have.
    AddressConnections,
    /// The address has as many sockets without a session as it may have.
    AddressUnauthenticated,
    /// There are more sockets without a WebSocket than there may be, and this one has been there the longest.
    HttpConnections,
    /// There are as many WebSockets without a session as there may be.
    Unauthenticated,
    /// There have been as many WebSockets in this moment as there may be.
    Connects,
    /// The descriptors that are left are for others.
    Descriptors,
}

/// Somebody may not come in now, and when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why not.
    pub reason: Reason,
    /// After which time there may be room; told in whole seconds, rounded up.
    pub retry_after: Duration,
}

impl Admission {
    /// Nobody is in.
    #[must_use]
    pub fn new(limits: Limits, trust: Trust) -> Self {
        Self {
            inner: Arc::new(Inner {
                limits: RwLock::new(limits),
                trust,
                addresses: Addresses::default(),
                http: AtomicUsize::new(0),
                unauthenticated: AtomicUsize::new(0),
                budget: Mutex::new(Budget::new(limits.connects)),
            }),
        }
    }

    /// The same limits for a listener that the public doesn't reach: counted apart, down to the last descriptor, and
    /// with no proxy in between.
    #[must_use]
    pub fn for_operators(&self) -> Self {
        let limits = Limits {
            descriptors_reserved: 0,
            ..self.limits()
        };
        Self::new(limits, Trust::none())
    }

    /// Takes other limits for whoever comes from now on.
    pub fn set_limits(&self, limits: Limits) {
        let mut budget = self.budget();
        budget.set_rate(limits.connects);
        *self
            .inner
            .limits
            .write()
            .unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Who is believed about whom it speaks for.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.inner.trust
    }

    /// Lets a socket in, which is counted at its address.
    ///
    /// # Errors
    /// The address has too many, or the process too few descriptors.
    pub fn arrive(&self, peer: IpAddr, descriptor: Option<u64>) -> Result<Ticket, Refusal> {
        let reserved = self.limits().descriptors_reserved;
        if descriptor.is_some_and(|descriptor| descriptors::is_reserved(descriptor, reserved)) {
            return Err(Refusal::soon(Reason::Descriptors));
        }
        let mut ticket = Ticket {
            admission: self.clone(),
            address: None,
            stage: Stage::Arrived,
        };
        ticket.identify(peer)?;
        Ok(ticket)
    }

    /// How many addresses have sockets that count.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.inner.addresses.len()
    }

    fn limits(&self) -> Limits {
        *self
            .inner
            .limits
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, Budget> {
        self.inner
            .budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an address is none that limits are for: a proxy that speaks for many, or this machine.
    fn is_exempt(&self, client: IpAddr, limits: &Limits) -> bool {
        self.inner.trust.trusts(client) || (client.is_loopback() && !limits.limit_loopback)
    }
}

/// A socket that was let in. Dropping it makes room for another.
#[derive(Debug)]
pub struct Ticket {
    admission: Admission,
    /// Where it is counted, unless its address has no limit.
    address: Option<Address>,
    stage: Stage,
}

/// How far a socket has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It was accepted.
    Arrived,
    /// It waits for the rest of a request, or asks for pages.
    Http,
    /// It is a WebSocket.
    WebSocket,
    /// It has a session.
    Session,
}

impl Ticket {
    /// Says whose the socket is. Who speaks for others may say it again, of the client behind it.
    ///
    /// # Errors
    /// The client's address has too many; the socket is counted where it was.
    pub fn identify(&mut self, client: IpAddr) -> Result<(), Refusal> {
        let limits = self.admission.limits();
        let address = Address::of(client);
        if self.address == Some(address) || self.admission.is_exempt(client, &limits) {
            return Ok(());
        }
        let addresses = &self.admission.inner.addresses;
        addresses.enter(address, &limits).map_err(|crowded| {
            Refusal::soon(match crowded {
                Crowded::Connections => Reason::AddressConnections,
                Crowded::Unauthenticated => Reason::AddressUnauthenticated,
            })
        })?;
        if let Some(earlier) = self.address.replace(address) {
            addresses.leave(earlier, self.stage != Stage::Session);
        }
        Ok(())
    }

    /// The socket takes a place among those that are no WebSocket yet. Whether that is one too many, so that somebody
    /// else has to go: who has just come is more likely to be quick than who has been there for long.
    #[must_use]
    pub fn wait(&mut self) -> bool {
        let max = self.admission.limits().http_connections_max;
        let taken = self.admission.inner.http.fetch_add(1, Ordering::Relaxed);
        self.move_to(Stage::Http);
        taken >= max
    }

    /// The handshake is good: the socket becomes a WebSocket.
    ///
    /// # Errors
    /// There are too many without a session, or too many have just come.
    pub fn upgrade(&mut self, now: Instant) -> Result<(), Refusal> {
        let unauthenticated = &self.admission.inner.unauthenticated;
        if !take(unauthenticated, self.admission.limits().unauthenticated_max) {
            return Err(Refusal::soon(Reason::Unauthenticated));
        }
        let outcome = self.admission.budget().take(now);
        if let Err(wait) = outcome {
            unauthenticated.fetch_sub(1, Ordering::Relaxed);
            // Those of one second come back over the next two, not all at its beginning.
            return Err(Refusal {
                reason: Reason::Connects,
                retry_after: wait + random_up_to(Duration::from_secs(1)),
            });
        }
        self.move_to(Stage::WebSocket);
        Ok(())
    }

    /// The WebSocket has its session.
    pub fn authenticate(&mut self) {
        if let (Stage::WebSocket, Some(address)) = (self.stage, self.address) {
            self.admission.inner.addresses.authenticate(address);
        }
        self.move_to(Stage::Session);
    }

    fn move_to(&mut self, stage: Stage) {
        let inner = &self.admission.inner;
        match self.stage {
            Stage::Http => {
                inner.http.fetch_sub(1, Ordering::Relaxed);
            }
            Stage::WebSocket => {
                inner.unauthenticated.fetch_sub(1, Ordering::Relaxed);
            }
            Stage::Arrived | Stage::Session => {}
        }
        self.stage = stage;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(address) = self.address.take() {
            let addresses = &self.admission.inner.addresses;
            addresses.leave(address, self.stage != Stage::Session);
        }
        self.move_to(Stage::Session);
    }
}

impl Refusal {
    /// A refusal by a limit that nobody knows when there will be room under: a few seconds, not the same for all.
    #[must_use]
    pub fn soon(reason: Reason) -> Self {
        Self {
            reason,
            retry_after: RETRY_AFTER + random_up_to(RETRY_AFTER),
        }
    }
}

/// One of those that a number counts, for as long as it lives.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// One more.
    #[must_use]
    pub fn new(number: &Arc<AtomicUsize>) -> Self {
        number.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(number))
    }

    /// One more, if there are fewer than so many.
    #[must_use]
    pub fn below(number: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        take(number, max).then(|| Self(Arc::clone(number)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes one of so many places; whether there was one.
fn take(places: &AtomicUsize, max: usize) -> bool {
    places
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < max).then_some(taken + 1)
        })
        .is_ok()
}

/// A random time, so that those who were refused together don't come back together. Nobody gains by guessing it.
fn random_up_to(max: Duration) -> Duration {
    let part = getrandom::u32().map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX));
    max.mul_f64(part)
}

/// Short for who waits, long for the server: a peer that obeys costs it next to nothing.
const RETRY_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            connections_per_address_max: 3,
            unauthenticated_per_address_max: 2,
            limit_loopback: false,
            http_connections_max: 2,
            unauthenticated_max: 2,
            connects: Rate {
                per_s: 1_000,
                burst: 1_000,
            },
            descriptors_reserved: 0,
        }
    }

    fn admission(limits: Limits) -> Admission {
        Admission::new(limits, Trust::none())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn reason<T>(outcome: Result<T, Refusal>) -> Option<Reason> {
        outcome.err().map(|refusal| refusal.reason)
    }

    /// A ticket that has come as far as a session.
    fn session(admission: &Admission, client: &str) -> Ticket {
        let mut ticket = admission.arrive(ip(client), None).unwrap();
        ticket.upgrade(Instant::now()).unwrap();
        ticket.authenticate();
        ticket
    }

    /// At the bound a socket is let in, one more is not; a session makes room for another hello, and an end for another session.
    #[test]
    fn an_address_has_its_sockets_and_no_more() {
        let admission = admission(limits());
        let client = ip("192.0.2.1");
        let first = admission.arrive(client, None).unwrap();
        let mut second = admission.arrive(client, None).unwrap();
        assert_eq!(
            reason(admission.arrive(client, None)),
            Some(Reason::AddressUnauthenticated)
        );
        second.upgrade(Instant::now()).unwrap();
        assert_eq!(
            reason(admission.arrive(client, None)),
            Some(Reason::AddressUnauthenticated)
        );
        second.authenticate();
        let third = session(&admission, "192.0.2.1");
        assert_eq!(
            reason(admission.arrive(client, None)),
            Some(Reason::AddressConnections)
        );
        assert_eq!(reason(admission.arrive(ip("192.0.2.2"), None)), None);
        drop((first, second, third));
        assert_eq!(admission.addresses(), 0);
    }

    /// Loopback has no limit of its own, unless it is asked for.
    #[test]
    fn loopback_is_limited_on_request() {
        for (limit_loopback, last) in [(false, None), (true, Some(Reason::AddressUnauthenticated))]
        {
            let admission = admission(Limits {
                limit_loopback,
                ..limits()
            });
            let mut tickets = Vec::new();
            for _ in 0..2 {
                tickets.push(admission.arrive(ip("127.0.0.1"), None).unwrap());
            }
            assert_eq!(reason(admission.arrive(ip("127.0.0.1"), None)), last);
        }
    }

    /// Who speaks for many has no limit; those behind it have theirs, each its own.
    #[test]
    fn clients_behind_a_proxy_are_counted_each_at_its_address() {
        let trust = Trust {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            ..Trust::none()
        };
        let admission = Admission::new(limits(), trust);
        let mut tickets: Vec<_> = (0..4)
            .map(|_| admission.arrive(ip("10.1.2.3"), None).unwrap())
            .collect();
        let outcomes: Vec<_> = tickets
            .iter_mut()
            .map(|ticket| reason(ticket.identify(ip("192.0.2.1"))))
            .collect();
        let crowded = Some(Reason::AddressUnauthenticated);
        assert_eq!(outcomes, [None, None, crowded, crowded]);
        assert_eq!(reason(tickets[2].identify(ip("192.0.2.2"))), None);
        // The same again is the same socket, and not another.
        assert_eq!(reason(tickets[0].identify(ip("192.0.2.1"))), None);
        drop(tickets);
        assert_eq!(admission.addresses(), 0);
    }

    /// Places of both stages are bounded, and come back with the sockets.
    #[test]
    fn stages_are_bounded() {
        let admission = admission(limits());
        let arrive = |host: u8| {
            admission
                .arrive(IpAddr::from([192, 0, 2, host]), None)
                .unwrap()
        };
        let mut tickets: Vec<_> = (0..3).map(arrive).collect();
        let waiting: Vec<_> = tickets.iter_mut().map(Ticket::wait).collect();
        assert_eq!(waiting, [false, false, true]);
        let now = Instant::now();
        let upgraded: Vec<_> = tickets
            .iter_mut()
            .map(|ticket| reason(ticket.upgrade(now)))
            .collect();
        assert_eq!(upgraded, [None, None, Some(Reason::Unauthenticated)]);
        assert_eq!(admission.inner.http.load(Ordering::Relaxed), 1);
        tickets[0].authenticate();
        assert_eq!(reason(tickets[2].upgrade(now)), None);
        assert_eq!(admission.inner.http.load(Ordering::Relaxed), 0);
        drop(tickets);
        assert_eq!(admission.inner.unauthenticated.load(Ordering::Relaxed), 0);
    }

    /// A handshake beyond the budget takes no place, and is told a wait.
    #[test]
    fn the_budget_refuses_without_taking_a_place() {
        let admission = admission(Limits {
            connects: Rate { per_s: 1, burst: 1 },
            ..limits()
        });
        let now = Instant::now();
        let mut first = admission.arrive(ip("192.0.2.1"), None).unwrap();
        first.upgrade(now).unwrap();
        let mut second = admission.arrive(ip("192.0.2.2"), None).unwrap();
        let refusal = second.upgrade(now).unwrap_err();
        assert_eq!(refusal.reason, Reason::Connects);
        assert!((1..=2).contains(&refusal.retry_after.as_millis().div_euclid(1_000)));
        assert_eq!(admission.inner.unauthenticated.load(Ordering::Relaxed), 1);
    }

    /// New limits are those of whoever comes next.
    #[test]
    fn limits_can_be_changed() {
        let admission = admission(limits());
        let _two = [0, 1].map(|_| admission.arrive(ip("192.0.2.1"), None).unwrap());
        assert!(admission.arrive(ip("192.0.2.1"), None).is_err());
        admission.set_limits(Limits {
            unauthenticated_per_address_max: 3,
            ..limits()
        });
        assert!(admission.arrive(ip("192.0.2.1"), None).is_ok());
    }
}
