//! Which write goes to which page, and which write a page shows.
//!
//! Writes are numbered from 1. The guest keeps running sums where this file uses closed forms; the model in the tests
//! of [`verify`](crate::guest::verify) executes the guest's way and must agree.
//!
//! * *Regions* (`sweep`, `phased`, `hot-and-cold`): of the first `w` writes `floor(w * share / 100)` go to the hot pages,
//!   the others to the cold ones, and each region is swept from its first page to its last, again and again. A sweep
//!   is a single region with a share of 100.
//! * *Uniform*: the mixed number of the write, scaled to the pages. Any write can be replayed on its own, so that after
//!   hours of writing it takes only as many steps backwards as it takes to meet each page.

use super::page::mix;
use super::pattern::Pattern;
use super::workload::Workload;

/// Spreads the high half of a write's number over the low one.
pub(super) const HIGH_FACTOR: u32 = 0x9e37_79b1;

/// The order of the writes of one workload.
#[derive(Debug, Clone)]
pub struct Schedule {
    pages: u32,
    order: Order,
}

#[derive(Debug, Clone)]
enum Order {
    Regions { hot_pages: u32, share: u32 },
    Uniform,
}

impl Schedule {
    /// The order in which the guest executes this workload.
    pub fn new(workload: &Workload) -> Self {
        let order = match workload.pattern() {
            Pattern::Uniform => Order::Uniform,
            pattern => Order::Regions { hot_pages: workload.hot_pages(), share: pattern.hot_share() },
        };
        Self { pages: workload.pages(), order }
    }

    /// The page that a write goes to. Writes are numbered from 1; there is no write 0, and it is taken for the first.
    pub fn page(&self, write: u64) -> u32 {
        let write = write.max(1);
        match self.order {
            Order::Uniform => uniform_page(write, self.pages),
            Order::Regions { hot_pages, share } => {
                let hot = hot_writes(write, share);
                if hot > hot_writes(write - 1, share) {
                    remainder(hot - 1, hot_pages)
                } else {
                    hot_pages + remainder(write - hot - 1, self.pages - hot_pages)
                }
            }
        }
    }

    /// For each page the number of the last of the first `writes` writes to it; 0 for none.
    pub fn last_writes(&self, writes: u64) -> LastWrites {
        LastWrites(match self.order {
            Order::Uniform => Last::Listed(self.replay(writes)),
            Order::Regions { hot_pages, share } => {
                let hot = hot_writes(writes, share);
                Last::Regions {
                    hot_pages,
                    cold_pages: self.pages - hot_pages,
                    share,
                    hot,
                    cold: writes - hot,
                }
            }
        })
    }

    /// Uniform writes, backwards until each page was met.
    fn replay(&self, writes: u64) -> Vec<u64> {
        let mut last = vec![0; self.pages as usize];
        let mut unmet = self.pages;
        for write in (1..=writes).rev() {
            let page = &mut last[uniform_page(write, self.pages) as usize];
            if *page == 0 {
                *page = write;
                unmet -= 1;
                if unmet == 0 {
                    break;
                }
            }
        }
        last
    }
}

/// For each page the number of its last write.
#[derive(Debug, Clone)]
pub struct LastWrites(Last);

#[derive(Debug, Clone)]
enum Last {
    Regions { hot_pages: u32, cold_pages: u32, share: u32, hot: u64, cold: u64 },
    Listed(Vec<u64>),
}

impl LastWrites {
    /// The number of the page's last write; 0 for none.
    pub fn of(&self, page: u32) -> u64 {
        match &self.0 {
            Last::Listed(last) => last.get(page as usize).copied().unwrap_or(0),
            Last::Regions { hot_pages, share, hot, .. } if page < *hot_pages => {
                match last_visit(*hot, page, *hot_pages) {
                    0 => 0,
                    visit => hot_write(visit, *share),
                }
            }
            Last::Regions { hot_pages, cold_pages, share, cold, .. } => {
                match last_visit(*cold, page - hot_pages, *cold_pages) {
                    0 => 0,
                    visit => cold_write(visit, *share),
                }
            }
        }
    }
}

fn uniform_page(write: u64, pages: u32) -> u32 {
    let [low, high] = halves(write);
    let mixed = mix(low ^ high.wrapping_mul(HIGH_FACTOR));
    halves(u64::from(mixed) * u64::from(pages))[1]
}

/// The low and the high half.
pub(super) fn halves(number: u64) -> [u32; 2] {
    let half = |number: u64| u32::try_from(number & 0xffff_ffff).unwrap_or_default();
    [half(number), half(number >> 32)]
}

fn remainder(number: u64, pages: u32) -> u32 {
    halves(number % u64::from(pages))[0]
}

/// How many of the first `writes` writes are hot: `floor(writes * share / 100)`, without overflow.
fn hot_writes(writes: u64, share: u32) -> u64 {
    let share = u64::from(share);
    writes / 100 * share + writes % 100 * share / 100
}

/// The number of the n-th hot write: `ceil(100 n / share)`. Saturates: nobody has written that often.
fn hot_write(visit: u64, share: u32) -> u64 {
    let share = u64::from(share);
    (visit / share).saturating_mul(100).saturating_add((visit % share * 100).div_ceil(share))
}

/// The number of the n-th cold write: `floor(100 (n - 1) / (100 - share)) + 1`.
fn cold_write(visit: u64, share: u32) -> u64 {
    let (before, cold) = (visit - 1, u64::from(100 - share));
    (before / cold).saturating_mul(100).saturating_add(before % cold * 100 / cold + 1)
}

/// The number of the last of `visits` visits that came to this page of a swept region; 0 for none.
fn last_visit(visits: u64, page: u32, pages: u32) -> u64 {
    let (page, pages) = (u64::from(page), u64::from(pages));
    if visits <= page { 0 } else { (visits - 1 - page) / pages * pages + page + 1 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::workload::tests::any_workload;

    /// What `last_writes` says at once is what one finds by asking for the page of each write.
    fn agrees(workload: &Workload, writes: u64) {
        let schedule = Schedule::new(workload);
        let mut last = vec![0; workload.pages() as usize];
        for write in 1..=writes {
            last[schedule.page(write) as usize] = write;
        }
        let said = schedule.last_writes(writes);
        for page in 0..workload.pages() {
            assert_eq!(
                said.of(page),
                last[page as usize],
                "page {page} after {writes} writes of {workload:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_closed_form_is_the_replay(workload in any_workload(40), writes in 0_u64..2000) {
            agrees(&workload, writes);
        }

        #[test]
        fn visits_and_writes_are_inverse(visit in 1_u64..1 << 40, share in 1_u32..100) {
            let hot = hot_write(visit, share);
            prop_assert_eq!((hot_writes(hot, share), hot_writes(hot - 1, share)), (visit, visit - 1));
            let cold = cold_write(visit, share);
            prop_assert_eq!((cold - hot_writes(cold, share), cold - 1 - hot_writes(cold - 1, share)), (visit, visit - 1));
        }
    }
}
