//! Which pages are dirty, and in which order they are sent.

use std::ops::Range;

use super::numbers::{Random, as_f64};

/// What a page that is sent whole takes in the stream: its bytes and eight of header (`ram_save_page`).
const WHOLE_PAGE_BYTES: u64 = 4096 + 8;
/// What a page of zeroes takes (`save_zero_page`).
const ZERO_PAGE_BYTES: u64 = 9;
/// Pages to a word of the bitmap.
const WORD: u64 = 64;

/// QEMU's bitmap of pages to send, with its place in it: it goes from the first page to the last, again and again,
/// and does not start anew when a pass begins.
#[derive(Debug, Clone)]
pub(super) struct DirtyPages {
    dirty: Vec<u64>,
    zero: Vec<u64>,
    count: u64,
    next: usize,
}

/// How far the sender may go, and what a page costs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    pub(super) bytes: u64,
    pub(super) ms: f64,
    pub(super) whole_page_ms: f64,
    pub(super) zero_page_ms: f64,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) bytes: u64,
    pub(super) ms: f64,
}

impl DirtyPages {
    /// All pages dirty, and all of zeroes but for those in these ranges.
    pub(super) fn all(pages: u64, used: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut none = Self { dirty: Vec::new(), zero: Vec::new(), count: 0, next: 0 };
        none.dirty = vec![0; usize::try_from(pages.div_ceil(WORD)).unwrap_or(0)];
        none.zero.clone_from(&none.dirty);
        none.mark(0..pages);
        none.zero.clone_from(&none.dirty);
        used.into_iter().for_each(|range| none.mark(range));
        none
    }

    /// How many are dirty.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The pages of a range have been written.
    pub(super) fn mark(&mut self, range: Range<u64>) {
        self.each_word(range, |mask| mask);
    }

    /// Each page of a range has been written with this probability.
    pub(super) fn mark_some(&mut self, range: Range<u64>, probability: f64, random: &mut Random) {
        self.each_word(range, |mask| mask & random.bits(probability));
    }

    fn each_word(&mut self, range: Range<u64>, mut written: impl FnMut(u64) -> u64) {
        let mut page = range.start;
        while page < range.end {
            let end = (page / WORD + 1) * WORD;
            let mut mask = u64::MAX << (page % WORD);
            if range.end < end {
                mask &= (1 << (range.end % WORD)) - 1;
            }
            let written = written(mask);
            let index = usize::try_from(page / WORD).unwrap_or(usize::MAX);
            if let (Some(dirty), Some(zero)) = (self.dirty.get_mut(index), self.zero.get_mut(index)) {
                self.count += u64::from((written & !*dirty).count_ones());
                *dirty |= written;
                *zero &= !written;
            }
            page = end;
        }
    }

    /// Sends pages from where it is, until none are left or the allowance is used up. As in QEMU the bytes are looked
    /// at before each page, so that the last one may go beyond.
    pub(super) fn send(&mut self, allowance: Allowance) -> Sent {
        let mut sent = Sent::default();
        let words = self.dirty.len();
        // One round and the word it began in, of which only the later pages were sent at first.
        for _ in 0..=words {
            if self.count == 0 {
                break;
            }
            if !self.send_word(allowance, &mut sent) {
                break;
            }
            let word = self.next / 64 + 1;
            self.next = if word < words { word * 64 } else { 0 };
        }
        sent
    }

