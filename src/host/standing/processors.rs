//! On which processors a thread may run.

use std::fmt;
use std::io;

/// Linux has room for 8192 processors (`CONFIG_NR_CPUS` at its largest).
const WORDS: usize = 128;
const BITS: usize = 64;

/// A set of processors.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Processors(Box<[u64; WORDS]>);

impl Processors {
    /// Those of a thread; of a process by the number of its first one.
    pub(super) fn of(thread: i32) -> io::Result<Self> {
        let mut set = Self(Box::new([0; WORDS]));
        // SAFETY: the kernel writes no more than the length given, which is that of the array; any bits are a set.
        let result = unsafe {
            nix::libc::sched_getaffinity(
                thread,
                size_of_val(&*set.0),
                set.0.as_mut_ptr().cast::<nix::libc::cpu_set_t>(),
            )
        };
        if result == 0 { Ok(set) } else { Err(io::Error::last_os_error()) }
    }

    /// Lets a thread run on these only; 0 is the calling one.
    pub(super) fn give(&self, thread: i32) -> io::Result<()> {
        // SAFETY: the kernel reads no more than the length given, which is that of the array.
        let result = unsafe {
            nix::libc::sched_setaffinity(
                thread,
                size_of_val(&*self.0),
                self.0.as_ptr().cast::<nix::libc::cpu_set_t>(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn has(&self, number: usize) -> bool {
        self.0.get(number / BITS).is_some_and(|word| word >> (number % BITS) & 1 == 1)
    }
}

/// As `taskset -c` and /proc write it: `0-3,8`.
impl fmt::Display for Processors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        let mut number = 0;
        while number < WORDS * BITS {
            let first = number;
            while self.has(number) {
                number += 1;
            }
            match number - first {
                0 => number += 1,
                length => {
                    write!(formatter, "{comma}{first}")?;
                    if length > 1 {
                        write!(formatter, "-{}", number - 1)?;
                    }
                    comma = ",";
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Processors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Processors({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_written_as_linux_writes_them() {
        for (words, text) in [
            (vec![], ""),
            (vec![0b1], "0"),
            (vec![0b1011], "0-1,3"),
            (vec![1 << 63, 1], "63-64"),
            (vec![0, 0b100], "66"),
        ] {
            let mut set = Processors(Box::new([0; WORDS]));
            set.0[..words.len()].copy_from_slice(&words);
            assert_eq!(set.to_string(), text);
        }
        assert_eq!(Processors(Box::new([u64::MAX; WORDS])).to_string(), "0-8191");
    }

    #[test]
    fn a_thread_may_be_given_fewer_and_gets_no_others() {
        // The affinity of a thread of its own: nobody else's is changed.
        let test = || {
            let all = Processors::of(0).unwrap();
            let one = (0..WORDS * BITS).find(|&number| all.has(number)).unwrap();
            let mut fewer = Processors(Box::new([0; WORDS]));
            fewer.0[one / BITS] = 1 << (one % BITS);
            fewer.give(0).unwrap();
            assert_eq!(Processors::of(0).unwrap(), fewer);
            assert!(Processors(Box::new([0; WORDS])).give(0).is_err());
        };
        std::thread::spawn(test).join().unwrap();
    }
}