    /// Sends the pages of the word that it is in, from where it is; says whether it came to its end.
    fn send_word(&mut self, allowance: Allowance, sent: &mut Sent) -> bool {
        let (index, from) = (self.next / 64, self.next % 64);
        let (Some(dirty), Some(&zero)) = (self.dirty.get_mut(index), self.zero.get(index)) else {
            return true;
        };
        let mut due = *dirty & (u64::MAX << from);
        if due == 0 {
            return true;
        }
        let (empty, whole) = (u64::from((due & zero).count_ones()), u64::from((due & !zero).count_ones()));
        let bytes = whole * WHOLE_PAGE_BYTES + empty * ZERO_PAGE_BYTES;
        let ms = as_f64(whole) * allowance.whole_page_ms + as_f64(empty) * allowance.zero_page_ms;
        if sent.bytes + bytes <= allowance.bytes && sent.ms + ms <= allowance.ms {
            *dirty &= !due;
            self.count -= whole + empty;
            sent.bytes += bytes;
            sent.ms += ms;
            return true;
        }
        while due != 0 {
            let page = due.trailing_zeros();
            let is_zero = zero >> page & 1 == 1;
            let (bytes, ms) = if is_zero {
                (ZERO_PAGE_BYTES, allowance.zero_page_ms)
            } else {
                (WHOLE_PAGE_BYTES, allowance.whole_page_ms)
            };
            if sent.bytes >= allowance.bytes || sent.ms + ms > allowance.ms {
                self.next = index * 64 + usize::try_from(page).unwrap_or(0);
                return false;
            }
            due &= due - 1;
            *dirty &= !(1 << page);
            self.count -= 1;
            sent.bytes += bytes;
            sent.ms += ms;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use proptest::prelude::*;

    use super::*;

    const FREE: Allowance =
        Allowance { bytes: u64::MAX, ms: f64::MAX, whole_page_ms: 0.0, zero_page_ms: 0.0 };

    #[test]
    fn a_page_of_zeroes_takes_nine_bytes_until_it_is_written() {
        let mut pages = DirtyPages::all(100, once(10..30));
        assert_eq!((pages.count(), pages.send(FREE).bytes), (100, 20 * 4104 + 80 * 9));
        pages.mark(0..5);
        assert_eq!((pages.count(), pages.send(FREE).bytes, pages.count()), (5, 5 * 4104, 0));
    }

    #[test]
    fn the_sender_goes_on_where_it_was_and_overruns_its_bytes_by_a_page_at_most() {
        let mut pages = DirtyPages::all(200, once(0..200));
        let sent = pages.send(Allowance { bytes: 4104 * 70 + 1, ..FREE });
        assert_eq!((sent.bytes, pages.count()), (4104 * 71, 129));
        pages.mark(0..10);
        assert_eq!(
            (pages.send(Allowance { bytes: 4104 * 129, ..FREE }).bytes, pages.count()),
            (4104 * 129, 10)
        );
        assert_eq!((pages.send(FREE).bytes, pages.count()), (4104 * 10, 0));
    }

    #[test]
    fn time_is_an_allowance_too() {
        let mut pages = DirtyPages::all(200, once(0..200));
        let sent = pages.send(Allowance { ms: 10.0, whole_page_ms: 0.1, ..FREE });
        assert!((100..=101).contains(&(200 - pages.count())) && sent.ms <= 10.0, "{sent:?}");
    }

    proptest! {
        #[test]
        fn what_is_marked_is_counted_once_and_sent_once(
            pages in 1_u64..500,
            ranges in proptest::collection::vec((0_u64..500, 0_u64..500), 0..20),
            slice in 1_u64..50,
        ) {
            let mut dirty = DirtyPages::all(pages, once(0..pages));
            dirty.send(FREE);
            let mut model = vec![false; usize::try_from(pages).unwrap()];
            for (start, length) in ranges {
                let range = start.min(pages)..(start + length).min(pages);
                for page in range.clone() {
                    model[usize::try_from(page).unwrap()] = true;
                }
                dirty.mark(range);
            }
            let expected = u64::try_from(model.iter().filter(|&&is_dirty| is_dirty).count()).unwrap();
            prop_assert_eq!(dirty.count(), expected);
            let mut sent = 0;
            while dirty.count() > 0 {
                sent += dirty.send(Allowance { bytes: slice * 4104, ..FREE }).bytes;
            }
            prop_assert_eq!(sent, expected * 4104);
        }
    }
}
